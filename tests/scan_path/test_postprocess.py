from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.volume import Geometry
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.recipe import Resampling, Scores
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.resample import separate_axis

GOLDEN = Path(__file__).parents[1] / "data" / "scan_path" / "a_hippocampus"
LINEAR = Scores(resampling=Resampling(order=1, order_z=0))
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
ScoreArray = NDArray[Any]
AXES = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def make_frame(
    cropped: Shape,
    network: Shape,
    *,
    transpose: Shape = (0, 1, 2),
    margin: int = 0,
    network_spacing: Spacing = (1.0, 1.0, 1.0),
    scan_spacing: Spacing = (1.0, 1.0, 1.0),
) -> ScanFrame:
    """A frame whose box leaves `margin` empty voxels before it along each transposed axis."""
    sizes, spacings = [0, 0, 0], [0.0, 0.0, 0.0]
    for new, old in enumerate(transpose):
        sizes[old], spacings[old] = cropped[new] + margin, scan_spacing[new]
    geometry = Geometry((sizes[2], sizes[1], sizes[0]), (spacings[2], spacings[1], spacings[0]), (0.0, 0.0, 0.0), AXES)
    z, y, x = ((margin, margin + size) for size in cropped)
    return ScanFrame(geometry, transpose, (z, y, x), scan_spacing, network_spacing, network)


def make_labels(*values: int, decision: str = "argmax") -> Labels:
    classes = [Label(name=f"class {index}", value=value) for index, value in enumerate(values)]
    return Labels.model_validate({"decision": decision, "classes": classes})


def in_pieces(scores: ScoreArray, size: int = 2) -> Iterator[tuple[int, ScoreArray]]:
    for start in range(0, scores.shape[1], size):
        yield start, scores[:, start : start + size]


def random_scores(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> ScoreArray:
    return np.random.default_rng(seed).random(shape).astype(dtype)


def resampled_like_nnunet(scores: ScoreArray, frame: ScanFrame, spec: Resampling) -> ScoreArray:
    """Whole volumes through scikit-image and SciPy, as documented; result in the dtype of `scores`."""
    shape = frame.cropped_shape
    if scores.shape[1:] == shape:
        return scores
    separate = separate_axis(frame.network_spacing, frame.scan_spacing, spec.force_separate_z)
    kwargs = {"order": spec.order, "mode": "edge", "anti_aliasing": False, "clip": True}
    out = np.empty((len(scores), *shape), scores.dtype)
    for index, volume in enumerate(scores.astype(np.float64)):
        if separate is None:
            out[index] = resize(volume, shape, **kwargs)
            continue
        slices = np.moveaxis(volume, separate, 0)
        in_plane = tuple(size for axis, size in enumerate(shape) if axis != separate)
        resized = np.stack([resize(one, in_plane, **kwargs) for one in slices])
        old, new = len(slices), shape[separate]
        grid = np.meshgrid((np.arange(new) + 0.5) * (old / new) - 0.5, *(np.arange(n) for n in in_plane), indexing="ij")
        along = ndimage.map_coordinates(resized, grid, order=spec.order_z, mode="nearest")
        out[index] = np.moveaxis(along, 0, separate)
    return out


def test_nnunets_scores_become_nnunets_label_map() -> None:
    plan = json.loads((GOLDEN / "plans.json").read_text())["configurations"]["3d_fullres"]
    image = SimpleITK.ReadImage(GOLDEN / "labels.nii.gz")
    expected = SimpleITK.GetArrayFromImage(image)
    scores = np.load(GOLDEN / "logits.npz")["logits"]
    margin = np.load(GOLDEN / "margins.npz")["margin"]
    frame = make_frame(expected.shape, scores.shape[1:], network_spacing=tuple(plan["spacing"]))
    labels = labels_from_scores(in_pieces(scores, 5), frame, LINEAR, make_labels(0, 1, 2, 3))
    assert labels.dtype == np.uint8
    different = labels != expected
    # Measured: no voxel. Another CPU's summation order may turn a few exact ties, never a clear decision.
    assert not different[margin > 0.01].any()
    assert different.sum() <= 5


@settings(deadline=None, max_examples=60)
@given(
    cropped=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    network=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    transpose=st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)]),
    separate=st.sampled_from([None, 0, 1, 2]),
    orders=st.sampled_from([(1, 0), (1, 0), (1, 1), (3, 0), (1, 3)]),
    dtype=st.sampled_from([np.float16, np.float32]),
    piece=st.integers(1, 5),
    margin=st.integers(0, 2),
    threads=st.integers(1, 3),
)
def test_streamed_labels_equal_those_of_whole_volumes(
    cropped: Shape,
    network: Shape,
    transpose: Shape,
    separate: int | None,
    orders: tuple[int, int],
    dtype: Any,
    piece: int,
    margin: int,
    threads: int,
) -> None:
    spec = Resampling.model_validate({"order": orders[0], "order_z": orders[1]})
    spacing = [1.0, 1.0, 1.0]
    if separate is not None:
        spacing[separate] = 4.0
    frame = make_frame(
        cropped,
        network,
        transpose=transpose,
        margin=margin,
        network_spacing=(spacing[0], spacing[1], spacing[2]),
    )
    scores = random_scores((4, *network), dtype)
    labels = labels_from_scores(
        in_pieces(scores, piece), frame, Scores(resampling=spec), make_labels(0, 5, 2, 9), threads=threads
    )

    whole = resampled_like_nnunet(scores, frame, spec)
    expected = np.zeros_like(labels)
    box = expected.transpose(transpose)[frame.slices]
    box[...] = np.array([0, 5, 2, 9])[whole.argmax(axis=0)]
    ranked = np.sort(whole.astype(np.float64), axis=0)
    clear = np.ones(labels.shape, bool)
    # One float16 step below 1; float32 work is far closer than that.
    clear.transpose(transpose)[frame.slices] = ranked[-1] - ranked[-2] > 5e-4
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[clear], expected[clear])
    # Ties are decided like nnU-Net's too, unless a sum was rounded in another order.
    assert (labels != expected).mean() <= 0.02


def test_every_voxel_returns_to_its_place_in_the_scan() -> None:
    shape, transpose = (2, 3, 4), (2, 0, 1)
    frame = make_frame(shape, shape, transpose=transpose, margin=1)
    scores = np.eye(24, dtype=np.float32).reshape(24, *shape)
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(*range(1, 25)))
    assert labels.shape == frame.geometry.shape_zyx == (4, 5, 3)
    np.testing.assert_array_equal(labels.transpose(transpose)[1:, 1:, 1:].ravel(), np.arange(1, 25))
    assert np.count_nonzero(labels) == 24


def test_linear_interpolation_moves_a_border_to_the_middle_of_two_voxels() -> None:
    # ScoreArray 0 and 1 against a constant 0.6: on the half-pixel grid 4x finer they are 0, 0, .125, .375, .625,
    # .875, 1, 1, so three voxels win. A grid aligned at the corners (0, 1/7, 2/7 ..) would give other scores.
    scores = np.array([[0.6, 0.6], [0.0, 1.0]], np.float16).reshape(2, 1, 1, 2)
    frame = make_frame((1, 1, 8), (1, 1, 2))
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(0, 1))
    np.testing.assert_array_equal(labels.ravel(), [0, 0, 0, 0, 1, 1, 1, 1])
    scores[0] = 0.8
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(0, 1))
    np.testing.assert_array_equal(labels.ravel(), [0, 0, 0, 0, 0, 1, 1, 1])


def test_float16_scores_are_rounded_once_from_double() -> None:
    # At output (1, 1) class 1 is 9/16 of 1028/1024, halfway between two float16 numbers, plus 2.6e-8 from its
    # neighbours, which float32 would lose: the tie would go down to class 0's score.
    scores = np.full((2, 1, 2, 2), 1156 * 2.0**-11, np.float16)
    scores[1] = 2.0**-24
    scores[1, 0, 0, 0] = 1028 / 1024
    labels = labels_from_scores(in_pieces(scores), make_frame((1, 4, 4), (1, 2, 2)), LINEAR, make_labels(0, 1))
    assert labels[0, 1, 1] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_lowest_class_wins_a_tie(dtype: Any) -> None:
    scores = np.array([0.1, 0.7, 0.7, 0.2], dtype).reshape(4, 1, 1, 1)
    frame = make_frame((1, 1, 1), (1, 1, 1))
    assert labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(0, 1, 2, 3)).item() == 1


def test_float16_scores_are_decided_by_a_float32_softmax_that_merges_tiny_leads() -> None:
    # Multiples of 6e-8, the float16 step near zero; quotients near 1/3 are only known to 9e-8.
    steps = np.random.default_rng(3).integers(0, 20, (3, 1, 1, 5000)).astype(np.uint16)
    scores = steps.view(np.float16)
    frame = make_frame((1, 1, 5000), (1, 1, 5000))
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(0, 1, 2)).ravel()
    wide = scores.reshape(3, -1).astype(np.float32)
    shares = np.exp(wide - wide.max(axis=0))
    shares /= shares.sum(axis=0)
    np.testing.assert_array_equal(labels, shares.argmax(axis=0))
    assert (labels != wide.argmax(axis=0)).any()
    plain = labels_from_scores(in_pieces(scores.astype(np.float32)), frame, LINEAR, make_labels(0, 1, 2))
    np.testing.assert_array_equal(plain.ravel(), wide.argmax(axis=0))


@pytest.mark.parametrize(("values", "dtype"), [((0, 255), np.uint8), ((0, 256), np.uint16)])
def test_class_indices_become_label_values(values: tuple[int, int], dtype: Any) -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32).reshape(2, 1, 1, 2)
    frame = make_frame((1, 1, 2), (1, 1, 2))
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(*values))
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels.ravel(), values)


def test_regions_paint_over_each_other_in_order() -> None:
    scores = np.array([[-90.0, 0.0, 2.0, 2.0, -1.0], [-90.0, 0.0, -1.0, 0.1, 3.0]], np.float32)
    frame = make_frame((1, 1, 5), (1, 1, 5))
    labels = labels_from_scores(
        in_pieces(scores.reshape(2, 1, 1, 5)), frame, LINEAR, make_labels(7, 3, decision="regions")
    )
    # A score of 0 is a sigmoid of exactly 0.5, which is not enough.
    np.testing.assert_array_equal(labels.ravel(), [0, 0, 7, 3, 3])


def test_planes_repeated_across_separate_slices_are_equal() -> None:
    scores = random_scores((3, 4, 300, 300), np.float32)
    spacing = (6.0, 1.0, 1.0)
    frame = make_frame((11, 512, 512), (4, 300, 300), network_spacing=spacing)
    labels = labels_from_scores(in_pieces(scores), frame, LINEAR, make_labels(0, 1, 2))
    source = np.floor((np.arange(11) + 0.5) * (4 / 11)).astype(int)
    for plane in range(1, 11):
        equal = (labels[plane] == labels[plane - 1]).all()
        assert equal == (source[plane] == source[plane - 1])


@pytest.mark.parametrize("bring_back", ["scores", "labels"])
def test_only_the_planes_of_the_next_slab_are_kept(bring_back: str) -> None:
    yielded: list[weakref.ref[ScoreArray]] = []
    most = 0

    def stream() -> Iterator[tuple[int, ScoreArray]]:
        nonlocal most
        for plane in range(40):
            scores = random_scores((2, 1, 200, 200), np.float32, plane)
            yielded.append(weakref.ref(scores))
            yield plane, scores
            del scores
            gc.collect()
            most = max(most, sum(reference() is not None for reference in yielded))

    frame = make_frame((60, 512, 512), (40, 200, 200))
    order = 1 if bring_back == "scores" else 0
    spec = Scores.model_validate({"bring_back": bring_back, "resampling": {"order": order, "order_z": 0}})
    gc.freeze()  # collections then look at new objects alone, not at all that other tests have loaded
    try:
        labels_from_scores(stream(), frame, spec, make_labels(0, 1))
    finally:
        gc.unfreeze()
    assert most <= 3


@settings(deadline=None, max_examples=80)
@given(
    cropped=st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 30)),
    network=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    transpose=st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)]),
    flip=st.sets(st.integers(0, 2)),
    coordinates=st.sampled_from(["centres", "corners"]),
    decision=st.sampled_from(["argmax", "regions"]),
    dtype=st.sampled_from([np.float16, np.float32]),
    piece=st.integers(1, 5),
    margin=st.integers(0, 2),
)
def test_labels_that_are_brought_back_are_decided_first(
    cropped: Shape,
    network: Shape,
    transpose: Shape,
    flip: set[int],
    coordinates: str,
    decision: str,
    dtype: Any,
    piece: int,
    margin: int,
) -> None:
    resampling = {"order": 0, "order_z": 0, "coordinates": coordinates}
    spec = Scores.model_validate({"bring_back": "labels", "resampling": resampling})
    frame = replace(make_frame(cropped, network, transpose=transpose, margin=margin), flip=tuple(flip))
    scores, values = (random_scores((4, *network), np.float32) - 0.5).astype(dtype), np.array([3, 5, 2, 9])
    found = labels_from_scores(in_pieces(scores, piece), frame, spec, make_labels(*values.tolist(), decision=decision))

    decided = values[scores.argmax(axis=0)]
    if decision == "regions":
        decided = np.zeros(network, int)
        for score, value in zip(scores, values, strict=True):
            decided[score > 0] = value
    how: Any = {"mode": "nearest", "grid_mode": True} if coordinates == "centres" else {}
    factors = [new / old for new, old in zip(cropped, network, strict=True)]
    expected = np.zeros_like(found)
    expected.transpose(transpose)[frame.slices] = np.flip(ndimage.zoom(decided, factors, order=0, **how), tuple(flip))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, 2), (3, 1)], "continues with plane 3, expected plane 2 of 4"),
        ([(0, 2)], "ends, expected plane 2 of 4"),
        ([(0, 4), (4, 1)], "more than the 4 planes"),
    ],
)
def test_a_stream_with_gaps_or_surplus_is_refused(pieces: list[tuple[int, int]], message: str) -> None:
    stream = ((start, np.zeros((2, count, 3, 3), np.float32)) for start, count in pieces)
    with pytest.raises(ValueError, match=message):
        labels_from_scores(stream, make_frame((4, 3, 3), (4, 3, 3)), LINEAR, make_labels(0, 1))


def test_planes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\), expected \(3, 3\)"):
        labels_from_scores(
            in_pieces(np.zeros((2, 4, 3, 2), np.float32)),
            make_frame((4, 3, 3), (4, 3, 3)),
            LINEAR,
            make_labels(0, 1),
        )


def test_a_class_count_that_differs_from_the_labels_is_refused() -> None:
    with pytest.raises(BundleError, match="scores 3 classes, the manifest names 2"):
        labels_from_scores(
            in_pieces(np.zeros((3, 4, 3, 3), np.float32)),
            make_frame((4, 3, 3), (4, 3, 3)),
            LINEAR,
            make_labels(0, 1),
        )


@settings(deadline=None, max_examples=40)
@given(
    classes=st.sampled_from([2, 3, 255, 256, 257, 300]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 60)),
    levels=st.integers(1, 5),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_labels_are_the_argmax_with_many_classes_and_many_ties(
    classes: int, shape: Shape, levels: int, threads: int, seed: int
) -> None:
    scores = np.random.default_rng(seed).integers(-levels, levels, (classes, *shape)).astype(np.float32)
    palette = np.random.default_rng(seed).permutation(classes)
    labels = labels_from_scores(
        in_pieces(scores), make_frame(shape, shape), LINEAR, make_labels(*palette.tolist()), threads=threads
    )
    np.testing.assert_array_equal(labels, palette[scores.argmax(axis=0)])


def test_a_plane_decided_in_blocks_of_rows_is_complete() -> None:
    shape = (2, 700, 333)
    scores = random_scores((3, *shape), np.float32)
    labels = labels_from_scores(in_pieces(scores), make_frame(shape, shape), LINEAR, make_labels(1, 2, 3), threads=2)
    np.testing.assert_array_equal(labels, scores.argmax(axis=0) + 1)
