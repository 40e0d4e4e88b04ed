"""Whole runs on a few small volumes: what they write, that they learn, resume and refuse."""

import csv
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masksam_deploy.base.errors import CheckpointError, DatasetError, MaskSamError, OutputError
from masksam_export.families.masksam.checkpoint import load_checkpoint
from masksam_export.families.masksam.training.history import Epoch, draw_curves
from masksam_export.families.masksam.training.loop import Trainer, learning_rate
from masksam_export.families.masksam.training.run import Request, prepare_run
from masksam_export.families.masksam.training.settings import OptimizerName
from masksam_export.families.masksam.training.trainer_form import is_best
from masksam_export.torch_files.safe_load import load_mapping
from tests.training.raw_dataset import Generated, description, generated, write_case, write_dataset

REQUEST = Request(patch=(2, 32, 32), epochs=2, iterations=3, batch=2, learning_rate=2e-3, warmup=2, seed=5)


class Silent:
    """A watcher that remembers the epochs, and may stop the run after one."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.epochs: list[Epoch] = []
        self._stop_after = stop_after

    def iteration(self, epoch: int, done: int, loss: float) -> None:
        pass

    def validated(self, done: int, total: int) -> None:
        pass

    def epoch(self, epoch: Epoch, best: bool) -> None:
        self.epochs.append(epoch)
        if epoch.number + 1 == self._stop_after:
            raise KeyboardInterrupt


def ignore(what: str, done: int, total: int) -> None:
    """No progress shown."""


def disc(seed: int) -> Generated:
    """A bright disc on noise, at a random place."""
    random = np.random.default_rng(seed)
    row, column = random.integers(12, 24, 2)
    inside = np.hypot(*(np.mgrid[:36, :36] - np.array([row, column])[:, None, None])) < 7
    labels = np.repeat(inside[None], 3, axis=0).astype(np.uint8)
    scan = (random.normal(size=(1, 3, 36, 36)) * 5 + 40 + 60 * labels).astype(np.float32)
    return Generated(scan, labels, (4.0, 1.0, 1.0))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    cases = {f"case_{index}": disc(index) for index in range(4)}
    return write_dataset(tmp_path / "data", cases, description(("MRI",), 2))


def start(dataset: Path, run: Path, request: Request | None = REQUEST) -> tuple[Trainer, Silent]:
    """Prepare a run; without a request, go on with the interrupted one."""
    watcher = Silent()
    trainer, _ = prepare_run(dataset, run, request, watcher, ignore)
    return trainer, watcher


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_mapping(path)["network_weights"])


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for `finished` to copy."""
    folder = tmp_path_factory.mktemp("finished")
    cases = {f"case_{index}": disc(index) for index in range(4)}
    start(write_dataset(folder / "data", cases, description(("MRI",), 2)), folder / "run")[0].fit()
    return folder / "run"


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """The folder of a finished run on a data set equal to `dataset`."""
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


def test_a_run_writes_all_its_files_and_checkpoints_that_load(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "settings.json", "plans.json", "dataset.json", "progress.csv", "curves.png",
        "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_final.pth", "checkpoint_release.pth",
    }  # fmt: skip
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_release.pth"):
        trained = load_checkpoint(finished / name)
        assert trained.config.input_shape == (1, 2, 32, 32)
        assert trained.mirror_axes == (0, 1, 2)
        assert [label.name for label in trained.labels.classes] == ["background", "part 1"]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((finished / "progress.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert all(0 <= float(row["dice part 1"]) <= 1 and float(row["train loss"]) > 0 for row in rows)


def test_checkpoints_have_the_official_trainer_s_entries(finished: Path, cardiac_case: Path) -> None:
    official = load_mapping(cardiac_case / "checkpoint_final.pth")
    ours = load_mapping(finished / "checkpoint_final.pth")
    assert official.keys() <= ours.keys()
    assert official["init_args"].keys() <= ours["init_args"].keys()
    assert official["logging"].keys() == ours["logging"].keys()
    assert {len(values) for values in ours["logging"].values()} == {2}
    assert ours["current_epoch"] == 2
    assert ours["trainer_name"] == "MaskSAM_ACDC"
    plan, own = (c["init_args"]["plans"]["configurations"]["3d_fullres"] for c in (official, ours))
    assert plan.keys() <= own.keys()
    assert plan["architecture"]["arch_kwargs"].keys() == own["architecture"]["arch_kwargs"].keys()


def test_the_release_has_the_same_weights_without_the_optimizer(finished: Path) -> None:
    assert same(weights(finished / "checkpoint_release.pth"), weights(finished / "checkpoint_final.pth"))
    assert load_mapping(finished / "checkpoint_release.pth")["optimizer_state"] is None
    sizes = [(finished / f"checkpoint_{name}.pth").stat().st_size for name in ("release", "final")]
    assert sizes[0] < 0.5 * sizes[1]


def test_training_repeats_to_the_bit(dataset: Path, finished: Path, tmp_path: Path) -> None:
    start(dataset, tmp_path / "again")[0].fit()
    assert same(weights(tmp_path / "again" / "checkpoint_final.pth"), weights(finished / "checkpoint_final.pth"))
    start(dataset, tmp_path / "other", replace(REQUEST, seed=6))[0].fit()
    assert not same(weights(tmp_path / "other" / "checkpoint_final.pth"), weights(finished / "checkpoint_final.pth"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    optimizer: OptimizerName, dataset: Path, tmp_path: Path
) -> None:
    request = replace(REQUEST, optimizer=optimizer, learning_rate=1e-4)
    start(dataset, tmp_path / "whole", request)[0].fit()
    run = tmp_path / "halves"
    trainer, _ = prepare_run(dataset, run, request, Silent(stop_after=1), ignore)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed, watcher = start(dataset, run, None)
    resumed.fit()
    assert [epoch.number for epoch in watcher.epochs] == [1]
    assert same(weights(run / "checkpoint_final.pth"), weights(tmp_path / "whole" / "checkpoint_final.pth"))
    assert len((run / "progress.csv").read_text().splitlines()) == 3


def test_one_thread_cuts_the_patches_of_all_epochs(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal while a thread starts leaves it unknown to its pool: the process aborts where it then ends."""
    started: list[str] = []
    start_thread = threading.Thread.start

    def note_and_start(thread: threading.Thread) -> None:
        started.append(thread.name)
        start_thread(thread)

    monkeypatch.setattr(threading.Thread, "start", note_and_start)
    trainer, watcher = start(dataset, tmp_path / "run", replace(REQUEST, epochs=3, validate_every=3))
    started.clear()
    trainer.fit()
    assert len(watcher.epochs) == 3
    assert len([name for name in started if name.startswith("ThreadPoolExecutor")]) == 1


def test_it_learns_a_disc(dataset: Path, tmp_path: Path) -> None:
    request = replace(REQUEST, epochs=2, iterations=20, batch=4, validate_every=2)
    trainer, watcher = start(dataset, tmp_path / "run", request)
    trainer.fit()
    assert watcher.epochs[0].dice is None
    assert watcher.epochs[-1].train_loss < 0.8 * watcher.epochs[0].train_loss
    assert watcher.epochs[-1].dice is not None
    assert watcher.epochs[-1].dice[0] > 0.5


def test_fine_tuning_starts_from_the_checkpoint_s_weights(dataset: Path, finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoint_release.pth"
    trainer, _ = start(dataset, tmp_path / "tuned", replace(REQUEST, checkpoint=checkpoint))
    assert same(dict(trainer.model.state_dict()), weights(checkpoint))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert trainer.settings.checkpoint_sha256 is not None


def test_fine_tuning_to_other_classes_keeps_all_but_the_classifier(finished: Path, tmp_path: Path) -> None:
    cases = {f"case_{index}": generated(index, (3, 36, 36), classes=3) for index in range(2)}
    dataset = write_dataset(tmp_path / "three", cases)
    checkpoint = finished / "checkpoint_final.pth"
    trainer, _ = start(dataset, tmp_path / "tuned", replace(REQUEST, checkpoint=checkpoint, queries=4))
    before, after = weights(checkpoint), trainer.model.state_dict()
    different = {name for name in before if not torch.equal(before[name], after[name])}
    layer = "sam_model.mask_decoder.classifier_embed_Adapter"
    assert different == {f"{layer}.weight", f"{layer}.bias"}


def test_fine_tuning_another_network_names_the_sizes(dataset: Path, finished: Path, tmp_path: Path) -> None:
    request = replace(REQUEST, checkpoint=finished / "checkpoint_final.pth", patch=(3, 32, 32))
    with pytest.raises(CheckpointError, match="frames 2 instead of 3"):
        start(dataset, tmp_path / "tuned", request)
    assert not (tmp_path / "tuned").exists()


def test_frozen_weights_do_not_move(dataset: Path, tmp_path: Path) -> None:
    trainer, _ = start(dataset, tmp_path / "run")
    frozen = dict(trainer.model.named_parameters())["sam_model.image_encoder.patch_embed.proj.weight"]
    frozen.requires_grad_(False)
    before = frozen.clone()
    Trainer(
        trainer.model, trainer.data, trainer.settings, trainer.augmentation, trainer.run, trainer.device, Silent()
    ).fit()
    assert torch.equal(before, frozen)


def test_all_cases_can_be_trained_on(dataset: Path, tmp_path: Path) -> None:
    trainer, _ = start(dataset, tmp_path / "run", replace(REQUEST, fold=None))
    assert len(trainer.data.train) == 4
    assert trainer.data.held_out == []
    trainer.fit()
    assert [epoch.dice for epoch in trainer.epochs] == [None, None]
    assert load_checkpoint(tmp_path / "run" / "checkpoint_final.pth").config.frames == 2


def test_a_run_folder_in_use_is_refused(dataset: Path, finished: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        start(dataset, finished)


def test_resuming_other_cases_names_them(dataset: Path, finished: Path) -> None:
    write_case(dataset, "added", disc(9))
    with pytest.raises(DatasetError, match="added were added or removed"):
        start(dataset, finished, None)


def test_resuming_changed_data_is_refused_and_changes_nothing(dataset: Path, finished: Path) -> None:
    before = (finished / "plans.json").read_bytes()
    write_case(dataset, "case_1", disc(77))
    with pytest.raises(DatasetError, match="other plans"):
        start(dataset, finished, None)
    assert (finished / "plans.json").read_bytes() == before


def test_resuming_nothing_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no checkpoint_latest\.pth"):
        start(dataset, tmp_path / "none", None)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"network": "tiny"}'])
def test_damaged_settings_are_refused(content: str, dataset: Path, finished: Path) -> None:
    (finished / "settings.json").write_text(content)
    with pytest.raises(CheckpointError, match="settings of an interrupted run"):
        start(dataset, finished, None)


def test_a_run_that_ended_before_its_first_epoch_can_be_started_again(dataset: Path, tmp_path: Path) -> None:
    start(dataset, tmp_path / "run")
    start(dataset, tmp_path / "run", replace(REQUEST, batch=1))
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["batch"] == 1


def test_resuming_a_release_is_refused(dataset: Path, finished: Path) -> None:
    (finished / "checkpoint_latest.pth").write_bytes((finished / "checkpoint_release.pth").read_bytes())
    with pytest.raises(CheckpointError, match="no optimizer_state"):
        start(dataset, finished, None)


def test_bad_data_leave_no_run_folder(dataset: Path, tmp_path: Path) -> None:
    (dataset / "labelsTr" / "case_2.nii.gz").unlink()
    with pytest.raises(DatasetError, match="case_2"):
        start(dataset, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_epoch(dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer, _ = prepare_run(dataset, run, REQUEST, Silent(stop_after=1), ignore)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    good = (run / "checkpoint_latest.pth").read_bytes()
    with torch.no_grad():
        trainer.model.sam_model.mask_decoder.classifier_embed_Adapter.bias.fill_(float("nan"))
    with pytest.raises(MaskSamError, match="diverged"):
        trainer.fit()
    assert (run / "checkpoint_latest.pth").read_bytes() == good


def test_cuda_without_a_device_is_refused_not_replaced(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unavailable: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    with pytest.raises(DatasetError, match="no CUDA device"):
        prepare_run(dataset, tmp_path / "run", REQUEST, Silent(), ignore, "cuda")


def test_the_learning_rate_warms_up_and_falls_as_a_polynomial(dataset: Path, tmp_path: Path) -> None:
    settings = start(dataset, tmp_path / "run", replace(REQUEST, epochs=10, iterations=5, warmup=8))[0].settings
    rates = [learning_rate(settings, epoch, step) for epoch in range(10) for step in range(1, 6)]
    assert rates[0] == pytest.approx(2e-3 / 8)
    assert rates[7] == pytest.approx(2e-3 * 0.9**0.9)
    assert rates[-1] == pytest.approx(2e-3 * 0.1**0.9)


def test_a_class_that_no_validation_case_holds_does_not_stop_the_choice_of_the_best() -> None:
    nan = float("nan")
    epochs = [
        Epoch(n, 1e-3, 1.0, {}, 1.0, dice, 0.0, 1.0) for n, dice in enumerate([(0.2, nan), (0.5, nan), (0.1, nan)])
    ]
    assert [epoch.mean_dice for epoch in epochs] == [0.2, 0.5, 0.1]
    assert [is_best(epochs[: n + 1]) for n in range(3)] == [True, True, False]
    assert Epoch(0, 1e-3, 1.0, {}, 1.0, (nan,), 0.0, 1.0).mean_dice is None


def test_curves_can_be_drawn_of_any_label_name(tmp_path: Path) -> None:
    names = ("background", r"a $\foo$", "_hidden", "50 %")
    draw_curves(tmp_path / "curves.png", [Epoch(0, 1e-3, 1.0, {}, 1.0, (0.1, 0.2, 0.3), 0.0, 1.0)], names)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_run_that_validates_nothing_draws_no_empty_panel(tmp_path: Path) -> None:
    plain = Epoch(0, 1e-3, 1.0, {}, None, None, 0.0, 1.0)
    draw_curves(tmp_path / "plain.png", [plain], ["background", "cavity"])
    draw_curves(tmp_path / "both.png", [replace(plain, val_loss=1.0, dice=(0.5,))], ["background", "cavity"])
    with Image.open(tmp_path / "plain.png") as one, Image.open(tmp_path / "both.png") as two:
        assert one.height * 2 == two.height


def test_settings_are_written_as_they_were_used(finished: Path) -> None:
    stored = json.loads((finished / "settings.json").read_text(encoding="utf-8"))
    assert stored["patch"] == [2, 32, 32]
    assert stored["queries"] == 4
    assert stored["seed"] == 5
    assert json.loads((finished / "plans.json").read_text())["configurations"]["3d_fullres"]["patch_size"] == [
        2,
        32,
        32,
    ]
