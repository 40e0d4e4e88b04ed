"""Frames, steps of intensities and windows that nnU-Net does not have, against their plain formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.recipe import (
    Clip,
    Count,
    Keep,
    Longest,
    MinMax,
    Quantise,
    Resampling,
    Scale,
    Share,
    Spacing,
    Step,
    Voxels,
    Windows,
)
from masksam_deploy.scan_path.frame import scan_frame
from masksam_deploy.scan_path.intensities import apply_steps
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.tiles import cut_windows, padded_shape, tiling, window_count, with_step
from tests.scan_path.recipes import recipe_for

Floats = NDArray[np.float32]
Shape = tuple[int, int, int]
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
TRANSPOSES = st.permutations((0, 1, 2))


def volume_of(array: NDArray[Any], spacing_zyx: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    z, y, x = array.shape[-3:]
    dz, dy, dx = spacing_zyx
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(array, Geometry((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), axes))


def random_scan(shape: tuple[int, ...], seed: int = 0) -> Floats:
    return (np.random.default_rng(seed).normal(size=shape) * 200 + 300).astype(np.float32)


def stepped(values: Floats, *steps: Step) -> Floats:
    out = np.empty_like(values)
    apply_steps(steps, values, out)
    return out


@settings(deadline=None)
@given(shape=SHAPES, transpose=TRANSPOSES, flip=st.sets(st.integers(0, 2)), crop=st.sampled_from(["nonzero", "none"]))
def test_a_frame_transposes_then_crops_then_turns_axes_round(
    shape: Shape, transpose: list[int], flip: set[int], crop: str
) -> None:
    scan = np.zeros(shape, np.float32)
    scan[shape[0] // 2 :, :, shape[2] // 3 :] = random_scan(shape)[shape[0] // 2 :, :, shape[2] // 3 :]
    recipe = recipe_for(grid={"transpose": tuple(transpose), "flip": tuple(flip), "crop": crop})
    prepared = prepare(volume_of(scan), recipe)
    kept = scan[shape[0] // 2 :, :, shape[2] // 3 :] if crop == "nonzero" else scan
    np.testing.assert_array_equal(prepared.data[0], np.flip(kept.transpose(transpose), tuple(flip)))
    # What is written through the frame's view lands where it came from.
    back = np.zeros_like(scan)
    prepared.frame.box_of(back)[...] = prepared.data[0]
    np.testing.assert_array_equal(back, scan)


def test_each_axis_has_its_own_size() -> None:
    size = (Keep(), Spacing(mm=2.0), Count(voxels=5))
    frame = scan_frame(volume_of(np.ones((3, 4, 10)), (7.0, 3.0, 1.5)), recipe_for(grid={"size": size}))
    assert frame.network_shape == (3, 6, 5)
    assert frame.network_spacing == (7.0, 2.0, 3.0)


@settings(deadline=None)
@given(height=st.integers(1, 600), width=st.integers(1, 600), voxels=st.sampled_from([64, 224, 1024]))
def test_the_longest_side_gets_its_voxels_and_the_other_as_many_in_proportion(
    height: int, width: int, voxels: int
) -> None:
    size = (Keep(), Longest(voxels=voxels), Longest(voxels=voxels))
    volume, recipe = volume_of(np.ones((1, height, width), np.uint8)), recipe_for(grid={"size": size})
    scale = voxels / max(height, width)
    expected = (1, int(height * scale + 0.5), int(width * scale + 0.5))
    if min(expected) == 0:
        with pytest.raises(ScanError, match="none of the"):
            scan_frame(volume, recipe)
        return
    assert scan_frame(volume, recipe).network_shape == expected
    assert max(expected[1:]) == voxels


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_resampled_by_its_corners_is_scipys_zoom(seed: int) -> None:
    scan = random_scan((3, 11, 13), seed)
    size = (Keep(), Count(voxels=20), Count(voxels=9))
    corners = Resampling(order=3, order_z=3, coordinates="corners")
    recipe = recipe_for(grid={"size": size, "resampling": corners, "crop": "none"})
    expected = [ndimage.zoom(plane.astype(np.float64), (20 / 11, 9 / 13), order=3) for plane in scan]
    # One rounding to float32 of numbers below 1000.
    np.testing.assert_allclose(prepare(volume_of(scan), recipe).data[0], expected, rtol=0, atol=6e-5)


@settings(deadline=None)
@given(shape=SHAPES, levels=st.integers(1, 5), guard=st.sampled_from(["at-least", "added"]), seed=st.integers(0, 99))
@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 2.0])
def test_min_max_of_a_scan_and_of_its_slices(epsilon: float, shape: Shape, levels: int, guard: Any, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-levels, levels, shape).astype(np.float32)

    def plainly(part: NDArray[np.float64]) -> NDArray[np.float64]:
        extent = part.max() - part.min()
        divisor = max(extent, epsilon) if guard == "at-least" else extent + epsilon
        return (part - part.min()) / divisor if divisor else np.zeros_like(part)

    whole = stepped(values, MinMax(over="scan", guard=guard, epsilon=epsilon))
    slices = stepped(values, MinMax(over="slice", guard=guard, epsilon=epsilon))
    np.testing.assert_allclose(whole, plainly(values.astype(np.float64)), rtol=1e-6)
    np.testing.assert_allclose(slices, [plainly(part) for part in values.astype(np.float64)], rtol=1e-6)


@given(st.lists(st.floats(-400, 400, width=32), min_size=1, max_size=50))
def test_quantising_is_a_conversion_to_bytes_and_back(values: list[float]) -> None:
    given_values = np.array(values, np.float32).reshape(1, 1, -1)
    image = Image.fromarray(np.clip(given_values[0], 0, 255).astype(np.uint8))
    np.testing.assert_array_equal(stepped(given_values, Quantise())[0], np.asarray(image))
    assert stepped(given_values, Quantise(highest=7)).max() <= 7


def test_steps_follow_each_other_before_and_after_resampling() -> None:
    scan = random_scan((2, 6, 6))
    size = (Keep(), Count(voxels=9), Count(voxels=9))
    before: tuple[Step, ...] = (Clip(lower=100, upper=500), Scale(subtract=100, divide=400), Scale(divide=0.5))
    after: tuple[Step, ...] = (MinMax(over="slice", epsilon=0.0), Scale(divide=1 / 256), Quantise())
    recipe = recipe_for(before=before, after=after, grid={"size": size, "crop": "none"})
    changed = (np.clip(scan, 100, 500) - 100) / 200
    plain = prepare(volume_of(changed.astype(np.float32)), recipe_for(grid={"size": size, "crop": "none"})).data[0]
    lowest, highest = (extreme(axis=(1, 2), keepdims=True) for extreme in (plain.min, plain.max))
    expected = np.trunc((plain - lowest) / (highest - lowest) * 256).clip(0, 255)
    found = prepare(volume_of(scan), recipe).data[0]
    np.testing.assert_array_equal(found, expected)
    assert (found.min(), found.max()) == (0, 255)


def test_steps_that_overflow_are_refused() -> None:
    values = np.full((1, 2, 2), 1e30, np.float32)
    with pytest.raises(ScanError, match="too large to normalise"):
        stepped(values, Scale(divide=1e-30))


@settings(deadline=None)
@given(
    size=st.integers(1, 40),
    patch=st.integers(1, 12),
    apart=st.integers(1, 12),
    overhang=st.integers(0, 11),
)
def test_windows_some_voxels_apart_cover_the_overhang_and_end_with_it(
    size: int, patch: int, apart: int, overhang: int
) -> None:
    windows = Windows(advance=(Voxels(voxels=apart), Share(), Share()), overhang=(overhang, 0, 0))
    if overhang >= patch or apart > patch:
        with pytest.raises(ValueError, match=r"cannot stand out|leave some out"):
            tiling((size, 4, 4), (patch, 4, 4), windows)
        return
    tiles = tiling((size, 4, 4), (patch, 4, 4), windows)
    starts, extent = tiles.starts[0], max(size + 2 * overhang, patch)
    assert tiles.padded == padded_shape((size, 4, 4), (patch, 4, 4), windows) == (extent, 4, 4)
    assert tiles.low == ((extent - size) // 2, 0, 0)
    assert (starts[0], starts[-1]) == (0, extent - patch)
    assert starts[:-1] == list(range(0, extent - patch, apart))
    assert window_count((size, 4, 4), (patch, 4, 4), windows) == len(starts)


def test_another_step_replaces_shares_and_nothing_else() -> None:
    recipe = recipe_for(windows={"advance": (Voxels(voxels=1), Share(share=0.25), Share())})
    assert with_step(recipe, None) is recipe
    assert with_step(recipe, 0.75).windows.advance == (Voxels(voxels=1), Share(share=0.75), Share(share=0.75))


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES,
    patch=st.tuples(st.integers(1, 5), st.integers(1, 8), st.integers(1, 8)),
    overhang=st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)),
    edge=st.sampled_from(["zeros", "repeat"]),
    guard=st.sampled_from(["at-least", "added"]),
)
def test_windows_see_edges_and_are_normalised_when_they_are_cut(
    shape: Shape, patch: Shape, overhang: Shape, edge: str, guard: Any
) -> None:
    z, y, x = (min(out, size - 1) for out, size in zip(overhang, patch, strict=True))
    windows = {"overhang": (z, y, x), "edge": edge, "advance": (Voxels(voxels=1), Share(), Share(share=1.0))}
    step = MinMax(over="window", guard=guard, epsilon=1e-8)
    recipe = recipe_for(channels=2, windows=windows, on_window=(step,))
    data = random_scan((2, *shape))

    tiles = tiling(shape, patch, recipe.windows)
    around = [(low, large - low - size) for low, large, size in zip(tiles.low, tiles.padded, shape, strict=True)]
    padded = np.pad(data, [(0, 0), *around], mode="edge" if edge == "repeat" else "constant")
    expected = []
    for a in tiles.starts[0]:
        for b in tiles.starts[1]:
            for c in tiles.starts[2]:
                window = padded[:, a : a + patch[0], b : b + patch[1], c : c + patch[2]]
                low, high = (extreme(axis=(1, 2, 3), keepdims=True) for extreme in (window.min, window.max))
                extent = high - low
                divisor = np.maximum(extent, np.float32(1e-8)) if guard == "at-least" else extent + np.float32(1e-8)
                expected.append((window - low) / divisor)
    found = list(cut_windows(data, patch, recipe))
    np.testing.assert_array_equal(np.concatenate(found), expected)
