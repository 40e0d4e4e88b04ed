"""Going on from a `checkpoint_latest.pth` that may hold anything: restored, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masksam_deploy.base.errors import CheckpointError
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.official import ACDC
from masksam_export.families.masksam.training import trainer_form
from masksam_export.families.masksam.training.history import Epoch

CONFIG = replace(
    ACDC, frames=2, temporal_mlp_dim=8, embed_dim=16, depth=4, heads=2, global_blocks=(0, 1, 2, 3), window=4,
    mlp_dim=16, adapter_dim=4, canvas_grid=4, grid=4, prompt_dim=16, decoder_mlp_dim=16, decoder_adapter_dim=4,
    upscaling_widths=(8, 8), iou_hidden_dim=8, stem_widths=(4, 4),
    levels=tuple(replace(level, width=4) for level in ACDC.levels),
)  # fmt: skip
EPOCHS = [Epoch(n, 0.1, 1.0, {"dice": 0.5}, 0.7, (0.5, 0.25), 1e9, 1e9 + 5) for n in range(2)]
Optimizer = torch.optim.Optimizer
Edit = Callable[[dict[str, Any]], None]


def trainer(config: ModelConfig = CONFIG, kind: str = "sgd") -> tuple[MaskSAM, Optimizer, torch.amp.GradScaler]:
    torch.manual_seed(1)
    model = MaskSAM(config)
    parameters = list(model.parameters())
    optimizer: Optimizer = (
        torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        if kind == "sgd"
        else torch.optim.AdamW(parameters, lr=0.1)
    )
    return model, optimizer, torch.amp.GradScaler("cpu", enabled=True)


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def stored(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    model, optimizer, scaler = trainer(kind=request.param)
    for parameter in list(model.parameters())[:-1]:  # one parameter never had a gradient
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return request.param, trainer_form.content(model, {}, EPOCHS, (), optimizer=optimizer, scaler=scaler)


def restored(content: dict[str, Any], kind: str, folder: Path) -> tuple[list[Epoch], Optimizer, MaskSAM]:
    path = folder / "checkpoint_latest.pth"
    torch.save(content, path)
    model, optimizer, scaler = trainer(kind=kind)
    return trainer_form.restore(path, model, optimizer, scaler), optimizer, model


def test_what_was_stored_is_restored_to_the_bit(stored: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    kind, content = stored
    epochs, optimizer, model = restored(content, kind, tmp_path)
    assert epochs == EPOCHS
    assert all(torch.equal(value, content["network_weights"][name]) for name, value in model.state_dict().items())
    found, expected = optimizer.state_dict(), content["optimizer_state"]
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for number, moments in expected["state"].items():
        assert all(torch.equal(found["state"][number][name], value) for name, value in moments.items())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def moments(change: Callable[[dict[str, Any]], Any]) -> Edit:
    """Change the moments of the first parameter."""
    return lambda content: change(content["optimizer_state"]["state"][0])


def every(value: Any) -> Edit:
    return moments(lambda state: state.update(dict.fromkeys(state, value)))


def broken_scaler(**values: Any) -> Edit:
    return lambda content: content["grad_scaler_state"].update(values)


def progress(**values: Any) -> Edit:
    return lambda content: content[trainer_form.PROGRESS][0].update(values)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.pop("optimizer_state"),
        lambda c: c.update(optimizer_state=torch.zeros(3)),
        lambda c: c.update(optimizer_state=[1]),
        lambda c: c["optimizer_state"].pop("state"),
        lambda c: c["optimizer_state"].update(state=[1]),
        lambda c: c["optimizer_state"]["state"].update({9999: {}}),
        lambda c: c["optimizer_state"]["state"].update({"0": {}}),
        lambda c: c["optimizer_state"]["state"].update({0: 3}),
        moments(lambda state: state.update(other=torch.zeros(1))),
        moments(lambda state: state.pop(next(iter(state)))),
        every(torch.zeros(7, 7, 7)),
        every(torch.zeros(())),
        every(torch.full((1,), torch.nan)),
        every(torch.zeros(1).expand(10**9)),
        every(torch.zeros(3).to_sparse()),
        every("text"),
        every([1.0]),
        lambda c: c.update(network_weights=torch.zeros(2, 2)),
        lambda c: c.update(network_weights={"a": 1}),
        lambda c: c["network_weights"].update({name: t * torch.nan for name, t in c["network_weights"].items()}),
        lambda c: c["network_weights"].popitem(),
        lambda c: c.update({trainer_form.PROGRESS: torch.zeros(2, 2)}),
        lambda c: c.update({trainer_form.PROGRESS: [3]}),
        lambda c: c.update({trainer_form.PROGRESS: {"a": 3}}),
        lambda c: c[trainer_form.PROGRESS].reverse(),
        progress(number="x" * 5000),
        progress(number=float("inf")),
        progress(terms=[1]),
        progress(dice=3),
        progress(dice=[torch.zeros(3)]),
        progress(started=None),
        progress(learning_rate="\x1b[2J"),
        broken_scaler(scale="x"),
        broken_scaler(scale=float("nan")),
        broken_scaler(scale=0.0),
        broken_scaler(_growth_tracker=-1),
        lambda c: c["grad_scaler_state"].pop("scale"),
        lambda c: c.update(grad_scaler_state=[1]),
    ],
)
@pytest.mark.parametrize("stored", ["adamw"], indirect=True)
def test_anything_else_is_refused_in_one_line(stored: tuple[str, dict[str, Any]], tmp_path: Path, edit: Edit) -> None:
    kind, content = stored[0], deepcopy(stored[1])
    edit(content)
    with pytest.raises(CheckpointError) as caught:
        restored(content, kind, tmp_path)
    message = str(caught.value)
    assert "checkpoint_latest.pth" in message or "too large values" in message
    assert message.isprintable()
    assert len(message) < 1000


def test_hyperparameters_are_those_of_the_run_and_not_of_the_file(
    stored: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    kind, content = stored[0], deepcopy(stored[1])
    for group in content["optimizer_state"]["param_groups"]:
        group.update(dict.fromkeys(group, "nonsense"))
    _, optimizer, model = restored(content, kind, tmp_path)
    assert optimizer.param_groups[0]["lr"] == 0.1
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
