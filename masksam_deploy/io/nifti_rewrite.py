"""Stating both forms of a scan in a NIfTI file that ITK wrote with one form twice."""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path

from masksam_deploy.base.volume import NiftiForms
from masksam_deploy.io.nifti_forms import put_forms
from masksam_deploy.io.nifti_header import HEADER_BYTES


def is_nifti(path: Path) -> bool:
    """Whether the name tells a NIfTI file."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def state_forms(path: Path, forms: NiftiForms) -> None:
    """Write both forms into the header of a `.nii` or `.nii.gz` file; sizes, voxel sizes and voxels stay.

    Raises:
        OSError: the disk is full, or the file is not whole.
        EOFError, zlib.error: the compressed file is not whole.
        struct.error, OverflowError: a number is beyond what the header holds.
    """
    if not path.name.lower().endswith(".gz"):
        with path.open("r+b") as plain:
            header = _with_forms(plain.read(HEADER_BYTES), forms)
            plain.seek(0)
            plain.write(header)
        return
    # Compressed in memory: a label map takes a small part of what the scan takes.
    whole = io.BytesIO(path.read_bytes())
    with (
        gzip.GzipFile(fileobj=whole) as source,
        path.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as target,
    ):
        target.write(_with_forms(source.read(HEADER_BYTES), forms))
        shutil.copyfileobj(source, target, 1 << 20)


def _with_forms(header: bytes, forms: NiftiForms) -> bytes:
    if len(header) < HEADER_BYTES:
        raise EOFError("the file breaks off in its header")
    changed = bytearray(header)
    put_forms(changed, forms)
    return bytes(changed)
