"""Whole recipes of networks that are not MaskSAM, against their inference written out in a few lines of NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.recipe import Clip, Count, Keep, MinMax, Recipe, Resampling, Scale, Share, Voxels
from masksam_deploy.scan_path.labels_gpu import why_not_on_gpu
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.tiles import cut_windows
from masksam_deploy.scan_path.windows import stream_scores
from tests.scan_path.recipes import recipe_for

GOLDEN = Path(__file__).parents[1] / "data" / "scan_path" / "b_ct_crops"
Floats = NDArray[np.float32]
SIDE, CLASSES, SLICES = 8, 4, 5
PLANE_CORNERS = (Keep(), Count(voxels=SIDE), Count(voxels=SIDE))
# On windows: the constants cancel, as the smallest and the largest intensity of the window follow.
STACK = (
    Clip(lower=-200, upper=250),
    Scale(subtract=-200, divide=450 / 255),
    Scale(subtract=50.21997497685108, divide=68.47153712416372),
)
MA_SAM = recipe_for(
    on_window=(*STACK, MinMax(over="window", guard="added", epsilon=1e-8)),
    grid={"crop": "none", "flip": (1, 2)},
    windows={
        "advance": (Voxels(voxels=1), Share(share=1.0), Share(share=1.0)),
        "overhang": (2, 0, 0),
        "edge": "repeat",
        "weight": "uniform",
    },
    scores={"before_sum": "softmax"},
)
CORNERS_0 = Resampling(order=0, order_z=0, coordinates="corners")
H_SAM = recipe_for(
    before=(Clip(lower=-125, upper=275), Scale(subtract=-125, divide=400)),
    grid={
        "crop": "none",
        "flip": (2,),
        "size": PLANE_CORNERS,
        "resampling": Resampling(order=3, order_z=3, coordinates="corners"),
    },
    windows={"advance": (Share(share=1.0),) * 3, "weight": "uniform"},
    scores={"bring_back": "labels", "resampling": CORNERS_0},
)


def volume_of(array: NDArray[Any]) -> Volume:
    z, y, x = array.shape
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(array, Geometry((x, y, z), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0), axes))


def scan_of(shape: tuple[int, int, int], seed: int) -> Floats:
    return (np.random.default_rng(seed).normal(size=shape) * 200).astype(np.float32)


def network(window: Floats) -> Floats:
    """`[1,1,T,H,W]` to `[1,K,T,H,W]`; depends on the place, on the intensity, and on the neighbours."""
    z, y, x = np.ogrid[: window.shape[2], : window.shape[3], : window.shape[4]]
    near = window[0, 0] + 0.5 * np.roll(window[0, 0], 1, axis=2) + 0.1 * window[0, 0].mean(axis=0)
    waves = [3 * np.sin((k + 1) * near * 2 + 0.3 * z + 0.7 * k * y - 0.2 * x) for k in range(CLASSES)]
    return np.stack(waves)[None].astype(np.float32)


def segmented(scan: Floats, recipe: Recipe, depth: int, threads: int = 1) -> tuple[NDArray[Any], Floats]:
    """Labels, and the scores on the network's grid that they come from."""
    prepared = prepare(volume_of(scan), recipe)
    patch = (depth, *prepared.frame.network_shape[1:])
    planes = [
        *stream_scores(
            prepared.data,
            patch,
            network,
            recipe,
            mirror_axes=(),
            accumulator="float32",
            classes=CLASSES,
            threads=threads,
        )
    ]
    labels = Labels(classes=tuple(Label(name=f"class {k}", value=k) for k in range(CLASSES)))
    found = labels_from_scores(iter(planes), prepared.frame, recipe.scores, labels, threads=threads)
    return found, np.concatenate([scores for _, scores in planes], axis=1)


def ma_sam(scan: Floats) -> NDArray[np.float64]:
    """Probabilities `[K,Z,Y,X]` of MA-SAM's loop: five neighbouring slices, step 1, edges repeated."""
    padded = np.concatenate([scan[:1]] * 2 + [scan] + [scan[-1:]] * 2).astype(np.float64)
    sums, count = np.zeros((CLASSES, *padded.shape)), np.zeros(len(padded))
    for z in range(len(scan)):
        stack = padded[z : z + SLICES, ::-1, ::-1]
        stack = ((np.clip(stack, -200, 250) + 200) / 450 * 255 - 50.21997497685108) / 68.47153712416372
        stack = (stack - stack.min()) / (stack.max() - stack.min() + 1e-8)
        scores = network(stack[None, None].astype(np.float32))[0].astype(np.float64)
        shares = np.exp(scores) / np.exp(scores).sum(axis=0)
        sums[:, z : z + SLICES] += shares[:, :, ::-1, ::-1]
        count[z : z + SLICES] += 1
    return np.asarray(sums / count[None, :, None, None])[:, 2:-2]


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 99),
    threads=st.integers(1, 3),
)
def test_stacks_of_neighbouring_slices_vote_as_in_ma_sams_loop(
    shape: tuple[int, int, int], seed: int, threads: int
) -> None:
    scan = scan_of(shape, seed)
    labels, scores = segmented(scan, MA_SAM, SLICES, threads)
    expected = ma_sam(scan)
    # Intensities in [0, 1] differ by a few float32 roundings, which the network's slope of up to 40 enlarges.
    np.testing.assert_allclose(scores[:, :, ::-1, ::-1], expected, rtol=0, atol=2e-4)
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-3
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=0)[clear])


def test_stacks_of_a_ct_are_what_the_released_ma_sam_made_of_them() -> None:
    golden = np.load(GOLDEN / "ma_sam.npz")
    data = prepare(volume_of(golden["slices_zyx"]), MA_SAM).data
    windows = list(cut_windows(data, (SLICES, 96, 96), MA_SAM))
    assert len(windows) == 8
    for index in (0, 5):
        found = windows[index][0, 0, :, ::2, ::2]
        # Measured: 1.2e-7; the released code computes in float64 up to the last steps.
        np.testing.assert_allclose(found, golden[f"stack_{index}_sub"], rtol=0, atol=1e-6)


def test_a_slice_of_a_ct_is_what_the_released_h_sam_made_of_it() -> None:
    golden = np.load(GOLDEN / "h_sam.npz")
    side = (Keep(), Count(voxels=224), Count(voxels=224))
    recipe = H_SAM.model_copy(update={"grid": H_SAM.grid.model_copy(update={"size": side, "flip": ()})})
    data = prepare(volume_of(golden["slice_yx"][None]), recipe).data[0, 0]
    # Measured: 3e-17.
    np.testing.assert_allclose(data[::2, ::2], golden["input_sub"], rtol=0, atol=1e-6)
    assert data[:, -2].any()
    assert not data[:, -1].any()  # rounding puts 116 voxels' last of 224 samples behind the axis


def h_sam(scan: Floats) -> NDArray[Any]:
    """Labels `[Z,Y,X]` of H-SAM's loop: slices of a fixed side; labels, not scores, are resized."""
    labels = np.zeros(scan.shape, np.uint8)
    height, width = scan.shape[1:]
    for index, plane in enumerate((np.clip(scan, -125, 275) + 125) / 400):
        turned = plane[:, ::-1]
        if (height, width) != (SIDE, SIDE):
            turned = ndimage.zoom(turned, (SIDE / height, SIDE / width), order=3)
        decided = network(turned[None, None, None])[0, :, 0].argmax(axis=0)
        if (height, width) != (SIDE, SIDE):
            decided = ndimage.zoom(decided, (height / SIDE, width / SIDE), order=0)
        labels[index] = decided[:, ::-1]
    return labels


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30)),
    seed=st.integers(0, 99),
    threads=st.integers(1, 3),
)
def test_labels_of_slices_of_a_fixed_side_are_brought_back_as_in_h_sams_loop(
    shape: tuple[int, int, int], seed: int, threads: int
) -> None:
    scan = scan_of(shape, seed)
    labels, _ = segmented(scan, H_SAM, 1, threads)
    # Scores that are equal but for rounding: a voxel of the network's grid covers up to 16 of the scan's.
    assert np.count_nonzero(labels != h_sam(scan)) <= 16


@pytest.mark.parametrize("size", [20, 22, 26, 42])
def test_behind_the_last_voxel_of_the_networks_grid_labels_are_0(size: int) -> None:
    # Rounding puts the last of these samples of eight voxels behind the eighth, or does not: SciPy knows.
    scan = scan_of((1, size, size), 0)
    recipe = H_SAM.model_copy(update={"scores": H_SAM.scores.model_copy(update={"before_sum": "sigmoid"})})
    ones = Labels(classes=tuple(Label(name=f"class {k}", value=1) for k in range(CLASSES)))
    prepared = prepare(volume_of(scan), recipe)
    scores = np.zeros((CLASSES, 1, SIDE, SIDE), np.float32)
    labels = labels_from_scores([(0, scores)], prepared.frame, recipe.scores, ones)
    expected = ndimage.zoom(np.ones((SIDE, SIDE), np.uint8), size / SIDE, order=0)[:, ::-1]
    np.testing.assert_array_equal(labels[0], expected)
    assert (labels == 0).any() == (size in (26, 42))


@pytest.mark.parametrize("before_sum", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mirror_axes", [(), (1, 2)])
def test_probabilities_are_averaged_over_mirrored_windows_too(before_sum: str, mirror_axes: tuple[int, ...]) -> None:
    data = scan_of((2, 6, 7), 3)[None] / np.float32(200)
    recipe = recipe_for(scores={"before_sum": before_sum}, windows={"weight": "uniform"})
    run: Any = {"mirror_axes": mirror_axes, "accumulator": "float32", "classes": CLASSES}
    scores = np.concatenate([piece for _, piece in stream_scores(data, (2, 6, 7), network, recipe, **run)], axis=1)
    expected = []
    for axes in [(), (1,), (2,), (1, 2)] if mirror_axes else [()]:
        there = tuple(axis + 1 for axis in axes)
        raw = network(np.flip(data, there)[None])[0].astype(np.float64)
        shares = np.exp(raw) / np.exp(raw).sum(axis=0) if before_sum == "softmax" else 1 / (1 + np.exp(-raw))
        expected.append(np.flip(shares, there))
    np.testing.assert_allclose(scores, np.mean(expected, axis=0), rtol=0, atol=1e-6)


def test_regions_of_probabilities_are_those_above_one_half() -> None:
    above = np.nextafter(np.float32(0.5), np.float32(1))
    scores = np.array([0.5, above, 0.1, 0.9], np.float32).reshape(1, 1, 1, 4)
    recipe = recipe_for(scores={"before_sum": "sigmoid"})
    frame = prepare(volume_of(np.ones((1, 1, 4))), recipe).frame
    labels = Labels(decision="regions", classes=(Label(name="region", value=3),))
    np.testing.assert_array_equal(labels_from_scores([(0, scores)], frame, recipe.scores, labels).ravel(), [0, 3, 0, 3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_found_before_they_become_probabilities(bad: float) -> None:
    def broken(window: Floats) -> Floats:
        scores = network(window)
        scores[0, 1, 0, 2, 3] = bad
        return scores

    recipe = recipe_for(scores={"before_sum": "sigmoid"})
    run: Any = {"mirror_axes": (), "accumulator": "float32", "classes": CLASSES}
    with pytest.raises(BackendError, match=r"not finite for the window at \(0, 0, 0\)"):
        list(stream_scores(np.zeros((1, 2, 6, 7), np.float32), (2, 6, 7), broken, recipe, **run))


def test_labels_are_not_resampled_with_splines() -> None:
    recipe = recipe_for(scores={"bring_back": "labels"})
    with pytest.raises(ValueError, match="expected order 0"):
        segmented(scan_of((1, 4, 4), 0), recipe, 1)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (MA_SAM, "averages probabilities"),
        (H_SAM, "uniform"),
        (recipe_for(scores={"bring_back": "labels", "resampling": CORNERS_0}), "resamples labels"),
        (recipe_for(scores={"resampling": Resampling(order=3, order_z=0)}), "splines"),
        (recipe_for(scores={"resampling": CORNERS_0}), None),
        (recipe_for(), None),
    ],
)
def test_the_gpu_says_which_recipes_it_leaves_to_the_host(recipe: Recipe, reason: str | None) -> None:
    found = why_not_on_gpu(recipe)
    assert (found is None) if reason is None else (found is not None and reason in found)
