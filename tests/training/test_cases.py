from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.nnunet import Preprocessing, recipe_of
from masksam_deploy.io import read_volume
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.prepare import prepare
from masksam_export.families.masksam.training.cases import network_labels, prepare_case, split_cases
from masksam_export.families.masksam.training.dataset import read_dataset
from tests.training.raw_dataset import Generated, generated, write_dataset

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def spec(spacing: Triple, transpose: Shape = (0, 1, 2), channels: int = 1) -> Preprocessing:
    return Preprocessing.model_validate(
        {
            "channel_names": [f"channel {index}" for index in range(channels)],
            "transpose_forward": transpose,
            "spacing": spacing,
            "normalization": [{"scheme": "ZScoreNormalization"}] * channels,
            "resample_data": {"order": 3, "order_z": 0},
            "resample_scores": {"order": 1, "order_z": 0},
        }
    )


def label_map(array: NDArray[Any], spacing_zyx: Triple = (1.0, 1.0, 1.0)) -> Volume:
    z, y, x = array.shape
    return Volume(array, Geometry((x, y, z), spacing_zyx[::-1], (0.0, 0.0, 0.0), IDENTITY))


def frame(
    labels: Volume,
    network_shape: Shape,
    *,
    network_spacing: Triple = (1.0, 1.0, 1.0),
    transpose: Shape = (0, 1, 2),
    box: Any = None,
) -> ScanFrame:
    shape = [labels.array.shape[axis] for axis in transpose]
    spacing = labels.geometry.spacing_zyx
    return ScanFrame(
        geometry=labels.geometry,
        transpose=transpose,
        box=box or tuple((0, size) for size in shape),
        scan_spacing=(spacing[transpose[0]], spacing[transpose[1]], spacing[transpose[2]]),
        network_spacing=network_spacing,
        network_shape=network_shape,
    )


def one_hot(labels: NDArray[Any], shape: Shape, separate: int | None) -> dict[int, NDArray[np.float64]]:
    """The documented rule with scikit-image and SciPy: each label's 0/1 map, resized; nearest along `separate`."""
    kwargs = {"order": 1, "mode": "edge", "anti_aliasing": False, "clip": True}
    maps = {}
    for value in np.unique(labels):
        mask = (labels == value).astype(np.float64)
        if separate is None:
            maps[int(value)] = np.asarray(resize(mask, shape, **kwargs))
            continue
        plane = tuple(size for axis, size in enumerate(shape) if axis != separate)
        resized = np.stack([resize(one, plane, **kwargs) for one in np.moveaxis(mask, separate, 0)], axis=separate)
        grid = [(np.arange(new) + 0.5) * (old / new) - 0.5 for new, old in zip(shape, resized.shape, strict=True)]
        coordinates = np.meshgrid(*grid, indexing="ij")
        maps[int(value)] = ndimage.map_coordinates(resized, coordinates, order=0, mode="nearest")
    return maps


def separate_like_nnunet(current: Triple, new: Triple) -> int | None:
    for spacing in (current, new):
        if max(spacing) / min(spacing) > 3:
            largest = [axis for axis in range(3) if spacing[axis] == max(spacing)]
            return largest[0] if len(largest) == 1 else None
    return None


def assert_like_nnunet(found: NDArray[Any], labels: NDArray[Any], separate: int | None) -> None:
    shape = (found.shape[0], found.shape[1], found.shape[2])
    maps = one_hot(labels, shape, separate)
    expected, tied = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for value in sorted(maps):
        expected[maps[value] >= 0.5] = value
        # The order in which eight products are summed decides a tie, there as here.
        tied |= np.abs(maps[value] - 0.5) < 1e-12
    np.testing.assert_array_equal(found[~tied], expected[~tied])


_SIDE = st.integers(1, 9)
_EDGE = st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0, 7.0])
_TRIPLE = st.tuples(_EDGE, _EDGE, _EDGE)


@settings(deadline=None, max_examples=200)
@given(
    shape=st.tuples(_SIDE, _SIDE, _SIDE),
    new=st.tuples(_SIDE, _SIDE, _SIDE),
    current=_TRIPLE,
    target=_TRIPLE,
    seed=st.integers(0, 99),
)
def test_labels_are_resampled_as_nnunet_resamples_segmentations(
    shape: Shape, new: Shape, current: Triple, target: Triple, seed: int
) -> None:
    labels = label_map(np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8), current)
    found = network_labels(labels, frame(labels, new, network_spacing=target), 4)
    assert found.dtype == np.int8
    assert found.shape == new
    if shape == new:
        np.testing.assert_array_equal(found, labels.array)
    else:
        assert_like_nnunet(found, np.asarray(labels.array), separate_like_nnunet(current, target))


def test_of_two_labels_with_half_a_voxel_each_the_higher_wins() -> None:
    labels = label_map(np.array([[[2, 1]]] * 2, np.uint8))
    np.testing.assert_array_equal(network_labels(labels, frame(labels, (2, 1, 1)), 3), [[[2]], [[2]]])


def test_where_no_label_has_half_a_voxel_it_is_background() -> None:
    labels = label_map(np.array([[[1, 2, 3]]], np.uint8))
    # Sampled between all three (3 voxels to 1 meet the middle one, so put them around a corner instead).
    corner = label_map(np.array([[[1, 2], [3, 4]]], np.uint8))
    assert network_labels(labels, frame(labels, (1, 1, 1)), 5).item() == 2
    assert network_labels(corner, frame(corner, (1, 1, 1)), 5).item() == 0


def test_slabs_do_not_show() -> None:
    labels = label_map(np.random.default_rng(0).integers(0, 3, (40, 30, 20)).astype(np.uint8))
    found = network_labels(labels, frame(labels, (53, 31, 27)), 3)
    assert_like_nnunet(found, np.asarray(labels.array), None)


@pytest.mark.parametrize(("classes", "dtype"), [(128, np.int8), (129, np.int16), (300, np.int16)])
def test_many_classes_need_int16(classes: int, dtype: type[np.signedinteger[Any]]) -> None:
    values = np.arange(classes).reshape(1, 1, classes)
    labels = label_map(values.astype(np.uint16))
    same = network_labels(labels, frame(labels, (1, 1, classes)), classes)
    assert same.dtype == dtype
    np.testing.assert_array_equal(same, values)
    deeper = network_labels(labels, frame(labels, (2, 1, classes)), classes)
    assert deeper.dtype == dtype
    np.testing.assert_array_equal(deeper, np.repeat(values, 2, axis=0))


def test_labels_are_transposed_before_the_box_is_cut() -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.uint8)
    labels = label_map(array)
    cut = frame(labels, (2, 1, 2), transpose=(2, 0, 1), box=((1, 3), (0, 1), (1, 3)))
    np.testing.assert_array_equal(network_labels(labels, cut, 24), array.transpose(2, 0, 1)[1:3, 0:1, 1:3])


def ball(shape: Shape, centre: Triple, radius: float) -> NDArray[np.uint8]:
    grid = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    distances = np.linalg.norm([axis - middle for axis, middle in zip(grid, centre, strict=True)], axis=0)
    return np.asarray(distances <= radius, np.uint8)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 0.8, 1.3), (5.0, 0.9, 1.1)])
def test_labels_stay_on_the_structure_they_mark(tmp_path: Path, transpose: Shape, spacing: Triple) -> None:
    # An image that is bright exactly where the label is shows any shift, swap or missed crop.
    labels = ball((20, 24, 22), (11.0, 9.0, 12.0), 7.0)
    scan = np.zeros((1, 20, 24, 22), np.float32)
    scan[0, 3:, 2:20, 4:21] = 10
    scan[0] += np.float32(500) * labels
    case = Generated(scan, labels, (1.1, 0.9, 1.0))
    dataset = read_dataset(write_dataset(tmp_path / "d", {"a": case, "b": case}))
    prepared = prepare_case(dataset.cases[0], dataset, spec(spacing, transpose), keep_reference=False)
    assert prepared.image.shape == (1, *prepared.frame.network_shape)
    assert prepared.labels.shape == prepared.frame.network_shape
    bright = prepared.image[0] > 0.5 * (prepared.image.min() + prepared.image.max())
    overlap = 2 * np.sum(bright & (prepared.labels == 1)) / (bright.sum() + (prepared.labels == 1).sum())
    # The spline and the linear map of the same ball cross one half within a fraction of a voxel.
    assert overlap > 0.97


def test_the_image_is_what_inference_would_see_to_the_bit(tmp_path: Path) -> None:
    case = generated(0, channels=2, spacing=(2.0, 1.0, 1.0))
    dataset = read_dataset(write_dataset(tmp_path / "d", {"a": case, "b": case}))
    chosen = spec((1.5, 0.7, 1.1), (1, 0, 2), channels=2)
    prepared = prepare_case(dataset.cases[0], dataset, chosen, keep_reference=True)
    expected = prepare(read_volume(list(dataset.cases[0].images)), recipe_of(chosen))
    assert prepared.name == "a"
    assert prepared.frame == expected.frame
    assert prepared.image.dtype == np.float32
    np.testing.assert_array_equal(prepared.image, expected.data)


def test_scan_and_reference_are_kept_only_on_demand(tmp_path: Path) -> None:
    case = generated(0)
    dataset = read_dataset(write_dataset(tmp_path / "d", {"a": case, "b": case}))
    without = prepare_case(dataset.cases[0], dataset, spec((1.0, 1.0, 1.0)), keep_reference=False)
    assert without.reference is None
    kept = prepare_case(dataset.cases[0], dataset, spec((1.0, 1.0, 1.0)), keep_reference=True)
    assert kept.reference is not None
    np.testing.assert_array_equal(np.asarray(kept.reference.array), case.labels)


def test_a_case_that_cannot_be_prepared_is_named(tmp_path: Path) -> None:
    case = generated(0)
    dataset = read_dataset(write_dataset(tmp_path / "d", {"a": case, "b": case}))
    with pytest.raises(DatasetError, match=r"case 'b': the scan covers 6 mm along an axis"):
        prepare_case(dataset.cases[1], dataset, spec((50.0, 1.0, 1.0)), keep_reference=False)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # sklearn.model_selection.KFold(5, shuffle=True, random_state=12345), scikit-learn 1.x.
        (12, [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]),
        (
            25,
            [[8, 13, 16, 19, 21], [3, 10, 12, 15, 17], [0, 6, 7, 11, 18], [14, 20, 22, 23, 24], [1, 2, 4, 5, 9]],
        ),
    ],
)
def test_folds_are_those_of_nnunet(count: int, expected: list[list[int]]) -> None:
    names = [f"case_{index:02d}" for index in range(count)]
    for fold, held in enumerate(expected):
        assert split_cases(names[::-1], fold=fold)[1] == [names[index] for index in held]


@given(names=st.sets(st.text(max_size=5), min_size=2, max_size=40), folds=st.integers(2, 9), seed=st.integers(0, 9))
def test_every_case_is_validated_on_in_one_fold(names: set[str], folds: int, seed: int) -> None:
    held: list[str] = []
    for fold in range(min(folds, len(names))):
        train, validate = split_cases(list(names), fold=fold, folds=folds, seed=seed)
        assert train == sorted(train)
        assert sorted(train + validate) == sorted(names)
        assert len(validate) in (len(names) // min(folds, len(names)), len(names) // min(folds, len(names)) + 1)
        held += validate
    assert sorted(held) == sorted(names)


def test_with_few_cases_each_is_a_fold() -> None:
    assert split_cases(["c", "a", "b"], fold=0) == (["b", "c"], ["a"])
    with pytest.raises(DatasetError, match=r"found fold 3, expected 0 to 2 \(3 cases in 3 folds\)"):
        split_cases(["c", "a", "b"], fold=3)


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "a"]])
def test_a_split_needs_cases_with_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(DatasetError, match="expected at least 2"):
        split_cases(names, fold=0)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_is_not_there_is_refused(fold: int) -> None:
    with pytest.raises(DatasetError, match="expected 0 to 4"):
        split_cases([str(index) for index in range(10)], fold=fold)
