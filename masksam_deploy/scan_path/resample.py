"""Resampling a volume to another grid, one axis at a time.

Resizing one axis is a matrix `[new, old]`, see `axis_matrix`. A volume can therefore be resampled in slabs of output
planes, each from the few input planes its matrix rows touch, and no SciPy is needed. The order of the axes, and what is
clipped when, are nnU-Net v2.5.1's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from masksam_deploy.base.threads import Team
from masksam_deploy.bundle.recipe import Resampling
from masksam_deploy.scan_path.axis_matrix import axis_matrix

Shape3: TypeAlias = tuple[int, int, int]
Spacing3: TypeAlias = tuple[float, float, float]
Floats: TypeAlias = NDArray[np.floating[Any]]
Limits: TypeAlias = tuple[Floats, Floats]
Block: TypeAlias = tuple[slice, slice, Floats]  # outputs, inputs, the weights between them

ANISOTROPY_THRESHOLD = 3.0
SLAB_BYTES = 32 << 20
_BLOCK_ROWS = 16  # output rows per product: the matrices are banded, so small blocks skip their zeros
_CHUNK_BYTES = 16 << 20
# OpenBLAS starts threads of its own beyond this. They would wait for each other after every small product of a banded
# matrix (measured: twice the time), while ours take whole slabs.
_ONE_THREAD_PRODUCTS = 1 << 18


def separate_axis(current_spacing: Spacing3, new_spacing: Spacing3, force_separate_z: bool | None) -> int | None:
    """The axis to resample apart from the other two, or None for a plain 3D resize.

    Spacings are in mm, in the order of the array axes. With `force_separate_z` None a spacing whose largest
    and smallest entries differ by a factor strictly above 3 decides, first the current, then the new one; an
    axis is only separate when it alone has the largest spacing. (nnU-Net v2.5.1,
    `determine_do_sep_z_and_axis`.)
    """
    if force_separate_z is False:
        return None
    deciding: Spacing3 | None
    if force_separate_z or _is_anisotropic(current_spacing):
        deciding = current_spacing
    else:
        deciding = new_spacing if _is_anisotropic(new_spacing) else None
    if deciding is None:
        return None
    # Compared as a quotient, like nnU-Net: spacings that differ in the last bit only count as equal.
    largest = [axis for axis in range(3) if max(deciding) / deciding[axis] == 1.0]
    return largest[0] if len(largest) == 1 else None


def _is_anisotropic(spacing: Spacing3) -> bool:
    return bool(max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD)


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A resize of one axis: the matrix `[new, old]` and which part of each row is not zero."""

    matrix: NDArray[np.float64]
    _blocks: dict[tuple[np.dtype[Any], int], list[Block]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def is_identity(self) -> bool:
        """Whether the axis keeps its size."""
        new, old = self.matrix.shape
        return bool(new == old)

    @cached_property
    def _touched(self) -> NDArray[np.bool_]:
        """Per output and input, whether it has a weight; an output that is always 0 touches the last input."""
        touched: NDArray[np.bool_] = self.matrix != 0
        touched[:, -1] |= ~touched.any(axis=1)
        return touched

    @cached_property
    def first(self) -> NDArray[np.intp]:
        """Per output, the first input with a weight."""
        return np.asarray(np.argmax(self._touched, axis=1), dtype=np.intp)

    @cached_property
    def last(self) -> NDArray[np.intp]:
        """Per output, the last input with a weight."""
        old = self.matrix.shape[1]
        return np.asarray(old - 1 - np.argmax(self._touched[:, ::-1], axis=1), dtype=np.intp)

    @cached_property
    def needed_from(self) -> NDArray[np.intp]:
        """Per output, the first input that it or any later output uses (`first` need not rise everywhere)."""
        return np.asarray(np.minimum.accumulate(self.first[::-1])[::-1], dtype=np.intp)

    def used(self, start: int, stop: int) -> NDArray[np.intp]:
        """The inputs, in rising order, that outputs `start` to `stop` depend on."""
        return np.flatnonzero(self._touched[start:stop].any(axis=0))

    def repeats(self, index: int) -> bool:
        """Whether output `index` is the output before it again."""
        return index > 0 and bool((self.matrix[index] == self.matrix[index - 1]).all())

    def blocks(self, dtype: np.dtype[Any], axis: int) -> list[Block]:
        """The matrix in `dtype` as blocks of rows without the zeros beside the band, laid out for a product on `axis`.

        For axis -2 a block multiplies from the left; for -1 its transpose, from the right.
        """
        if (dtype, axis) not in self._blocks:
            self._blocks[dtype, axis] = list(self._cut(self.matrix.astype(dtype, copy=False), axis))
        return self._blocks[dtype, axis]

    def _cut(self, matrix: Floats, axis: int) -> Iterator[Block]:
        new = len(matrix)
        for start in range(0, new, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, new)
            inputs = slice(int(self.first[start:stop].min()), int(self.last[start:stop].max()) + 1)
            block = matrix[start:stop, inputs]
            # Contiguous: a product with a transposed view takes twice as long.
            yield slice(start, stop), inputs, np.ascontiguousarray(block if axis == -2 else block.T)

    def apply(self, planes: Floats, axis: int) -> Floats:
        """Resize axis -2 or -1 of planes `[..., H, W]`; computes in their dtype."""
        if self.is_identity:
            return planes
        shape = list(planes.shape)
        shape[axis] = len(self.matrix)
        out = np.empty(shape, planes.dtype)
        other = -1 if axis == -2 else -2
        for outputs, inputs, block in self.blocks(planes.dtype, axis):
            for part in _parts(shape[other], block.size):
                if axis == -1:
                    np.matmul(planes[..., part, inputs], block, out=out[..., part, outputs])
                else:
                    np.matmul(block, planes[..., inputs, part], out=out[..., outputs, part])
        return out


def _parts(size: int, weights: int) -> Iterator[slice]:
    """Parts of an axis of `size` whose product with so many weights BLAS does in the calling thread."""
    step = max(1, _ONE_THREAD_PRODUCTS // weights)
    return (slice(start, start + step) for start in range(0, size, step))


@dataclass(frozen=True, eq=False)
class Resampler:
    """A resize of a 3D volume, computed in slabs of output planes of axis 0.

    Attributes:
        maps: one map per axis.
        separate: the axis resampled after the other two and after clipping, or None.
        clips: whether results are clipped to the range of the input, and that can change anything (it cannot below
            order 3).
        splines: whether an output plane may depend on dozens of input planes (it does not below order 3).
    """

    maps: tuple[AxisMap, AxisMap, AxisMap]
    separate: int | None
    clips: bool
    splines: bool

    @property
    def is_identity(self) -> bool:
        """Whether both grids are the same, in which case values are passed on untouched."""
        return all(axis_map.is_identity for axis_map in self.maps)

    @property
    def new_shape(self) -> Shape3:
        """Shape of the result."""
        z, y, x = (axis_map.matrix.shape[0] for axis_map in self.maps)
        return (z, y, x)

    def limits(self, volume: Floats) -> Limits:
        """Smallest and largest input values, to broadcast to `[D,H,W]`: per slice if an axis is separate."""
        axes = tuple(axis for axis in range(3) if axis != self.separate)
        return volume.min(axis=axes, keepdims=True), volume.max(axis=axes, keepdims=True)

    def planes(self, source: Floats, start: int, stop: int, limits: Limits | None, dtype: DTypeLike) -> Floats:
        """Output planes `start` to `stop` as `[stop - start, H', W']` in `dtype`, which is also computed in.

        Several volumes at once lie along axes between the first and the last two: `[n, K, H, W]`.

        Args:
            source: the input planes `maps[0].used(start, stop)`, `[n, H, W]`, finite, C-contiguous.
            start: first output plane.
            stop: one past the last output plane.
            limits: `limits()` of the whole input; only needed if `clips`.
            dtype: float64 as nnU-Net, or float32.
        """
        used = self.maps[0].used(start, stop)
        if len(source) != used.size:
            raise ValueError(f"got {len(source)} planes, outputs {start}:{stop} need planes {used.tolist()}")
        weights = self.maps[0].matrix[start:stop, used].astype(dtype, copy=False)
        if self.separate == 0:
            inside = self._resize_in_plane(source.astype(dtype), (-2, -1))
            if limits is not None:
                _clip(inside, limits[0][used], limits[1][used])
            return _combine_planes(weights, inside, dtype)
        planes = _combine_planes(weights, source, dtype)
        last = None if self.separate is None else self.separate - 3
        planes = self._resize_in_plane(planes, tuple(axis for axis in (-2, -1) if axis != last))
        if limits is not None:
            _clip(planes, *limits)
        return planes if last is None else self._resize_in_plane(planes, (last,))

    def _resize_in_plane(self, planes: Floats, axes: tuple[int, ...]) -> Floats:
        for axis in axes:
            planes = self.maps[axis].apply(planes, axis)
        return planes

    def slabs(self, source_shape: tuple[int, ...], budget_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges `(start, stop)` of output planes, a float64 copy of which takes about `budget_bytes`."""
        _, height, width = self.new_shape
        plane = 8 * max(height, source_shape[-2]) * max(width, source_shape[-1])
        count = max(1, budget_bytes // plane)
        for start in range(0, self.new_shape[0], count):
            yield start, min(start + count, self.new_shape[0])


def resampler(
    old_shape: Shape3, new_shape: Shape3, old_spacing: Spacing3, new_spacing: Spacing3, spec: Resampling
) -> Resampler:
    """The resize between two grids.

    Shapes and spacings (mm) are in the order of the array axes; the spacings only decide whether an axis is
    resampled separately, with `spec.order_z` instead of `spec.order` (nnU-Net's `resample_data_or_seg_to_shape`).
    Splines at `centres` are clipped to the range of their input, as scikit-image does; SciPy does not, at `corners`.
    """
    separate = separate_axis(old_spacing, new_spacing, spec.force_separate_z)
    orders = [spec.order_z if axis == separate else spec.order for axis in range(3)]
    z, y, x = (
        AxisMap(axis_matrix(old, new, order, spec.coordinates))
        for old, new, order in zip(old_shape, new_shape, orders, strict=True)
    )
    clips = spec.order > 1 and spec.coordinates == "centres"
    return Resampler((z, y, x), separate, clips=clips, splines=3 in (spec.order, spec.order_z))


def resample_volume(
    volume: Floats, plan: Resampler, out: Floats, budget_bytes: int = SLAB_BYTES, team: Team | None = None
) -> None:
    """Resample `volume` `[D,H,W]` into `out` `[D',H',W']`, in float64 slabs, rounding once to its dtype.

    `team` shares out the slabs, each of about `budget_bytes`; the result does not depend on it.
    """
    if plan.is_identity:
        out[...] = volume
        return
    limits = plan.limits(volume) if plan.clips else None

    def resample_slab(slab: tuple[int, int]) -> None:
        start, stop = slab
        used = plan.maps[0].used(start, stop)
        source = volume[used[0] : used[-1] + 1]  # a view, unless there are gaps between what is used
        source = source if len(source) == used.size else volume[used]
        out[start:stop] = plan.planes(source, start, stop, limits, np.float64)

    (team or Team(1)).each(resample_slab, plan.slabs(volume.shape, budget_bytes))


def _combine_planes(weights: Floats, source: Floats, dtype: DTypeLike) -> Floats:
    """Weighted sums `[new, n] x [n, ..., H, W]`, converting only a chunk of voxels to `dtype` at a time."""
    if weights.shape == (1, 1) and weights[0, 0] == 1:
        return source.astype(dtype)
    count = len(source)
    out = np.empty((len(weights), *source.shape[1:]), dtype)
    voxels, sums = source.reshape(count, -1), out.reshape(len(weights), -1)
    step = max(1, _CHUNK_BYTES // (count * out.itemsize))
    for start in range(0, sums.shape[1], step):
        chunk = voxels[:, start : start + step].astype(dtype, copy=False)
        target = sums[:, start : start + step]
        for part in _parts(chunk.shape[1], weights.size):
            np.matmul(weights, chunk[:, part], out=target[:, part])
    return out


def _clip(values: Floats, low: Floats, high: Floats) -> None:
    np.clip(values, low, high, out=values)
