"""Opening one scan in this process: which reader it is for, and what is no scan at all."""

from __future__ import annotations

import os
from pathlib import Path

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import NOT_UTF8, is_utf8, one_line, shown
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.dicom import is_dicom_file, open_dicom_series
from masksam_deploy.io.itk import open_itk_file, scan_suffix


def open_channel(path: Path) -> Channel:
    """Read and judge the headers of a file or of a DICOM folder; the voxels are read later, by the channel.

    A hostile file may crash the process or take all its memory: `isolation` has a worker call this.

    Raises:
        ScanError: it cannot be read, or not safely.
    """
    name = shown(path)
    if not is_utf8(path):
        raise ScanError(f"{name}: {NOT_UTF8}")
    try:
        if path.is_dir():
            return open_dicom_series(path)
        _check_file(path, name)
        if scan_suffix(path) is None and (is_dicom_file(path) or path.suffix.lower() == ".dcm"):
            raise ScanError(
                f"{name}: found one DICOM file, expected the folder of its series; give {shown(path.parent)}"
            )
        return open_itk_file(path)
    except OSError as error:
        raise unreadable(name, error) from error


def unreadable(name: str, error: OSError) -> ScanError:
    """What to say about a scan that the system refuses to read."""
    # In a folder, or of a header and its voxels, one file may be the unreadable one.
    where = shown(error.filename) if isinstance(error.filename, (str, Path)) else name
    return ScanError(
        f"{where}: cannot be read: {one_line(error.strerror or str(error))}; check the path and permissions"
    )


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        if os.path.lexists(path):
            raise ScanError(f"{name}: found a link that leads nowhere, expected a scan; correct the link")
        raise ScanError(f"{name}: found no such file, expected a scan; check the path")
    if not path.is_file():
        raise ScanError(f"{name}: found neither a file nor a folder, expected a scan; check the path")
    if path.stat().st_size == 0:
        raise ScanError(f"{name}: found an empty file, expected a scan; copy it again")
