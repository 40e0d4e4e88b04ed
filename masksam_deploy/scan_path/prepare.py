"""From a scan to network input, as the recipe says: crop, change intensities, resample, change intensities.

Everything here happens on the transposed axes; only `ScanFrame` knows how they relate to the scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.threads import Team
from masksam_deploy.base.volume import Array, Volume
from masksam_deploy.bundle.recipe import Channel, Recipe
from masksam_deploy.scan_path.frame import ScanFrame, scan_frame
from masksam_deploy.scan_path.intensities import Mask, all_finite, apply_steps, needs_mask
from masksam_deploy.scan_path.resample import Resampler, resample_volume, resampler


@dataclass(frozen=True, eq=False)
class Prepared:
    """Network input `[C, *frame.network_shape]`, float32, and the way back to the scan."""

    data: NDArray[np.float32]
    frame: ScanFrame


def prepare(volume: Volume, recipe: Recipe, frame: ScanFrame | None = None, *, threads: int = 1) -> Prepared:
    """Turn a scan into network input.

    Args:
        volume: the scan, intensities as stored in the file; its array is not modified.
        recipe: of the bundle.
        frame: `scan_frame(volume, recipe)` if already known.
        threads: at least 1; the result does not depend on it.

    Returns:
        float32 data `[C, *network shape]`, not yet cut into windows, and the way back.

    Raises:
        ScanError: wrong number of channels, intensities that are not finite real numbers or not those that the recipe
            expects, or a grid that `scan_frame` refuses.
    """
    frame = frame or scan_frame(volume, recipe)
    plan = resampler(
        frame.cropped_shape,
        frame.network_shape,
        frame.scan_spacing,
        frame.network_spacing,
        recipe.grid.resampling,
    )
    mask = None
    if any(needs_mask(channel) for channel in recipe.channels):
        mask = _filled_mask(volume.channels_czyx, frame)
    data = np.empty((len(recipe.channels), *frame.network_shape), np.float32)
    with Team(threads) as team:
        for stored, channel, out in zip(volume.channels_czyx, recipe.channels, data, strict=True):
            # The steps must see the strides of a whole float32 scan: see `apply_steps`.
            cropped = frame.box_of(_float32_channel(stored, channel.name))
            _prepare_channel(cropped, channel, mask, plan, out, team)
    return Prepared(data, frame)


def _prepare_channel(
    cropped: NDArray[np.float32],
    channel: Channel,
    mask: Mask | None,
    plan: Resampler,
    out: NDArray[np.float32],
    team: Team,
) -> None:
    """Write one channel to `out`, on the network's grid."""
    if plan.is_identity:
        apply_steps(channel.before, cropped, out, mask)
    else:
        changed = np.empty(cropped.shape, np.float32)
        apply_steps(channel.before, cropped, changed, mask)
        resample_volume(changed, plan, out=out, team=team)
    if channel.after:
        apply_steps(channel.after, out, out)


def _float32_channel(channel: Array, name: str) -> NDArray[np.float32]:
    # NumPy only warns when it drops an imaginary part.
    if channel.dtype.kind not in "biuf":
        raise ScanError(f"channel '{name}' holds {channel.dtype} values, expected real numbers; convert them first")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(channel, dtype=np.float32)
    if not all_finite(converted):
        raise ScanError(
            f"channel '{name}' holds NaN, infinite or too large intensities; expected finite float32 "
            "numbers, repair the scan"
        )
    return converted


def _filled_mask(channels: Array, frame: ScanFrame) -> Mask:
    """The nonzero mask inside the box, on the box's axes, its holes filled.

    A hole is background that no path through voxel faces joins to the outside (`scipy.ndimage`'s
    `binary_fill_holes`). Filling the box alone equals filling the whole scan: around the box all is outside.
    """
    background = np.empty(channels.shape[1:], np.uint8)
    for z in range(len(background)):
        background[z] = (channels[:, z] == 0).all(axis=0)
    inside = frame.box_of(background)
    # A rim of background joins everything outside; one flood from its corner finds it. (SimpleITK's
    # BinaryFillhole gives the same, but needs minutes and gigabytes where noise leaves many holes.)
    image = SimpleITK.GetImageFromArray(np.pad(inside, 1, constant_values=1))
    outside = SimpleITK.ConnectedThreshold(image, seedList=[(0, 0, 0)], lower=1, upper=1, replaceValue=1)
    filled = SimpleITK.GetArrayViewFromImage(outside)[1:-1, 1:-1, 1:-1] == 0
    return cast(Mask, filled)
