"""Scaled NIfTI voxels: bit by bit what ITK computes, and refused where other readers compute something else."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.io.itk import open_itk_file

TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


def write(path: Path, stored: NDArray[np.generic], slope: float, intercept: float, order: str = "<") -> Path:
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(stored.dtype)
    raw = bytearray(nibabel.Nifti1Image(stored, np.diag([-2.0, -2.0, 2.0, 1.0]), header).to_bytes())
    struct.pack_into(f"{order}2f", raw, 112, slope, intercept)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def read(path: Path) -> NDArray[np.float32]:
    channel = open_itk_file(path)
    values = np.empty(channel.geometry.shape_zyx, np.float32)
    channel.read_into(values)
    return values


numbers = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.1, 1 / 3, 1e-6, 1e-15, -1024.0, 65536.0, 1e7])


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(TYPES),
    order=st.sampled_from("<>"),
    slope=numbers.filter(lambda v: abs(v) > 1e-15),
    intercept=numbers,
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    seed=st.integers(0, 999),
)
def test_scaled_voxels_are_what_itk_computes(
    kind: str, order: str, slope: float, intercept: float, suffix: str, seed: int
) -> None:
    bits = np.random.default_rng(seed).integers(0, 66 if kind[0] == "f" else 256, (3, 4, 5, 8), dtype=np.uint8)
    stored = bits[..., : int(kind[1])].copy().view(order + kind)[..., 0]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / f"scan{suffix}", stored, slope, intercept, order)
        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
        others = np.asarray(nibabel.load(path).dataobj).T
        try:
            values = read(path)
        except ScanError as error:
            assert "readers compute differently" in str(error)
            assert not np.allclose(expected, others, rtol=5e-6, atol=0)
            return
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(values, others, rtol=2e-5, atol=1e-5 * abs(intercept) + 1e-37)


@pytest.mark.parametrize("kind", ["i4", "u4", "i8", "u8"])
def test_wide_integers_whose_intercept_cancels_them_are_refused(tmp_path: Path, kind: str) -> None:
    """ITK rounds them to float32 first and loses what is left."""
    stored = np.full((3, 4, 5), 2**25 + 1, kind)
    path = write(tmp_path / "scan.nii", stored, 1.0, -float(2**25))
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).max() == 0
    assert np.asarray(nibabel.load(path).dataobj).max() == 1
    with pytest.raises(ScanError, match="readers compute differently"):
        read(path)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("slope", "intercept"), [(0, 0), (1, 0), (np.nan, 0), (np.nan, np.nan), (0, np.nan), (-0.0, 0)]
)
def test_no_scaling_gives_what_is_stored(tmp_path: Path, kind: str, slope: float, intercept: float) -> None:
    stored = np.arange(60).reshape(3, 4, 5).astype(kind)
    np.testing.assert_array_equal(read(write(tmp_path / "scan.nii", stored, slope, intercept)), stored.T)


def test_a_stored_value_that_is_not_finite_is_refused_whatever_the_scaling(tmp_path: Path) -> None:
    stored = np.ones((3, 4, 5), np.float32)
    stored[1, 2, 3] = np.nan
    with pytest.raises(ScanError, match="found 1 voxels that are NaN"):
        read(write(tmp_path / "scan.nii", stored, 2.0, 1.0))


def test_compressed_files_end_where_their_voxels_do(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii", np.ones((3, 4, 5), np.int16), 2.0, 0.0)
    raw, path = path.read_bytes(), tmp_path / "scan.nii.gz"
    whole = gzip.compress(raw)
    for good in (whole, gzip.compress(raw[:100]) + gzip.compress(raw[100:]), whole + bytes(7), raw):
        path.write_bytes(good)
        np.testing.assert_array_equal(read(path), 2.0)
    for bad in (
        whole + b"x",
        whole + gzip.compress(b"x"),
        whole[:-1],
        whole[:-8] + bytes(8),
        gzip.compress(raw + b"x"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ScanError):
            read(path)


def test_an_offset_far_behind_the_header_takes_no_memory(tmp_path: Path) -> None:
    raw = bytearray(write(tmp_path / "scan.nii", np.ones((3, 4, 5), np.int16), 0.0, 0.0).read_bytes())
    struct.pack_into("<f", raw, 108, 3_000_000)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(raw[:352] + bytes(3_000_000 - 352) + raw[352:]))
    np.testing.assert_array_equal(read(path), 1)
