"""Real NIfTI and NRRD files: values, orientation, and what is refused."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import MemoryLimitError, ScanError
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io import read_volume
from masksam_deploy.io.itk import open_itk_file

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_of(geometry: Geometry) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(geometry.direction_lps, (3, 3)) * geometry.spacing_xyz
    affine[:3, 3] = geometry.origin_lps
    return affine


def refusal(path: Path | list[Path]) -> str:
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "/tmp/SimpleITK" not in message
    return message


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("nibabel_anatomical.nii", "LAS"),
        ("monai_anatomical_label.nii.gz", "LAS"),
        ("PIL_axes_dicom2nifti_001.nii.gz", "PIL"),
        ("nibabel_reoriented_anat_moved.nii", "RAS"),
        ("nreader_with_extension.nii.gz", "LPI"),
    ],
)
def test_values_and_orientation_of_real_nifti_agree_with_nibabel(data: Path, name: str, axes: str) -> None:
    volume = read_volume(data / "nifti" / name)
    image = nibabel.load(data / "nifti" / name)
    assert "".join(nibabel.aff2axcodes(image.affine)) == axes
    values = np.asarray(image.dataobj).squeeze().T
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    # Both compute int16 * slope + intercept, ITK in double, then float32.
    np.testing.assert_allclose(volume.array[0], values, rtol=1e-6, atol=1e-6)
    # The header holds float32 at up to 200 mm.
    np.testing.assert_allclose(affine_of(volume.geometry), LPS_FROM_RAS @ image.affine, atol=2e-4)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"]),
    order=st.sampled_from("<>"),
    scaling=st.sampled_from([(0.0, 0.0), (1.0, 0.0), (np.nan, np.nan), (1.0, 5.0), (2.5, 0.0), (np.nan, 0.0)]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 999),
)
def test_nifti_voxels_are_what_itk_reads(
    kind: str, order: str, scaling: tuple[float, float], suffix: str, size: tuple[int, int, int], seed: int
) -> None:
    # Any integers; doubles up to 1e31, so that float32 holds them.
    bits = np.random.default_rng(seed).integers(0, 70 if kind[0] == "f" else 256, (*size, 8), dtype=np.uint8)
    stored = bits[..., : int(kind[1])].copy().view(order + kind)[..., 0]
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(order + kind)
    raw = bytearray(nibabel.Nifti1Image(stored, np.diag([-2.0, -2.0, 2.0, 1.0]), header).to_bytes())
    struct.pack_into(f"{order}2f", raw, 112, *scaling)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        path.write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
        expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).astype(np.float32)
        np.testing.assert_array_equal(read_volume(path).array[0], expected)


def test_nifti_scaling_is_applied_to_big_endian_integers(data: Path, tmp_path: Path) -> None:
    raw = bytearray((data / "nifti" / "nibabel_anatomical.nii").read_bytes())
    struct.pack_into(">2f", raw, 112, 0.3, -1024.5)
    (tmp_path / "scan.nii").write_bytes(raw)
    expected = np.asarray(nibabel.load(tmp_path / "scan.nii").dataobj).T
    assert expected.min() < -1024
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").array[0], expected, rtol=1e-6, atol=1e-3)


def test_oblique_nifti_agrees_with_nibabel(data: Path, tmp_path: Path) -> None:
    first = nibabel.load(data / "nifti" / "nibabel_example4d.nii.gz").slicer[..., 0]
    nibabel.save(first, tmp_path / "first.nii.gz")
    volume = read_volume(tmp_path / "first.nii.gz")
    assert abs(volume.geometry.direction_lps[5]) > 0.1
    np.testing.assert_array_equal(volume.array[0], np.asarray(first.dataobj).T)
    np.testing.assert_allclose(affine_of(volume.geometry), LPS_FROM_RAS @ first.affine, atol=2e-4)


def test_geometry_is_exactly_that_of_itk(data: Path) -> None:
    path = data / "nifti" / "PIL_axes_dicom2nifti_001.nii.gz"
    geometry = read_volume(path).geometry
    image = SimpleITK.ReadImage(str(path))
    assert geometry.size_xyz == image.GetSize()
    assert geometry.spacing_xyz == image.GetSpacing()
    assert geometry.origin_lps == image.GetOrigin()
    assert geometry.direction_lps == image.GetDirection()


def test_nrrd_is_read_like_itk(data: Path) -> None:
    path = data / "nrrd" / "sparse_labelmap_ppv5_seg.nrrd"
    volume = read_volume(path)
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(volume.array[0], SimpleITK.GetArrayFromImage(image))
    assert volume.geometry.origin_lps == image.GetOrigin()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("nibabel_example4d.nii.gz", "4D image (128 x 96 x 24 x 2)"),
        ("nreader_5D_small.nii", "found 3 values per voxel (a colour or vector image), expected one"),
        ("nibabel_example_nifti2.nii.gz", "NIfTI-2"),
        ("nibabel_nifti1.hdr", "unknown file type"),
        ("nibabel_resampled_anat_moved.nii", "153 voxels that are NaN"),
        ("nreader_not-nifti.nii", "not NIfTI"),
        ("rgba32_dicom2nifti_001.nii.gz", "RGBA"),
    ],
)
def test_real_files_that_are_no_scan_are_refused_by_name_of_the_defect(data: Path, name: str, part: str) -> None:
    assert part in refusal(data / "nifti" / name)


def test_header_without_its_image_is_refused_even_under_another_suffix(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "nifti" / "nibabel_nifti1.hdr", tmp_path / "scan.nii")
    assert ".hdr/.img" in refusal(tmp_path / "scan.nii")


Edit = Callable[[bytearray], None]


def put(format_: str, offset: int, *values: float) -> Edit:
    return lambda raw: struct.pack_into(format_, raw, offset, *values)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (put(">f", 80, 0.0), "spacing of 0 x 2 x 2"),
        (put(">f", 84, float("nan")), "spacing of 2 x nan x 2"),
        (put(">f", 88, -2.0), "spacing of 2 x 2 x -2"),
        (put(">f", 80, 2000.0), "spacing of 2000"),
        (put(">2h", 252, 0, 0), "neither qform nor sform"),
        (put(">h", 46, 1), "size of 33 x 41 x 1"),
        (put(">h", 40, 2), "2D image"),
        (put(">h", 42, 0), "impossible dimensions"),
        (put(">h", 42, -5), "impossible dimensions"),
        (put(">h", 42, 66), "cut off"),
        (put(">3h", 42, 32000, 32000, 32000), "cut off"),
        (put(">h", 70, 32), "complex"),
        (put(">h", 70, 128), "RGB"),
        (put(">h", 70, 77), "unknown (code 77)"),
        (put("B", 123, 1), "millimetres"),
        (put(">f", 108, 1e9), "cut off"),
        (put(">f", 108, float("nan")), "voxel data offset"),
        (put(">f", 112, float("inf")), "infinite intensity scaling"),
        (put(">f", 280, float("nan")), "sform that is not finite"),
        (put(">f", 280, 2.0), "mirror images"),
        (put(">f", 292, float("inf")), "sform that is not finite"),
    ],
)
def test_a_header_that_itk_would_mend_or_believe_is_refused(data: Path, tmp_path: Path, edit: Edit, part: str) -> None:
    raw = bytearray((data / "nifti" / "nibabel_anatomical.nii").read_bytes())
    edit(raw)
    (tmp_path / "scan.nii").write_bytes(raw)
    assert part in refusal(tmp_path / "scan.nii")
    with gzip.open(tmp_path / "scan.nii.gz", "wb") as file:
        file.write(raw)
    assert part in refusal(tmp_path / "scan.nii.gz")


def nifti(path: Path, array: np.ndarray, sform: np.ndarray, qform: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(array, None)
    image.set_sform(sform, 1)
    image.set_qform(qform, 0 if qform is None else 1)
    nibabel.save(image, path)
    return path


def test_sheared_sform_is_refused_with_a_clear_message(tmp_path: Path) -> None:
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[0, 1] = 0.6
    path = nifti(tmp_path / "scan.nii", np.ones((4, 5, 6), np.float32), sheared)
    assert "sheared" in refusal(path)


def test_sform_whose_voxel_size_contradicts_pixdim_is_refused(tmp_path: Path) -> None:
    path = nifti(
        tmp_path / "scan.nii",
        np.ones((40, 50, 60), np.float32),
        np.diag([3.0, 2.0, 2.0, 1.0]),
        np.diag([2.0, -2.0, -2.0, 1.0]),
    )
    assert "contradict each other" in refusal(path)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">i2", ">f4"])
def test_every_scalar_type_becomes_float32(tmp_path: Path, dtype: str) -> None:
    array = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(array, np.eye(4), dtype=np.dtype(dtype))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], array.T)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_one_voxel_that_is_not_finite_is_refused(tmp_path: Path, bad: float, suffix: str) -> None:
    array = np.zeros((4, 5, 6), np.float32)
    array[3, 4, 5] = bad
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    assert "found 1 voxels that are NaN" in refusal(path)


def test_a_double_too_large_for_float32_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.full((3, 3, 3), 1e300)), str(path))
    assert "beyond float32" in refusal(path)


@pytest.mark.parametrize("suffix", [".NII", ".NII.GZ", ".NRRD", ".MHA"])
def test_suffixes_in_capitals_are_read(tmp_path: Path, suffix: str) -> None:
    lower = tmp_path / f"scan{suffix.lower()}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.int16)), str(lower))
    assert read_volume(lower.rename(tmp_path / f"scan{suffix}")).array.shape == (1, 3, 4, 5)


@pytest.mark.parametrize("suffix", [".Nii", ".nii.GZ", ".Nrrd", ".mHa"])
def test_suffixes_in_mixed_case_are_read_though_itk_cannot(tmp_path: Path, suffix: str) -> None:
    lower = tmp_path / f"scan{suffix.lower()}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.ones((3, 4, 5), np.int16)), str(lower))
    assert read_volume(lower.rename(tmp_path / f"scan{suffix}")).array.shape == (1, 3, 4, 5)


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (SimpleITK.Image([4, 5], SimpleITK.sitkInt16), "2D image"),
        (SimpleITK.Image([4, 5, 6, 2], SimpleITK.sitkInt16), "4D image"),
        (SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorUInt8, 3), "expected one"),
        (SimpleITK.Image([4, 5, 1], SimpleITK.sitkInt16), "size of 4 x 5 x 1"),
    ],
)
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_images_that_are_not_one_scalar_volume_are_refused(
    tmp_path: Path, image: SimpleITK.Image, part: str, suffix: str
) -> None:
    path = tmp_path / f"scan{suffix}"
    SimpleITK.WriteImage(image, str(path))
    assert part in refusal(path)


def test_a_trailing_axis_of_one_entry_is_dropped(tmp_path: Path) -> None:
    image = SimpleITK.Image([4, 5, 6, 1], SimpleITK.sitkInt16)
    image.SetSpacing([1.0, 2.0, 3.0, 7.0])
    SimpleITK.WriteImage(image, str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    assert volume.geometry.spacing_xyz == (1.0, 2.0, 3.0)
    assert volume.array.shape == (1, 6, 5, 4)


def test_detached_voxels_are_read_and_missed_when_absent(tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    for header, voxels in (("scan.mhd", "scan.raw"), ("scan.nhdr", "scan.raw")):
        SimpleITK.WriteImage(image, str(tmp_path / header))
        np.testing.assert_array_equal(read_volume(tmp_path / header).array.ravel(), np.arange(60))
        raw = (tmp_path / voxels).read_bytes()
        (tmp_path / voxels).write_bytes(raw[:-1])
        assert "cut off" in refusal(tmp_path / header)
        (tmp_path / voxels).unlink()
        assert "found no voxels" in refusal(tmp_path / header)


NRRD = (
    "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nspace: left-posterior-superior\n"
    "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (1,2,3)\n"
)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("space: left-posterior-superior\n", "", "found space 'none'"),
        ("left-posterior-superior", "scanner-xyz", "found space 'scanner-xyz'"),
        ("space directions: (1,0,0) (0,2,0) (0,0,3)\n", "", "no space directions"),
        ("(1,0,0)", "(1,0.5,0)", "sheared"),
        ("(1,0,0)", "(0,0,0)", "spacing"),
        ("encoding: raw", "encoding: bzip2", "encoding 'bzip2'"),
        ("encoding: raw", "encoding: raw\nbyte skip: 4", "byte skip"),
        ("type: uchar", 'type: uchar\nspace units: "cm" "cm" "cm"', "space units"),
        ("sizes: 4 5 6", "sizes: 4 5 2000000000000", "cut off"),
    ],
)
def test_nrrd_headers_that_itk_would_guess_from_are_refused(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "scan.nrrd"
    path.write_bytes(NRRD.encode() + b"\n" + bytes(120))
    assert read_volume(path).geometry.spacing_xyz == (1.0, 2.0, 3.0)
    assert old in NRRD
    path.write_bytes(NRRD.replace(old, new).encode() + b"\n" + bytes(120))
    assert part in refusal(path)


META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "DimSize = 4 5 6\nElementSpacing = 1 2 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("ElementSpacing = 1 2 3\n", "", "no ElementSpacing"),
        ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 -3", "spacing of 1 x 2 x -3"),
        ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 0", "spacing of 1 x 2 x 0"),
        ("NDims = 3", "NDims = 3\nTransformMatrix = 1 0.5 0 0 1 0 0 0 1", "sheared"),
        ("NDims = 3", "NDims = 3\nDistanceUnits = cm", "DistanceUnits"),
        ("DimSize = 4 5 6", "DimSize = 4 500000 2000000", "cut off"),
        ("LOCAL", "LIST", "several files"),
        ("ElementDataFile = LOCAL\n", "", "without ElementDataFile"),
    ],
)
def test_metaimage_headers_that_itk_would_guess_from_are_refused(tmp_path: Path, old: str, new: str, part: str) -> None:
    path = tmp_path / "scan.mha"
    path.write_bytes(META.encode() + bytes(120))
    assert read_volume(path).geometry.spacing_xyz == (1.0, 2.0, 3.0)
    assert old in META
    path.write_bytes(META.replace(old, new).encode() + bytes(120))
    assert part in refusal(path)


def test_paths_that_hold_no_scan_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.nii.gz")
    assert "no such file" in refusal(tmp_path / "line\nbreak.nii.gz")
    (tmp_path / "empty.nii.gz").touch()
    assert "empty file" in refusal(tmp_path / "empty.nii.gz")
    (tmp_path / "notes.txt").write_text("hello")
    assert "unknown file type" in refusal(tmp_path / "notes.txt")
    (tmp_path / "folder.nii").mkdir()
    assert "no DICOM" in refusal(tmp_path / "folder.nii")
    assert "no files" in refusal([])


def write_channel(path: Path, value: float = 0, /, **geometry: tuple[float, ...]) -> Path:
    image = SimpleITK.GetImageFromArray(np.full((3, 4, 5), value, np.int16))
    image.SetSpacing(geometry.get("spacing", (1.0, 1.0, 1.0)))
    image.SetOrigin(geometry.get("origin", (0.0, 0.0, 0.0)))
    image.SetDirection(geometry.get("direction", (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))
    SimpleITK.WriteImage(image, str(path))
    return path


def test_channels_are_stacked_in_the_order_given(tmp_path: Path) -> None:
    paths = [write_channel(tmp_path / f"case_000{i}.nii.gz", i + 1) for i in range(3)]
    volume = read_volume([str(paths[2]), paths[0], paths[1]])
    assert volume.array.shape == (3, 3, 4, 5)
    assert volume.array.flags.c_contiguous
    assert volume.array[:, 0, 0, 0].tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"spacing": (1.0, 1.0, 1.1)}, "spacing 1 x 1 x 1.1"),
        ({"origin": (0.0, 0.0, 0.5)}, "0.5 mm off"),
        ({"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}, "mm off"),
    ],
)
def test_channels_on_different_grids_are_refused(
    tmp_path: Path, change: dict[str, tuple[float, ...]], part: str
) -> None:
    first = write_channel(tmp_path / "a_0000.nii.gz")
    second = write_channel(tmp_path / "a_0001.nii.gz", **change)
    assert part in refusal([first, second])


def test_channels_of_different_size_are_refused(data: Path, tmp_path: Path) -> None:
    first = write_channel(tmp_path / "a_0000.nii.gz")
    assert "found size" in refusal([first, data / "nifti" / "nibabel_anatomical.nii"])


def test_channels_that_differ_by_rounding_are_accepted(tmp_path: Path) -> None:
    first = write_channel(tmp_path / "a_0000.nii.gz")
    second = write_channel(tmp_path / "a_0001.nii.gz", origin=(1e-4, 0.0, 0.0))
    assert read_volume([first, second]).array.shape == (2, 3, 4, 5)


def test_max_voxels_counts_all_channels_and_is_asked_before_voxels_are_read(tmp_path: Path) -> None:
    first = write_channel(tmp_path / "a_0000.nii.gz")
    assert read_volume([first, first], max_voxels=120).array.size == 120
    # With the end gone, reading voxels would fail in another way.
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(MemoryLimitError, match=r"found 120 voxels .* expected at most 119; crop"):
        read_volume([first, first], max_voxels=119)


def test_itk_warnings_stay_on_for_the_user_of_the_library(data: Path) -> None:
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(True)
    read_volume(data / "nifti" / "nibabel_anatomical.nii")
    assert SimpleITK.ProcessObject.GetGlobalWarningDisplay()


@pytest.mark.parametrize("axes", [(4, 5, 6, 2, 3), (4, 5, 6, 2)])
def test_several_volumes_are_not_called_a_colour_image(tmp_path: Path, axes: tuple[int, ...]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(axes, np.float32), np.eye(4)), tmp_path / "scan.nii")
    assert f"{len(axes)}D image" in refusal(tmp_path / "scan.nii")


def test_gzip_damage_is_named_even_where_itk_notices_it_first(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).integers(0, 900, (20, 20, 20)).astype(np.int16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    whole = path.read_bytes()
    damaged = 0
    # zlib gives our header reader its few bytes in some of these cases, and ITK nothing.
    for position in range(10, 1200, 6):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(ScanError) as caught:
            read_volume(path)
        assert "ITK refuses" not in str(caught.value)
        damaged += "found a damaged gzip stream" in str(caught.value) and "expected an intact one" in str(caught.value)
    assert damaged > 170


def undecodable(folder: Path, name: bytes) -> Path:
    return folder / os.fsdecode(name)


@pytest.mark.parametrize("suffix", [b".nii", b".nii.gz", b".nrrd", b".nhdr", b".mha", b".mhd"])
def test_a_path_that_is_not_utf8_is_refused_before_it_aborts_itk(tmp_path: Path, suffix: bytes) -> None:
    folder = undecodable(tmp_path, b"caf\xe9")
    folder.mkdir()
    for path in (undecodable(tmp_path, b"caf\xe9" + suffix), folder / os.fsdecode(b"scan" + suffix)):
        path.write_bytes(b"not reached")
        message = refusal(path)
        assert "the path holds bytes that are not UTF-8" in message
        assert "caf?" in message


def test_a_path_in_another_script_is_read(tmp_path: Path) -> None:
    assert read_volume(write_channel(tmp_path / "\u809d\u81d3 caf\u00e9.nii.gz")).array.shape == (1, 3, 4, 5)


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    channel = open_itk_file(write_channel(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        channel.read_into(np.empty((3, 4, 5), np.float32))
    assert Path(caught.value.filename) == tmp_path / "scan.raw"
