"""Where the windows of a recipe lie on the network grid of one scan, and what is in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.bundle.recipe import Advance, Recipe, Share, Voxels, Windows
from masksam_deploy.scan_path.intensities import apply_steps
from masksam_deploy.scan_path.resample import Shape3


@dataclass(frozen=True)
class Tiling:
    """Windows over the network grid of one scan.

    Attributes:
        patch: shape of a window (T, P, P).
        padded: shape of the grid that windows fill: the network grid and what stands out of it.
        low: where the network grid begins on the padded one.
        starts: first voxels of the windows on the padded grid, per axis, in order.
    """

    patch: Shape3
    padded: Shape3
    low: Shape3
    starts: tuple[list[int], list[int], list[int]]

    @property
    def count(self) -> int:
        """How many windows there are."""
        return math.prod(len(axis) for axis in self.starts)


def tiling(shape: Shape3, patch: Shape3, windows: Windows) -> Tiling:
    """Lay windows over a network grid.

    An axis shorter than a window is padded on both sides, on the low side by `floor(missing / 2)`.

    Args:
        shape: of the network grid.
        patch: of a window.
        windows: of the recipe.

    Raises:
        ValueError: windows would leave voxels out, or lie wholly outside of the grid.
    """
    if any(not 0 <= overhang < size for overhang, size in zip(windows.overhang, patch, strict=True)):
        raise ValueError(f"windows of {patch} cannot stand out of the grid by {windows.overhang}, expected less")
    padded = padded_shape(shape, patch, windows)
    z, y, x = (
        _starts(size, width, advance) for size, width, advance in zip(padded, patch, windows.advance, strict=True)
    )
    low_z, low_y, low_x = ((large - small) // 2 for large, small in zip(padded, shape, strict=True))
    return Tiling(patch, padded, (low_z, low_y, low_x), (z, y, x))


def padded_shape(shape: Shape3, patch: Shape3, windows: Windows) -> Shape3:
    """`shape` with the overhang on both sides, and with every axis shorter than the patch grown to it."""
    z, y, x = (
        max(size + 2 * overhang, width) for size, width, overhang in zip(shape, patch, windows.overhang, strict=True)
    )
    return (z, y, x)


def window_count(shape: Shape3, patch: Shape3, windows: Windows) -> int:
    """How many windows cover a network grid of `shape` (before padding)."""
    return tiling(shape, patch, windows).count


def window_starts(size: int, patch: int, step: float = 0.5) -> list[int]:
    """First voxels of the windows along one axis, in order.

    The fewest windows at most `step * patch` apart that cover the axis, evenly spread and rounded half to
    even. Very small patches repeat a start, as in nnU-Net (`compute_steps_for_sliding_window`).

    Args:
        size: voxels along the axis, at least `patch`.
        patch: voxels of a window.
        step: largest distance between windows as a fraction of the patch, in (0, 1].

    Raises:
        ValueError: arguments out of range.
    """
    if not 1 <= patch <= size or not 0 < step <= 1:
        raise ValueError(f"cannot place windows of {patch} on {size} voxels with step {step}")
    count = int(np.ceil((size - patch) / (patch * step))) + 1
    if count == 1:
        return [0]
    distance = (size - patch) / (count - 1)
    return [int(np.round(distance * index)) for index in range(count)]


def with_step(recipe: Recipe, step: float | None) -> Recipe:
    """The recipe with another largest distance between windows, along all axes where that is a share of a window.

    Args:
        recipe: of the bundle.
        step: the share, in (0, 1]; None leaves the recipe as it is.
    """
    if step is None:
        return recipe
    z, y, x = (Share(share=step) if isinstance(advance, Share) else advance for advance in recipe.windows.advance)
    return recipe.model_copy(update={"windows": recipe.windows.model_copy(update={"advance": (z, y, x)})})


def share_of(recipe: Recipe) -> float | None:
    """The largest distance between windows as a share of one, of the first axis where it is one; None if of none."""
    return next((advance.share for advance in recipe.windows.advance if isinstance(advance, Share)), None)


def cut_windows(data: NDArray[np.float32], patch: Shape3, recipe: Recipe) -> Iterator[NDArray[np.float32]]:
    """The windows `[1,C,T,P,P]` that `stream_scores` runs the network on, in its order, unmirrored.

    Args:
        data: network input `[C,D,H,W]`, float32.
        patch: window shape (T, P, P).
        recipe: of the bundle.

    Raises:
        ValueError, ScanError: see `tiling` and `apply_steps`.
    """
    depth, height, width = data.shape[1:]
    tiles = tiling((depth, height, width), patch, recipe.windows)
    return (cut_window(data, start, tiles, recipe) for start in product(*tiles.starts))


def cut_window(data: NDArray[np.float32], start: Shape3, tiles: Tiling, recipe: Recipe) -> NDArray[np.float32]:
    """The window `[1,C,T,P,P]` at a start on the padded grid, without padding the whole volume.

    What lies outside of the network grid is filled as the recipe says; the steps `on_window` of each channel follow.
    """
    inside: tuple[slice, ...] = (slice(None),)
    missing = [(0, 0)]
    for first, low, width, size in zip(start, tiles.low, tiles.patch, data.shape[1:], strict=True):
        begin, end = max(first - low, 0), min(first - low + width, size)
        inside = (*inside, slice(begin, end))
        missing.append((begin - (first - low), first - low + width - end))
    mode: Literal["edge", "constant"] = "edge" if recipe.windows.edge == "repeat" else "constant"
    window = np.pad(data[inside], missing, mode=mode)
    for values, channel in zip(window, recipe.channels, strict=True):
        if channel.on_window:
            apply_steps(channel.on_window, values, values)
    return window[None]


def _starts(size: int, patch: int, advance: Advance) -> list[int]:
    if isinstance(advance, Voxels):
        return _starts_apart(size, patch, advance.voxels)
    return window_starts(size, patch, advance.share)


def _starts_apart(size: int, patch: int, voxels: int) -> list[int]:
    """Every `voxels`; the last window ends with the axis."""
    if voxels > patch:
        raise ValueError(f"windows of {patch} voxels {voxels} apart leave some out, expected at most {patch}")
    last = size - patch
    return [*range(0, last, voxels), last]
