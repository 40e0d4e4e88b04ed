"""One channel of a scan whose header has been read and whose voxels have not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from masksam_deploy.base.volume import Array, Geometry


@dataclass(frozen=True)
class Channel:
    """A checked grid and the way to its voxels.

    Attributes:
        name: the file or folder, as shown in messages.
        geometry: where the voxels lie.
        read_into: fills a C-contiguous array `[Z, Y, X]` (float32 for scans); raises `ScanError` on damaged data.
        warnings: what a reader of the scan should know though it is accepted, one sentence each.
    """

    name: str
    geometry: Geometry
    read_into: Callable[[Array], None]
    warnings: tuple[str, ...] = ()
