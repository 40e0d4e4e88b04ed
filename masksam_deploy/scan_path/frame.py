"""How the grid of a network relates to the grid of one scan: transposed, cropped, flipped, resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.bundle.recipe import AxisSize, Count, Grid, Longest, Recipe, Spacing
from masksam_deploy.scan_path.resample import Shape3, Spacing3

Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# Slices of 10 mm for a model at 0.5 mm are 20 times as coarse. Beyond that a wrong header is more likely, and the
# network grid would take terabytes.
_MOST_STRETCH = 25


@dataclass(frozen=True)
class ScanFrame:
    """How the network grid of one scan relates to the scan's own grid.

    Attributes:
        geometry: the grid of the scan.
        transpose: transposed axis i is scan array axis `transpose[i]` (axes z, y, x).
        box: per transposed axis the half-open range that the network sees, before the axis is turned round.
        scan_spacing: spacing of the scan in mm, transposed order.
        network_spacing: spacing of the network grid in mm, transposed order.
        network_shape: shape of one channel of the network input before any padding to the patch.
        flip: transposed axes whose direction is turned round.
    """

    geometry: Geometry
    transpose: Shape3
    box: Box
    scan_spacing: Spacing3
    network_spacing: Spacing3
    network_shape: Shape3
    flip: tuple[int, ...] = ()

    @property
    def cropped_shape(self) -> Shape3:
        """Shape of the box."""
        z, y, x = (stop - start for start, stop in self.box)
        return (z, y, x)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index into a transposed array."""
        z, y, x = (slice(start, stop) for start, stop in self.box)
        return (z, y, x)

    def box_of(self, scan_zyx: NDArray[Any]) -> NDArray[Any]:
        """What the network sees of an array on the scan's grid, `[Z,Y,X]`, before it is resampled.

        Returns:
            A view `[*cropped_shape]`: transposed, cropped, turned round. What is written to it lands in the scan's
            place.
        """
        view: NDArray[Any] = scan_zyx.transpose(self.transpose)[self.slices]
        turned: NDArray[Any] = view[tuple(slice(None, None, -1 if axis in self.flip else 1) for axis in range(3))]
        return turned


def scan_frame(volume: Volume, recipe: Recipe) -> ScanFrame:
    """Find the box and the network grid of a scan; cheap compared to `prepare`.

    A caller sees `network_shape`, and so the memory that the work will take, beforehand.

    Args:
        volume: the scan.
        recipe: of the bundle.

    Raises:
        ScanError: the scan has another number of channels than the model, or along an axis too few voxels to
            leave one on the network's grid, or voxels far larger than the network's.
    """
    channels = volume.channels_czyx
    expected = len(recipe.channels)
    if len(channels) != expected:
        names = ", ".join(channel.name for channel in recipe.channels)
        raise ScanError(f"the scan has {len(channels)} channels, the model expects {expected} ({names}); give it those")
    grid = recipe.grid
    scan_box = nonzero_box(channels) if grid.crop == "nonzero" else _whole(channels)
    box = cast(Box, tuple(scan_box[old] for old in grid.transpose))
    z, y, x = (volume.geometry.spacing_zyx[old] for old in grid.transpose)
    shape, spacing = _network_grid(box, (z, y, x), grid)
    return ScanFrame(
        geometry=volume.geometry,
        transpose=grid.transpose,
        box=box,
        scan_spacing=(z, y, x),
        network_spacing=spacing,
        network_shape=shape,
        flip=grid.flip,
    )


def _network_grid(box: Box, spacing: Spacing3, grid: Grid) -> tuple[Shape3, Spacing3]:
    """Shape and spacing (mm) of the network's grid, from those of the box; all in transposed order."""
    sizes = [stop - start for start, stop in box]
    longest = max((size for size, to in zip(sizes, grid.size, strict=True) if isinstance(to, Longest)), default=0)
    axes = list(zip(sizes, spacing, grid.size, strict=True))
    z, y, x = (_network_axis(size, mm, to, longest) for size, mm, to in axes)
    dz, dy, dx = (
        to.mm if isinstance(to, Spacing) else mm * size / new
        for (size, mm, to), new in zip(axes, (z, y, x), strict=True)
    )
    return (z, y, x), (dz, dy, dx)


def _network_axis(size: int, mm: float, to: AxisSize, longest: int) -> int:
    """Voxels that an axis of `size` voxels of `mm` gets on the network's grid."""
    if isinstance(to, Spacing):
        return _at_spacing(size, mm, to.mm)
    if isinstance(to, Count):
        return to.voxels
    if isinstance(to, Longest):
        return _in_proportion(size, to.voxels, longest)
    return size


def _at_spacing(size: int, mm: float, target: float) -> int:
    """Voxels of one axis at the network's spacing: rounds half to even, in nnU-Net's order of operations."""
    if mm > _MOST_STRETCH * target:
        raise ScanError(
            f"the scan has voxels of {mm:.4g} mm along an axis that the model samples every {target:.4g} mm, "
            f"expected at most {_MOST_STRETCH * target:.4g} mm; check the header's spacing"
        )
    resized = round(mm / target * size)
    if resized < 1:
        raise ScanError(
            f"the scan covers {size * mm:.4g} mm along an axis that the model samples every {target:.4g} mm; "
            "give the whole volume, or check the spacing"
        )
    return resized


def _in_proportion(size: int, voxels: int, longest: int) -> int:
    """Voxels of an axis where the longest gets `voxels`: rounds half up, in SAM's order of operations."""
    resized = int(size * (voxels / longest) + 0.5)
    if resized < 1:
        raise ScanError(
            f"the scan has {size} voxels along one axis and {longest} along another, which the model shrinks to "
            f"{voxels}: none of the {size} would be left; give the whole volume"
        )
    return resized


def _whole(channels: Array) -> Box:
    z, y, x = ((0, size) for size in channels.shape[1:])
    return (z, y, x)


def nonzero_box(channels: Array) -> Box:
    """The half-open bounding box, per scan axis, of the voxels of `[C,Z,Y,X]` where any channel is not zero.

    NaN counts as nonzero; an all-zero scan keeps its full box. nnU-Net fills the holes of this mask first,
    which cannot change its bounding box.
    """
    _, depth, height, width = channels.shape
    planes = np.zeros(depth, bool)
    rows = np.zeros(height, bool)
    columns = np.zeros(width, bool)
    for z in range(depth):
        mask = (channels[:, z] != 0).any(axis=0)
        in_rows = mask.any(axis=1)
        planes[z] = in_rows.any()
        rows |= in_rows
        columns |= mask.any(axis=0)
    if not planes.any():
        return _whole(channels)
    return (_extent(planes), _extent(rows), _extent(columns))


def _extent(occupied: NDArray[np.bool_]) -> tuple[int, int]:
    inside = np.flatnonzero(occupied)
    return int(inside[0]), int(inside[-1]) + 1
