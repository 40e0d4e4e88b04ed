"""NRRD and MetaImage files: a text header, then voxels or the name of the file that holds them."""

from __future__ import annotations

from pathlib import Path

from masksam_deploy.base.volume import Array
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.grid import check_grid
from masksam_deploy.io.header_text import TextHeader
from masksam_deploy.io.itk_header import check_same_place, check_same_voxels, itk_reading
from masksam_deploy.io.meta_image import read_meta_header
from masksam_deploy.io.nrrd import read_nrrd_header
from masksam_deploy.io.voxel_stream import check_stored_size, read_voxels

__all__ = ["open_text_headed", "read_meta_header", "read_nrrd_header"]


def open_text_headed(path: Path, suffix: str, what: str) -> Channel:
    """Read the header of one file; its voxels come with `Channel.read_into`.

    Args:
        path: the header.
        suffix: `.nrrd`, `.nhdr`, `.mha` or `.mhd`.
        what: what messages call it.

    Raises:
        ScanError: not a 3D scan of real numbers on a plausible grid.
        OSError: the file, or the one with its voxels, cannot be read.
    """
    is_nrrd = suffix in (".nrrd", ".nhdr")
    header: TextHeader = (read_nrrd_header if is_nrrd else read_meta_header)(path, what)
    check_grid(header.geometry, what)
    check_stored_size(header.voxels, what)
    itk = itk_reading(header.for_itk, ".nrrd" if is_nrrd else ".mha", what)
    check_same_voxels(itk, header.geometry.size_xyz, header.voxels.voxel_type, what)
    check_same_place(itk, header.geometry, what)

    def read_into(out: Array) -> None:
        read_voxels(header.voxels, out, what)

    return Channel(what, itk.geometry, read_into)
