"""NIfTI, NRRD and MetaImage files, on the grid that ITK reads in their headers."""

from __future__ import annotations

from pathlib import Path

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import shown
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.itk_header import quiet_itk
from masksam_deploy.io.nifti import open_nifti
from masksam_deploy.io.text_header import open_text_headed

__all__ = ["SCAN_SUFFIXES", "open_itk_file", "quiet_itk", "scan_suffix"]

SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def open_itk_file(path: Path, name: str | None = None) -> Channel:
    """Read the header of one file; its voxels come with `Channel.read_into`. Messages say `name` or the path.

    Raises:
        ScanError: the file is not a 3D scan of real numbers on a plausible grid.
        OSError: the file cannot be read.
    """
    what = name or shown(path)
    suffix = scan_suffix(path)
    if suffix is None:
        raise ScanError(f"{what}: found an unknown file type, expected one of {', '.join(SCAN_SUFFIXES)}; convert it")
    if suffix in (".nii", ".nii.gz"):
        return open_nifti(path, what)
    return open_text_headed(path, suffix, what)


def scan_suffix(path: Path) -> str | None:
    """The suffix that tells the format, in lower case, or None."""
    name = path.name.lower()
    return next((suffix for suffix in SCAN_SUFFIXES if name.endswith(suffix)), None)
