"""From a scan to network input: nnU-Net v2.5.1's DefaultPreprocessor, and what is needed to go back.

The order is the training one: transpose, crop to nonzero, normalise, resample. Everything here happens on the
transposed axes; only `ScanFrame` knows how they relate to the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.errors import BundleError, ScanError
from masksam_deploy.base.threads import Team
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.bundle.manifest import Normalization, Preprocessing
from masksam_deploy.scan_path.resample import Shape3, Spacing3, resample_volume, resampler

Box: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_TOO_LARGE = (
    "the scan has intensities too large to normalise in float32; expected a scan in its usual units, rescale it"
)
# Slices of 10 mm for a model at 0.5 mm are 20 times as coarse. Beyond that a wrong header is more likely, and the
# network grid would take terabytes.
_MOST_STRETCH = 25
SMALLEST_DIVISOR = 1e-8  # nnU-Net's guard against dividing by a standard deviation of zero


@dataclass(frozen=True)
class ScanFrame:
    """How the network grid of one scan relates to the scan's own grid.

    Attributes:
        geometry: the grid of the scan.
        transpose: transposed axis i is scan array axis `transpose[i]` (axes z, y, x).
        box: per transposed axis the half-open range that is not all zero; the network sees only this part.
        scan_spacing: spacing of the scan in mm, transposed order.
        network_spacing: spacing the network was trained at in mm, transposed order.
        network_shape: shape of one channel of the network input before any padding to the patch.
    """

    geometry: Geometry
    transpose: Shape3
    box: Box
    scan_spacing: Spacing3
    network_spacing: Spacing3
    network_shape: Shape3

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


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """Network input `[C, *frame.network_shape]`, float32, and the way back to the scan."""

    data: NDArray[np.float32]
    frame: ScanFrame


def scan_frame(volume: Volume, spec: Preprocessing) -> ScanFrame:
    """Find the nonzero box and the network grid of a scan; cheap compared to `preprocess`.

    Lets a caller see `network_shape`, and so the memory that the work will take, beforehand.

    Raises:
        ScanError: the scan has another number of channels than the model, or along an axis too few voxels to
            leave one at the network's spacing, or voxels far larger than it.
        BundleError: the bundle normalises another number of channels than it names.
    """
    channels = volume.channels_czyx
    expected = len(spec.channel_names)
    if len(channels) != expected:
        names = ", ".join(spec.channel_names)
        raise ScanError(f"the scan has {len(channels)} channels, the model expects {expected} ({names}); give it those")
    if len(spec.normalization) != expected:
        raise BundleError(
            f"the bundle has {len(spec.normalization)} normalisations, expected {expected}; export it again"
        )
    scan_box = nonzero_box(channels)
    spacing = volume.geometry.spacing_zyx
    z, y, x = (_network_axis(scan_box[old], spacing[old], new, spec) for new, old in _axes(spec))
    return ScanFrame(
        geometry=volume.geometry,
        transpose=spec.transpose_forward,
        box=cast(Box, tuple(scan_box[old] for _, old in _axes(spec))),
        scan_spacing=cast(Spacing3, tuple(spacing[old] for _, old in _axes(spec))),
        network_spacing=spec.spacing,
        network_shape=(z, y, x),
    )


def _axes(spec: Preprocessing) -> list[tuple[int, int]]:
    """Pairs of transposed axis and scan axis."""
    return list(enumerate(spec.transpose_forward))


def _network_axis(extent: tuple[int, int], spacing: float, axis: int, spec: Preprocessing) -> int:
    """Voxels of one axis at the network's spacing: rounds half to even, in nnU-Net's order of operations."""
    size = extent[1] - extent[0]
    target = spec.spacing[axis]
    if spacing > _MOST_STRETCH * target:
        raise ScanError(
            f"the scan has voxels of {spacing:.4g} mm along an axis that the model samples every {target:.4g} mm, "
            f"expected at most {_MOST_STRETCH * target:.4g} mm; check the header's spacing"
        )
    resized = round(spacing / target * size)
    if resized < 1:
        raise ScanError(
            f"the scan covers {size * spacing:.4g} mm along an axis that the model samples every {target:.4g} mm; "
            "give the whole volume, or check the spacing"
        )
    return resized


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
        return ((0, depth), (0, height), (0, width))
    return (_extent(planes), _extent(rows), _extent(columns))


def _extent(occupied: NDArray[np.bool_]) -> tuple[int, int]:
    inside = np.flatnonzero(occupied)
    return int(inside[0]), int(inside[-1]) + 1


def preprocess(
    volume: Volume, spec: Preprocessing, frame: ScanFrame | None = None, *, threads: int = 1
) -> Preprocessed:
    """Turn a scan into network input.

    Args:
        volume: the scan, intensities as stored in the file; its array is not modified.
        spec: the bundle's preprocessing.
        frame: `scan_frame(volume, spec)` if already known.
        threads: at least 1; the result does not depend on it.

    Returns:
        float32 data `[C, *network shape]`, not yet padded to the patch, and the way back.

    Raises:
        ScanError: wrong number of channels, intensities that are not finite real numbers (or not 0..255 for RGBTo01),
            or a grid that `scan_frame` refuses.
        BundleError: an unusable normalisation.
    """
    frame = frame or scan_frame(volume, spec)
    plan = resampler(
        frame.cropped_shape,
        frame.network_shape,
        frame.scan_spacing,
        frame.network_spacing,
        spec.resample_data,
    )
    mask = None
    if any(scheme.use_mask and scheme.scheme == "ZScoreNormalization" for scheme in spec.normalization):
        mask = _filled_mask(volume.channels_czyx, frame)
    data = np.empty((len(spec.channel_names), *frame.network_shape), np.float32)
    with Team(threads) as team:
        for index, scheme in enumerate(spec.normalization):
            # The reductions below must see the strides of a whole float32 scan: see _zscore.
            channel = _float32_channel(volume.channels_czyx[index], spec.channel_names[index])
            cropped = channel.transpose(frame.transpose)[frame.slices]
            normalised = data[index] if plan.is_identity else np.empty(frame.cropped_shape, np.float32)
            # A finite scan can still overflow here (intensities near 1e38): reported below, not warned about.
            with np.errstate(over="ignore", invalid="ignore"):
                normalise(cropped, scheme, mask, out=normalised)
            if not _is_finite(normalised):
                raise ScanError(_TOO_LARGE)
            if not plan.is_identity:
                resample_volume(normalised, plan, out=data[index], team=team)
    return Preprocessed(data, frame)


def _float32_channel(channel: Array, name: str) -> NDArray[np.float32]:
    # NumPy only warns when it drops an imaginary part.
    if channel.dtype.kind not in "biuf":
        raise ScanError(f"channel '{name}' holds {channel.dtype} values, expected real numbers; convert them first")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(channel, dtype=np.float32)
    if not _is_finite(converted):
        raise ScanError(
            f"channel '{name}' holds NaN, infinite or too large intensities; expected finite float32 "
            "numbers, repair the scan"
        )
    return converted


def _is_finite(array: NDArray[np.float32]) -> bool:
    """Whether all numbers are finite, without a temporary of the array's size (NaN wins min and max)."""
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def _filled_mask(channels: Array, frame: ScanFrame) -> NDArray[np.bool_]:
    """The nonzero mask inside the box, transposed, its holes filled.

    A hole is background that no path through voxel faces joins to the outside (`scipy.ndimage`'s
    `binary_fill_holes`). Filling the box alone equals filling the whole scan: around the box all is outside.
    """
    background = np.empty(channels.shape[1:], np.uint8)
    for z in range(len(background)):
        background[z] = (channels[:, z] == 0).all(axis=0)
    inside = background.transpose(frame.transpose)[frame.slices]
    # A rim of background joins everything outside; one flood from its corner finds it. (SimpleITK's
    # BinaryFillhole gives the same, but needs minutes and gigabytes where noise leaves many holes.)
    image = SimpleITK.GetImageFromArray(np.pad(inside, 1, constant_values=1))
    outside = SimpleITK.ConnectedThreshold(image, seedList=[(0, 0, 0)], lower=1, upper=1, replaceValue=1)
    filled = SimpleITK.GetArrayViewFromImage(outside)[1:-1, 1:-1, 1:-1] == 0
    return cast(NDArray[np.bool_], filled)


def normalise(
    cropped: NDArray[np.float32],
    spec: Normalization,
    mask: NDArray[np.bool_] | None,
    out: NDArray[np.float32],
) -> None:
    """Normalise one channel into `out`, in float32 as nnU-Net's intensity normalisers.

    Args:
        cropped: raw intensities `[D,H,W]`; may be a view, whose strides matter to the last bit.
        spec: the scheme and its constants.
        mask: the filled nonzero mask `[D,H,W]`; only read by a z-score with `use_mask`.
        out: float32 `[D,H,W]`, written.

    Raises:
        ScanError: RGBTo01 with intensities outside 0..255.
        BundleError: CT without its constants.
    """
    if spec.scheme == "ZScoreNormalization":
        _zscore(cropped, mask if spec.use_mask else None, out)
    elif spec.scheme == "CTNormalization":
        _ct(cropped, spec, out)
    elif spec.scheme == "RescaleTo01Normalization":
        np.subtract(cropped, cropped.min(), out=out)
        out /= max(out.max(), SMALLEST_DIVISOR)
    elif spec.scheme == "RGBTo01Normalization":
        low, high = cropped.min(), cropped.max()
        if low < 0 or high > 255:
            raise ScanError(f"RGB intensities range from {low:g} to {high:g}, expected 0..255; convert the scan")
        np.divide(cropped, 255.0, out=out)
    else:
        out[...] = cropped


def _zscore(cropped: NDArray[np.float32], mask: NDArray[np.bool_] | None, out: NDArray[np.float32]) -> None:
    """(v - mean) / max(std, 1e-8), population std.

    NumPy's float32 sums depend on the memory layout in their last bits. nnU-Net reduces the transposed and
    cropped view of the whole scan, so `cropped` is such a view and must not be copied first.
    """
    if mask is None:
        mean, divisor = _mean_and_divisor(cropped)
        np.subtract(cropped, mean, out=out)
        out /= divisor
        return
    if not mask.any():
        out[...] = cropped
        return
    inside = cropped[mask]
    mean, divisor = _mean_and_divisor(inside)
    del inside  # a copy of the scan, no longer needed
    out[...] = cropped
    np.subtract(out, mean, out=out, where=mask)
    np.divide(out, divisor, out=out, where=mask)


def _mean_and_divisor(values: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    mean, std = values.mean(), values.std()
    # Squares overflow above 1e19; dividing by an infinite std would quietly make everything 0.
    if not (np.isfinite(mean) and np.isfinite(std)):
        raise ScanError(_TOO_LARGE)
    return mean, np.maximum(std, np.float32(SMALLEST_DIVISOR))


def _ct(cropped: NDArray[np.float32], spec: Normalization, out: NDArray[np.float32]) -> None:
    if spec.lower is None or spec.upper is None or spec.mean is None or spec.std is None:
        raise BundleError("CTNormalization lacks some of lower, upper, mean, std; export the bundle again")
    divisor = max(spec.std, SMALLEST_DIVISOR)
    for plane, normalised in zip(cropped, out, strict=True):  # one that stays in the cache
        np.clip(plane, spec.lower, spec.upper, out=normalised)
        np.subtract(normalised, spec.mean, out=normalised)
        np.divide(normalised, divisor, out=normalised)
