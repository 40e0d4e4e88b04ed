from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import DatasetError
from masksam_export.families.masksam.training import planning
from masksam_export.families.masksam.training.dataset import Dataset, read_dataset
from masksam_export.families.masksam.training.planning import (
    Fingerprint,
    Intensities,
    make_plans,
    measure,
    suggest_patch,
    target_grid,
)
from masksam_export.plans import Plan
from tests.training.raw_dataset import Generated, description, generated, write_dataset, write_image

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
ARCHITECTURE = {"network_class_name": "MaskSAM", "arch_kwargs": {"norm_op_kwargs": {"eps": 1e-3}, "sizes": (1, 2)}}
SOME = Intensities(-5.0, 9.0, 1.0, 2.0, 3.0, -4.0, 8.0)


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "INTENSITY_SAMPLES", 100_000)


def fingerprint(*cases: tuple[Triple, Shape], channels: int = 1, relative: float = 1.0) -> Fingerprint:
    """As measured on cases of these spacings and shapes."""
    return Fingerprint(
        names=tuple(f"case {index}" for index in range(len(cases))),
        spacings_zyx=tuple(spacing for spacing, _ in cases),
        shapes_zyx=tuple(shape for _, shape in cases),
        relative_sizes=(relative,) * len(cases),
        intensities=(SOME,) * channels,
        class_voxels=(100, 20),
        class_cases=(len(cases), len(cases)),
    )


def dataset(*channels: str) -> Dataset:
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {"background": 0, "part 1": 1},
        "file_ending": ".nii.gz",
    }
    return Dataset(Path("d"), "Dataset001_Test", content, channels, ("background", "part 1"), ())


def plans(found: Fingerprint, *channels: str, spacing: Triple | None = None) -> dict[str, Any]:
    return make_plans(
        found, dataset(*channels), patch=(4, 64, 64), batch_size=2, spacing=spacing, architecture=ARCHITECTURE
    )


def measured(root: Path, **cases: Generated) -> Fingerprint:
    return measure(read_dataset(write_dataset(root / "d", cases)))


def test_a_fingerprint_counts_what_lies_in_the_nonzero_box(tmp_path: Path) -> None:
    labels = np.zeros((6, 8, 10), np.uint8)
    labels[2:4, 2:4, 2:4] = 1
    labels[0, 0, 0] = 2  # outside the box of what is not zero
    labels[3, 3, 3] = 2
    scan = np.zeros((1, 6, 8, 10), np.float32)
    scan[0, 1:5, 1:5, 1:9] = 7
    inside = Generated(scan, labels, (3.0, 2.0, 1.0))
    found = measured(tmp_path, a=inside, b=generated(1, (6, 8, 10)))
    other = np.bincount(generated(1, (6, 8, 10)).labels.ravel())
    assert found.names == ("a", "b")
    assert found.spacings_zyx == ((3.0, 2.0, 1.0), (1.0, 1.0, 1.0))
    assert found.shapes_zyx == ((4, 4, 8), (6, 8, 10))
    assert found.relative_sizes == (128 / 480, 1.0)
    assert found.class_voxels == (int(other[0]) + 128 - 8, int(other[1]) + 7, int(other[2]) + 1)
    assert found.class_cases == (2, 2, 2)


def test_intensities_are_those_of_the_foreground(tmp_path: Path) -> None:
    case = generated(5, channels=2, classes=2)
    found = measured(tmp_path, a=case, b=case)
    for channel, intensities in zip(case.scan, found.intensities, strict=True):
        values = channel[case.labels > 0].astype(np.float64)
        # 100,000 draws: the mean of a sample is off by std / 316, others by a few times that.
        near = {"rtol": 0, "atol": 0.05 * values.std()}
        np.testing.assert_allclose(intensities.mean, values.mean(), **near)
        np.testing.assert_allclose(intensities.std, values.std(), **near)
        np.testing.assert_allclose(intensities.median, np.median(values), **near)
        # A draw's tails fall on one or the other of the few outermost values.
        assert np.percentile(values, 0) <= intensities.percentile_00_5 <= np.percentile(values, 1)
        assert np.percentile(values, 99) <= intensities.percentile_99_5 <= np.percentile(values, 100)
        assert (intensities.min, intensities.max) == (values.min(), values.max())


def test_each_case_counts_the_same_however_large_its_structures(tmp_path: Path) -> None:
    small, large = np.zeros((4, 8, 8), np.uint8), np.ones((4, 8, 8), np.uint8)
    small[0, 0, 0] = 1
    found = measured(
        tmp_path,
        a=Generated(np.full((1, 4, 8, 8), 100, np.float32), small),
        b=Generated(np.full((1, 4, 8, 8), 300, np.float32), large),
    )
    assert found.intensities[0].mean == 200


def test_a_case_without_foreground_is_only_left_out_of_the_intensities(tmp_path: Path) -> None:
    empty = Generated(np.full((1, 4, 8, 8), 900, np.float32), np.zeros((4, 8, 8), np.uint8))
    found = measured(tmp_path, a=generated(0), b=empty)
    assert found.class_cases == (2, 1, 1)
    assert found.intensities[0].max < 900


def test_measuring_again_gives_the_same_to_the_bit(tmp_path: Path) -> None:
    read = read_dataset(write_dataset(tmp_path / "d", {"a": generated(0), "b": generated(1)}))
    assert measure(read) == measure(read)


def test_progress_is_told_after_every_case(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = write_dataset(tmp_path / "d", {"a": generated(0), "b": generated(1)})
    measure(read_dataset(root), lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_all_bad_cases_are_reported_together(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", {f"case_{index:02d}": generated(index) for index in range(15)})
    for index in range(12):
        write_image(root / f"labelsTr/case_{index:02d}.nii.gz", np.full((6, 8, 10), 7, np.uint8))
    (root / "imagesTr/case_03_0000.nii.gz").write_bytes(b"no scan")
    calls: list[int] = []
    with pytest.raises(DatasetError) as error:
        measure(read_dataset(root), lambda done, total: calls.append(done))
    message = str(error.value)
    assert message.startswith("12 of 15 cases cannot be trained on")
    assert message.endswith("| and 2 more")
    assert message.count("found label values 7") == 9
    assert "case_03_0000.nii.gz" in message
    assert message.isprintable()
    assert calls == list(range(1, 16))


def test_a_class_that_no_case_holds_is_refused(tmp_path: Path) -> None:
    cases = {"a": generated(0, classes=2), "b": generated(1, classes=2)}
    root = write_dataset(tmp_path / "d", cases, description(classes=4))
    with pytest.raises(DatasetError, match="no voxel of label 2 part 2, 3 part 3 in any case"):
        measure(read_dataset(root))


def test_the_grid_is_the_median_with_the_coarsest_axis_first() -> None:
    found = fingerprint(
        ((1.0, 2.0, 1.0), (30, 20, 40)), ((1.5, 3.0, 1.0), (20, 20, 30)), ((2.0, 2.5, 1.0), (30, 10, 21))
    )
    grid = target_grid(found)
    assert grid.transpose_forward == (1, 0, 2)
    assert grid.spacing == (2.5, 1.5, 1.0)
    # y: 16, 24, 10; z: 20, 20, 40; x: 40, 30, 21.
    assert grid.median_size == (16.0, 20.0, 30.0)


def test_of_equal_spacings_the_first_axis_leads() -> None:
    assert target_grid(fingerprint(((1.0, 1.0, 1.0), (9, 9, 9)))).transpose_forward == (0, 1, 2)


def test_sizes_round_half_to_even_as_the_preprocessing_does() -> None:
    found = fingerprint(((1.0, 1.0, 1.0), (45, 35, 65)))
    assert target_grid(found, (2.0, 2.0, 2.0)).median_size == (22.0, 18.0, 32.0)


@pytest.mark.parametrize(
    ("spacings", "shape", "expected"),
    [
        # Coarse and short: the 10th percentile of 5, 6, 7, 8, 10, 10, 10.
        ([5, 6, 7, 8, 10, 10, 10], (10, 200, 200), 5.6),
        # Just 3 times as coarse is not more than 3 times.
        ([3, 4.5, 4.5, 4.5, 4.5], (10, 200, 200), 4.5),
        # 3 x 67 voxels are not below 200.
        ([5, 6, 7, 8, 10, 10, 10], (67, 200, 200), 8.0),
        # Never finer than the plane.
        ([1, 1, 1, 10, 10, 10, 10], (10, 200, 200), 1.5 + 1e-5),
    ],
)
def test_a_coarse_and_short_axis_is_sampled_more_finely(spacings: list[float], shape: Shape, expected: float) -> None:
    grid = target_grid(fingerprint(*(((float(z), 1.5, 1.2), shape) for z in spacings)))
    np.testing.assert_allclose(grid.spacing, (expected, 1.5, 1.2), rtol=1e-12)


def test_a_chosen_spacing_is_in_transposed_order() -> None:
    grid = target_grid(fingerprint(((1.0, 1.0, 4.0), (40, 40, 10))), (2.0, 1.0, 0.5))
    assert grid.transpose_forward == (2, 0, 1)
    assert grid.spacing == (2.0, 1.0, 0.5)
    assert grid.median_size == (20.0, 40.0, 80.0)


@pytest.mark.parametrize("edge", [0.0, -1.0, float("nan"), float("inf"), 1e4])
def test_an_impossible_spacing_is_refused(edge: float) -> None:
    with pytest.raises(DatasetError, match="target spacing"):
        target_grid(fingerprint(((1.0, 1.0, 1.0), (9, 9, 9))), (1.0, edge, 1.0))


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("CT", "CTNormalization"),
        ("ct", "CTNormalization"),
        ("noNorm", "NoNormalization"),
        ("rescale_to_0_1", "RescaleTo01Normalization"),
        ("rgb_to_0_1", "RGBTo01Normalization"),
        ("zscore", "ZScoreNormalization"),
        ("MRI", "ZScoreNormalization"),
        ("CT contrast", "ZScoreNormalization"),
    ],
)
def test_a_channels_name_chooses_its_normalisation(name: str, scheme: str) -> None:
    found = plans(fingerprint(((1.0, 1.0, 1.0), (9, 9, 9))), name)
    assert found["configurations"]["3d_fullres"]["normalization_schemes"] == [scheme]


def test_only_z_scores_are_masked_and_only_where_much_was_cropped() -> None:
    for relative, masked in ((0.74, True), (0.75, False)):
        found = fingerprint(((1.0, 1.0, 1.0), (9, 9, 9)), channels=3, relative=relative)
        chosen = plans(found, "T1", "CT", "nonorm")["configurations"]["3d_fullres"]
        assert chosen["use_mask_for_norm"] == [masked, False, False]


def test_plans_are_what_the_exporter_reads() -> None:
    found = fingerprint(((1.0, 1.0, 4.0), (40, 41, 10)), channels=2, relative=0.5)
    plan = Plan(plans(found, "CT", "T1"), dataset("CT", "T1").json, "3d_fullres")
    spec = plan.preprocessing()
    assert plan.patch_size == (4, 64, 64)
    assert plan.norm_eps == 1e-3
    assert spec.channel_names == ("CT", "T1")
    assert spec.transpose_forward == (2, 0, 1)
    assert spec.spacing == (4.0, 1.0, 1.0)
    assert [entry.model_dump(exclude_none=True) for entry in spec.normalization] == [
        {"scheme": "CTNormalization", "use_mask": False, "lower": -4.0, "upper": 8.0, "mean": 1.0, "std": 3.0},
        {"scheme": "ZScoreNormalization", "use_mask": True},
    ]
    assert (spec.resample_data.order, spec.resample_scores.order) == (3, 1)
    assert spec.resample_data.force_separate_z is spec.resample_scores.force_separate_z is None
    assert [label.name for label in plan.labels().classes] == ["background", "part 1"]


def test_plans_have_the_keys_of_an_official_run(cardiac_case: Path) -> None:
    official = json.loads((cardiac_case / "plans.json").read_text())
    found = plans(fingerprint(((8.0, 1.3, 1.2), (10, 200, 210))), "cineMRI")
    for content in (found, official):
        content["configurations"]["3d_fullres"].pop("architecture")
    assert shape_of(found) == shape_of(official)


def shape_of(content: Any) -> Any:
    """Keys, in order, and kinds of values; what is shared with an official run of one channel."""
    if isinstance(content, dict):
        return {key: shape_of(value) for key, value in content.items()}
    if isinstance(content, list):
        return [shape_of(value) for value in content]
    return type(content)


def test_plans_say_what_the_dataset_looked_like() -> None:
    found = fingerprint(((1.0, 1.0, 4.0), (40, 42, 10)), ((2.0, 1.0, 4.0), (41, 44, 13)))
    content = plans(found, "MRI", spacing=(2.0, 1.0, 1.0))
    assert content["dataset_name"] == "Dataset001_Test"
    assert content["plans_name"] == "nnUNetPlans_4_64_64_b2"
    assert content["transpose_forward"] == [2, 0, 1]
    assert content["transpose_backward"] == [1, 2, 0]
    assert content["original_median_spacing_after_transp"] == [4.0, 1.5, 1.0]
    assert content["original_median_shape_after_transp"] == [12, 40, 43]
    chosen = content["configurations"]["3d_fullres"]
    assert chosen["spacing"] == [2.0, 1.0, 1.0]
    assert chosen["median_image_size_in_voxels"] == [23.0, 61.0, 43.0]
    assert chosen["architecture"]["arch_kwargs"]["sizes"] == [1, 2]


def test_the_configuration_can_have_another_name() -> None:
    found = fingerprint(((1.0, 1.0, 1.0), (9, 9, 9)))
    content = make_plans(
        found,
        dataset("MRI"),
        patch=(1, 2, 3),
        batch_size=1,
        spacing=None,
        architecture={},
        configuration="3d_small",
    )
    assert content["configurations"]["3d_small"]["data_identifier"] == "nnUNetPlans_3d_small"


_EDGE = st.floats(0.1, 20)
_CASE = st.tuples(st.tuples(_EDGE, _EDGE, _EDGE), st.tuples(*(st.integers(2, 600) for _ in range(3))))


@settings(deadline=None, max_examples=150)
@given(cases=st.lists(_CASE, min_size=2, max_size=7), relative=st.floats(0.01, 1))
def test_any_dataset_gives_plain_plans_that_the_exporter_accepts(cases: list[Any], relative: float) -> None:
    found = fingerprint(*cases, relative=relative)
    content = plans(found, "CT")
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    spec = Plan(content, dataset("CT").json, "3d_fullres").preprocessing()
    forward = content["transpose_forward"]
    assert [forward[axis] for axis in content["transpose_backward"]] == [0, 1, 2]
    assert spec.spacing[0] >= max(spec.spacing)
    lowest, highest = np.min(found.spacings_zyx, axis=0)[forward], np.max(found.spacings_zyx, axis=0)[forward]
    # Interpolated percentiles may leave the range by a rounding; the guard of the coarse axis adds 1e-5 mm.
    assert np.all(lowest - 1e-9 <= spec.spacing) and np.all(spec.spacing <= highest + 1e-5 + 1e-9)


def test_plans_do_not_share_the_architecture() -> None:
    inner: dict[str, Any] = {"eps": 1e-5}
    content = make_plans(
        replace(fingerprint(((1.0, 1.0, 1.0), (9, 9, 9)))),
        dataset("MRI"),
        patch=(1, 2, 3),
        batch_size=1,
        spacing=None,
        architecture={"arch_kwargs": inner},
    )
    inner["eps"] = 1.0
    assert content["configurations"]["3d_fullres"]["architecture"] == {"arch_kwargs": {"eps": 1e-5}}


@pytest.mark.parametrize(
    ("median", "frames", "expected"),
    [
        ((9.0, 219.0, 220.0), None, (8, 224, 224)),
        ((5.5, 60.0, 100.5), None, (5, 112, 112)),
        ((0.0, 0.0, 0.0), None, (1, 16, 16)),
        ((36.0, 50.0, 35.0), 3, (3, 64, 64)),
        ((36.0, 50.0, 35.0), 50, (50, 64, 64)),
        ((36.0, 64.0, 64.0), None, (8, 64, 64)),
        ((36.0, 64.5, 64.0), None, (8, 80, 80)),
        ((36.0, 900.0, 64.0), None, (8, 256, 256)),
    ],
)
def test_a_patch_covers_the_median_case_as_far_as_allowed(median: Triple, frames: int | None, expected: Shape) -> None:
    assert suggest_patch(median, frames=frames, multiple=16, largest=260) == expected


@pytest.mark.parametrize(("frames", "multiple", "largest"), [(0, 16, 64), (None, 0, 64), (None, 16, 15)])
def test_a_patch_that_cannot_be_is_a_programming_error(frames: int | None, multiple: int, largest: int) -> None:
    with pytest.raises(ValueError, match="expected positive"):
        suggest_patch((9.0, 9.0, 9.0), frames=frames, multiple=multiple, largest=largest)
