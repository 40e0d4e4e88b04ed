"""Checkpoints: the official forms load, everything hostile or inconsistent is refused with its name."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import CheckpointError, OutputError
from masksam_export.cli import export_command
from masksam_export.families.masksam.checkpoint import TrainedMaskSAM, load_checkpoint
from masksam_export.families.masksam.family import FAMILY
from masksam_export.families.parts import release
from masksam_export.plans import Plan
from masksam_export.torch_files.state_dict import in_float32

Edit = Callable[[dict[str, Any]], None]
ALIAS = "image_decoder_skips.0.1.convs.0.all_modules.0.weight"
SOME_WEIGHT = "sam_model.image_encoder.blocks.0.norm1.weight"


@pytest.fixture(scope="module")
def official(cardiac_case: Path) -> Path:
    return cardiac_case / "checkpoint_final.pth"


@pytest.fixture
def content(official: Path) -> dict[str, Any]:
    """The official checkpoint as Python objects, to be edited and saved again."""
    return dict(torch.load(official, map_location="cpu", weights_only=False))


def saved(content: Any, folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(content, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 2000
    return message


def test_official_checkpoint_loads_with_everything_inferred(official: Path) -> None:
    trained = load_checkpoint(official)
    assert trained.config.variant == "p256"
    assert trained.config.input_shape == (1, 4, 128, 128)
    assert trained.mirror_axes == (0, 1, 2)
    assert [label.name for label in trained.labels.classes] == ["background", "RV", "MLV", "LVC"]
    assert trained.preprocessing.spacing == (6.35, 2.2, 2.2)
    assert any("4 queries" in note or "5 queries" in note for note in trained.notes)
    assert not trained.model.training


def test_checkpoint_of_a_gpu_box_with_numpy_1_loads_the_same(official: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(official) as source, zipfile.ZipFile(old, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in data
                assert b"numpy.core" in data
            target.writestr(name, data)
    assert weights(load_checkpoint(old)).keys() == weights(load_checkpoint(official)).keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped(content: dict[str, Any], tmp_path: Path, prefix: str) -> None:
    content["network_weights"] = OrderedDict((prefix + k, v) for k, v in content["network_weights"].items())
    assert load_checkpoint(saved(content, tmp_path)).config.variant == "p256"


def test_plain_state_dict_loads_with_plans_and_dataset(
    content: dict[str, Any], cardiac_case: Path, tmp_path: Path
) -> None:
    plans, dataset = cardiac_case / "plans.json", cardiac_case / "dataset.json"
    path = saved(content["network_weights"], tmp_path)
    trained = load_checkpoint(path, plans=plans, dataset=dataset)
    assert trained.mirror_axes == ()
    assert any("--mirror-axes" in note for note in trained.notes)
    assert load_checkpoint(path, plans=plans, dataset=dataset, mirror_axes=(1, 2)).mirror_axes == (1, 2)


def test_plain_state_dict_without_plans_says_what_to_pass(content: dict[str, Any], tmp_path: Path) -> None:
    message = refusal(saved(content["network_weights"], tmp_path))
    assert "--plans" in message
    assert "--dataset" in message


def test_half_precision_weights_become_float32(content: dict[str, Any], tmp_path: Path) -> None:
    content["network_weights"] = {k: v.half() for k, v in content["network_weights"].items()}
    trained = load_checkpoint(saved(content, tmp_path))
    assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}


class RunsCode:
    """What a malicious pickle does: call anything on loading."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_code_in_a_checkpoint_is_named_and_never_run(content: dict[str, Any], tmp_path: Path) -> None:
    marker = tmp_path / "was-here"
    content["logging"] = RunsCode(marker)
    message = refusal(saved(content, tmp_path))
    assert "pathlib" in message
    assert "network_weights" in message  # what to do instead
    assert not marker.exists()


def test_a_bare_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "was-here", tmp_path / "bare.pth"
    path.write_bytes(pickle.dumps(RunsCode(marker), protocol=2))
    refusal(path)
    assert not marker.exists()


@pytest.mark.parametrize("size", [0, 1, 100, 10_000, 1_000_000])
def test_truncated_checkpoints_are_refused(official: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes(official.read_bytes()[:size])
    assert "cut.pth" in refusal(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.binary(max_size=400))
def test_garbage_is_refused(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "garbage.pth"
    path.write_bytes(garbage)
    refusal(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path / "nothing.pth")


def set_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["network_weights"][name] = change(content["network_weights"][name].clone())

    return edit


def set_plan(**values: Any) -> Edit:
    return lambda content: content["init_args"]["plans"]["configurations"]["3d_fullres"].update(values)


def set_dataset(**values: Any) -> Edit:
    return lambda content: content["init_args"]["dataset_json"].update(values)


def ct_without_spread(content: dict[str, Any]) -> None:
    set_plan(normalization_schemes=["CTNormalization"])(content)
    content["init_args"]["plans"]["foreground_intensity_properties_per_channel"]["0"]["std"] = 0.0


def nested(depth: int) -> Any:
    """A tuple in a tuple in a tuple ..."""
    value: Any = ()
    for _ in range(depth):
        value = (value,)
    return value


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["network_weights"].pop(SOME_WEIGHT), ["missing", SOME_WEIGHT]),
        (lambda c: c["network_weights"].pop(ALIAS), ["missing", ALIAS]),
        (lambda c: c["network_weights"].update(extra=torch.zeros(1)), ["unexpected", "extra"]),
        (set_weight(SOME_WEIGHT, lambda t: t[:-1]), ["wrong shape", SOME_WEIGHT, "[31]", "[32]"]),
        (set_weight(SOME_WEIGHT, with_nan), ["NaN", SOME_WEIGHT]),
        (set_weight(SOME_WEIGHT, lambda t: t / 0), ["infinite", SOME_WEIGHT]),
        (set_weight(ALIAS, lambda t: t + 1), ["tied copies that differ", ALIAS]),
        (set_weight(SOME_WEIGHT, lambda t: t.double() * 1e300), ["too large", SOME_WEIGHT]),
        (set_weight(SOME_WEIGHT, lambda t: t.to(torch.complex64)), ["complex64", SOME_WEIGHT]),
        (set_weight(SOME_WEIGHT, lambda t: t.to(torch.bool)), ["bool", SOME_WEIGHT]),
        (lambda c: c["network_weights"].update({3: torch.zeros(1)}), ["3 are no named tensors"]),
        (lambda c: c["network_weights"].update({"a\nb": torch.zeros(1)}), ["a b are no named tensors"]),
        (lambda c: c["network_weights"].update({"x" * 513: torch.zeros(1)}), ["513 characters"]),
        (lambda c: c.update(network_weights=[1]), ["holds a list where its weights should be"]),
        (lambda c: c.update(network_weights=None), ["holds a NoneType where its weights should be"]),
        (set_weight(SOME_WEIGHT, lambda t: t.to(torch.int32)), ["int32", SOME_WEIGHT]),
        (set_weight(SOME_WEIGHT, lambda t: torch.zeros(1).expand(10**12)), ["larger than the data", SOME_WEIGHT]),
        (lambda c: c.update(network_weights={}), ["network_weights"]),
        (lambda c: c.update(network_weights={"a": "text"}), ["no named tensors"]),
        (lambda c: c["init_args"].pop("plans"), ["--plans"]),
        (lambda c: c["init_args"].update(configuration="2d"), ["'2d'", "3d_fullres"]),
        (lambda c: c.update(inference_allowed_mirroring_axes=(0, 7)), ["mirror axes", "7"]),
        (set_plan(patch_size=[8, 128, 128]), ["patch is [8, 128, 128]", "[4, 128, 128]"]),
        (set_plan(spacing=[1.0, -1.0, 1.0]), ["spacing"]),
        (set_plan(spacing="wide"), ["spacing"]),
        (set_plan(normalization_schemes=["Mystery"]), ["normalization_schemes"]),
        (set_plan(normalization_schemes=["CTNormalization"], use_mask_for_norm=[]), ["different lengths"]),
        (set_plan(resampling_fn_data="resample_torch_fornnunet"), ["resample_torch_fornnunet"]),
        (set_plan(preprocessor_name="ResEncPreprocessor"), ["ResEncPreprocessor"]),
        (set_plan(previous_stage="3d_lowres"), ["cascade"]),
        (set_plan(resampling_fn_data_kwargs={"order": 5}), ["order"]),
        (set_plan(resampling_fn_data_kwargs={"separate_z_anisotropy_threshold": 10}), ["anisotropy_threshold"]),
        (set_plan(resampling_fn_data_kwargs={"order": 3, "mode": "wrap"}), ["mode"]),
        (ct_without_spread, ["std", "0"]),
        (lambda c: c.update(inference_allowed_mirroring_axes=(torch.zeros(2),)), ["mirror axes"]),
        (lambda c: c.update(inference_allowed_mirroring_axes=(True,)), ["mirror axes"]),
        (lambda c: c.update(inference_allowed_mirroring_axes=torch.zeros(2, 2)), ["mirror axes"]),
        (lambda c: c.update(inference_allowed_mirroring_axes="x" * 9999), ["mirror axes"]),
        (set_plan(spacing=torch.zeros(2, 2)), ["spacing"]),
        (set_plan(spacing=torch.zeros(3)), ["spacing"]),
        (lambda c: c["init_args"].update(configuration="x" * 9999), ["no usable configuration"]),
        (lambda c: c["network_weights"].update({"image_decoder_stages.4.convs.2999.x": torch.zeros(1)}), ["gaps"]),
        (
            set_weight("sam_model.mask_decoder.mask_tokens.weight", lambda t: t.repeat(5000, 1)),
            ["20000 mask tokens"],
        ),
        (set_plan(inherits_from="3d_fullres"), ["3d_fullres"]),
        (lambda c: c["init_args"]["plans"].update(transpose_forward=[0, 0, 2]), ["transpose_forward", "once"]),
        (lambda c: c["init_args"]["plans"].update(image_reader_writer="NibabelIOWithReorient"), ["Reorient"]),
        (set_dataset(channel_names={"0": "T1", "1": "T2"}), ["2 channels"]),
        (set_dataset(channel_names={}), ["channel_names"]),
        (set_dataset(labels={"background": 0, "heart": 1}), ["2 classes", "4"]),
        (set_dataset(labels={"background": 0, "a": 1, "b": 2, "c": 5}), ["without gaps"]),
        (set_dataset(labels="all"), ["labels"]),
    ],
)
def test_each_inconsistency_is_named(content: dict[str, Any], tmp_path: Path, edit: Edit, expected: list[str]) -> None:
    edit(content)
    message = refusal(saved(content, tmp_path))
    assert all(text in message for text in expected), message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_weights_of_every_width_become_float32(content: dict[str, Any], tmp_path: Path, dtype: torch.dtype) -> None:
    changed = {name: value.to(dtype) for name, value in content["network_weights"].items()}
    found = weights(load_checkpoint(saved(content | {"network_weights": changed}, tmp_path)))
    assert all(torch.equal(found[name], value.float()) for name, value in changed.items())


def test_float8_weights_that_are_not_finite_are_named(content: dict[str, Any], tmp_path: Path) -> None:
    set_weight(SOME_WEIGHT, lambda t: with_nan(t).to(torch.float8_e5m2))(content)
    assert SOME_WEIGHT in refusal(saved(content, tmp_path))


def test_copies_that_are_views_in_another_order_are_no_tied_weights(content: dict[str, Any], tmp_path: Path) -> None:
    """Their memory starts at the same place, and their shapes are the same."""
    weight = content["network_weights"][ALIAS]
    content["network_weights"][ALIAS] = weight.transpose(3, 4)
    assert weight.shape[3] == weight.shape[4] > 1
    assert "tied copies that differ" in refusal(saved(content, tmp_path))


def test_whole_numbers_of_numpy_are_plain_values(content: dict[str, Any], tmp_path: Path) -> None:
    set_plan(patch_size=[np.int64(4), np.int32(128), np.uint8(128)])(content)
    content["logging"]["epochs"] = [np.int64(3), np.bool_(True)]
    assert load_checkpoint(saved(content, tmp_path)).config.input_shape == (1, 4, 128, 128)


def test_however_much_is_wrong_the_message_is_short(content: dict[str, Any], tmp_path: Path) -> None:
    state = content["network_weights"]
    norms = [name for name in state if name.endswith(".bias") and ".norm" in name and "transformer" not in name]
    for name in norms[::2]:
        state[name + "x" * 400] = state.pop(name)
    state.update((name, torch.zeros(1, 2, 3, 4, 5)) for name in norms[1::2])
    message = refusal(saved(content, tmp_path))
    assert all(part in message for part in ("missing: ", "unexpected: ", "wrong shape: ", " more"))
    assert len(message) < 2000


def test_ignore_label_is_no_class(content: dict[str, Any], tmp_path: Path) -> None:
    content["init_args"]["dataset_json"]["labels"]["ignore"] = 4
    assert len(load_checkpoint(saved(content, tmp_path)).labels.classes) == 4


def test_regions_paint_in_their_order(content: dict[str, Any], tmp_path: Path) -> None:
    set_dataset(
        labels={"background": 0, "whole": [1, 2, 3, 4], "core": [2, 3], "a": [3], "b": 4},
        regions_class_order=[1, 2, 3, 4],
    )(content)
    labels = load_checkpoint(saved(content, tmp_path)).labels
    assert labels.decision == "regions"
    assert [(label.name, label.value) for label in labels.classes] == [("whole", 1), ("core", 2), ("a", 3), ("b", 4)]


def test_configuration_inherits_from_its_parent(content: dict[str, Any], tmp_path: Path) -> None:
    configurations = content["init_args"]["plans"]["configurations"]
    configurations["child"] = {"inherits_from": "3d_fullres", "spacing": [7.0, 2.0, 2.0]}
    trained = load_checkpoint(saved(content, tmp_path), configuration="child")
    assert trained.preprocessing.spacing == (7.0, 2.0, 2.0)


def test_plans_file_that_is_no_json_is_refused(content: dict[str, Any], tmp_path: Path, cardiac_case: Path) -> None:
    bad = tmp_path / "plans.json"
    bad.write_text("{")
    path = saved(content["network_weights"], tmp_path)
    assert "plans.json" in refusal(path, plans=bad, dataset=cardiac_case / "dataset.json")
    bad.write_text(json.dumps([1]))
    assert "plans" in refusal(path, plans=bad, dataset=cardiac_case / "dataset.json")


def weights(trained: TrainedMaskSAM) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


def test_resampling_arguments_that_the_plan_leaves_out_get_nnunets_defaults(
    content: dict[str, Any], tmp_path: Path
) -> None:
    set_plan(resampling_fn_data_kwargs={"is_seg": False}, resampling_fn_probabilities_kwargs={"order": 1})(content)
    preprocessing = load_checkpoint(saved(content, tmp_path)).preprocessing
    assert preprocessing.resample_data.order == 3
    assert preprocessing.resample_data.force_separate_z is False
    assert preprocessing.resample_scores.force_separate_z is False


def test_views_of_one_storage_cannot_ask_for_more_memory_than_it() -> None:
    storage = torch.zeros(1000, dtype=torch.float16)
    views = {f"w{i}": storage[i : i + 500] for i in range(500)}
    with pytest.raises(CheckpointError, match="data of their own"):
        in_float32(views)
    same = in_float32({"a": storage, "b": storage})
    assert same["a"] is same["b"]


def test_deeply_nested_plans_are_refused(cardiac_case: Path) -> None:
    plans = json.loads((cardiac_case / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = nested(100_000)
    with pytest.raises(CheckpointError, match="'configurations' has more than 10,000 values"):
        Plan(plans, json.loads((cardiac_case / "dataset.json").read_text()), "3d_fullres")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    weight = content["network_weights"][SOME_WEIGHT]
    content["network_weights"][SOME_WEIGHT] = torch.nested.nested_tensor([weight, weight[:3]])
    assert SOME_WEIGHT in refusal(saved(content, tmp_path))


def test_names_cannot_steer_the_terminal(content: dict[str, Any], tmp_path: Path) -> None:
    set_dataset(labels={"background": 0, "x\x1b[31m[/b]": 1, "b": 2, "c": 3})(content)
    result = CliRunner().invoke(
        export_command(lambda: [FAMILY]), [str(saved(content, tmp_path)), "-o", str(tmp_path / "no" / "x.masksam")]
    )
    assert isinstance(result.exception, OutputError)
    assert "[/b]" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("name", ["a" * 5000, "missing.pth"])
def test_names_that_are_no_file_are_refused(name: str) -> None:
    assert "checkpoint" in refusal(Path(name))


def test_huge_numbers_and_devices_as_plans_are_refused(
    content: dict[str, Any], tmp_path: Path, cardiac_case: Path
) -> None:
    path = saved(content["network_weights"], tmp_path)
    bad = tmp_path / "plans.json"
    bad.write_text('{"transpose_forward": ' + "1" * 5000 + "}")
    assert "plans.json" in refusal(path, plans=bad, dataset=cardiac_case / "dataset.json")
    assert "/dev/zero" in refusal(path, plans="/dev/zero", dataset=cardiac_case / "dataset.json")


def test_released_weights_are_gone_whoever_refers_to_them(official: Path) -> None:
    trained = load_checkpoint(official, owned=True)
    kept = [parameter.detach() for parameter in trained.model.parameters()]
    release(trained.model)
    assert {tensor.untyped_storage().nbytes() for tensor in kept} == {0}
    assert {parameter.device.type for parameter in trained.model.parameters()} == {"meta"}
