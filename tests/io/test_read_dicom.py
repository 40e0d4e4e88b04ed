"""DICOM folders: geometry and values against pydicom, and every way a stack of slices can be wrong."""

from __future__ import annotations

import errno
import locale
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from masksam_deploy.base.errors import MemoryLimitError, ScanError
from masksam_deploy.io import dicom, read_volume
from masksam_deploy.io.open_channel import open_channel

Edit = Callable[[Any], None]
EditedCopy = Callable[[Path, Path, Edit], Path]
Oracle = Callable[[Path], tuple[np.ndarray, dict[str, np.ndarray]]]


def refusal(folder: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read_volume(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["cine_mr_ed", "ct_empty_uids", "head_flipped", "oblique", "float_rescale"])
def test_values_and_geometry_of_real_series_agree_with_pydicom(data: Path, dicom_oracle: Oracle, name: str) -> None:
    folder = data / "dicom" / name
    volume = read_volume(folder)
    if name == "ct_empty_uids":
        pytest.importorskip("PIL", reason="pydicom decodes JPEG 2000 with Pillow")
    pixels, expected = dicom_oracle(folder)
    assert volume.array.dtype == np.float32
    assert volume.array.flags.c_contiguous
    np.testing.assert_allclose(volume.array[0], pixels, rtol=1e-6, atol=1e-5)
    geometry = volume.geometry
    axes = np.reshape(geometry.direction_lps, (3, 3))
    row, column = expected["orientation"][:3], expected["orientation"][3:]
    # The files round direction cosines to 6 decimals; ours are orthonormal.
    np.testing.assert_allclose(axes[:, 0], row, atol=1e-5)
    np.testing.assert_allclose(axes[:, 1], column, atol=1e-5)
    np.testing.assert_allclose(axes[:, 2], np.cross(row, column), atol=1e-5)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert geometry.origin_lps == tuple(expected["positions"][0])
    np.testing.assert_array_equal(geometry.spacing_xyz[:2], expected["pixel_spacing"][::-1])
    # The centre of the first pixel of the last slice lies where its file says, up to rounding.
    last = np.array(geometry.origin_lps) + axes[:, 2] * geometry.spacing_xyz[2] * (len(pixels) - 1)
    np.testing.assert_allclose(last, expected["positions"][-1], atol=5e-3)


@pytest.mark.parametrize("name", ["cine_mr_ed", "ct_empty_uids", "head_flipped", "float_rescale"])
def test_reading_leaves_the_locale_of_the_process_as_it_was(data: Path, name: str) -> None:
    # ITK's DICOM writer does not: in a PACS viewer that would turn decimal commas into points, everywhere.
    before = locale.setlocale(locale.LC_ALL)
    read_volume(data / "dicom" / name)
    assert locale.setlocale(locale.LC_ALL) == before


@pytest.mark.parametrize("name", ["cine_mr_ed", "head_flipped"])
def test_ordered_files_are_those_of_the_slices_read(data: Path, name: str) -> None:
    folder = data / "dicom" / name
    paths, geometry = dicom.ordered_files(folder)
    volume = read_volume(folder)
    assert geometry == volume.geometry
    assert sorted(paths) == sorted(path for path in folder.iterdir() if path.suffix != ".txt")
    for path, plane in zip(paths, volume.array[0], strict=True):
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0], plane)


def test_each_slice_is_scaled_by_its_own_slope(data: Path, dicom_oracle: Oracle) -> None:
    pixels, _ = dicom_oracle(data / "dicom" / "float_rescale")
    read = read_volume(data / "dicom" / "float_rescale").array[0]
    assert not np.array_equal(pixels, np.rint(pixels))
    np.testing.assert_allclose(read.max(axis=(1, 2)), pixels.max(axis=(1, 2)), rtol=1e-6)


def test_file_names_and_order_do_not_matter(data: Path, tmp_path: Path) -> None:
    source = data / "dicom" / "cine_mr_ed"
    for i, file in enumerate(sorted(source.iterdir(), key=lambda f: hash(f.name))):
        shutil.copy(file, tmp_path / f"{(7 * i) % 5}.{i}")
    shuffled, original = read_volume(tmp_path), read_volume(source)
    np.testing.assert_array_equal(shuffled.array, original.array)
    assert shuffled.geometry == original.geometry


def test_orientations_that_differ_by_rounding_are_one_series(data: Path) -> None:
    # 80 and 100 say -0.307716 where 120, 140 and 160 say -0.307715.
    assert read_volume(data / "dicom" / "cine_mr_ed").array.shape == (1, 5, 256, 256)


def test_files_that_are_no_images_are_left_out(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    for name in ("DICOMDIR", "README", "notes.txt", ".DS_Store", "._0.dcm", "report.pdf"):
        (folder / name).write_bytes(b"some text\n")
    (folder / "previews").mkdir()
    assert read_volume(folder).array.shape == (1, 3, 50, 100)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("3.dcm", b"", "empty file"),
        ("IM0004", b"", "empty file"),
        ("IM0004", b"\x00\xff" * 400, "damaged or unsupported"),
        ("3.dcm", b"not dicom", "damaged or unsupported"),
        ("1.2.840.3", b"not dicom", "damaged or unsupported"),
    ],
)
def test_a_damaged_file_that_may_have_been_a_slice_is_not_left_out(
    data: Path, copied_folder: Callable[..., Path], name: str, content: bytes, part: str
) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert part in message
    assert name in message


def test_two_phases_in_one_folder_are_refused(data: Path, copied_folder: Callable[..., Path]) -> None:
    # Both phases carry the same series UID.
    folder = copied_folder(data / "dicom" / "cine_mr_ed", data / "dicom" / "cine_mr_es")
    message = refusal(folder)
    assert "at the same position" in message
    assert "keep one phase" in message


def test_two_series_in_one_folder_are_refused_and_listed(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "head_flipped", data / "dicom" / "oblique")
    message = refusal(folder)
    assert "found 2 series" in message
    assert "34342067217438436433087125579339530" in message
    assert "4 files" in message
    assert "3 files" in message


def test_two_patients_in_one_folder_are_refused_without_naming_them(
    data: Path, tmp_path: Path, edited_copy: EditedCopy
) -> None:
    for i, file in enumerate(sorted((data / "dicom" / "head_flipped").iterdir())):

        def name_patient(dataset: Any, number: int = i) -> None:
            dataset.PatientID = "SECRET" if number < 2 else "OTHER"

        edited_copy(file, tmp_path / file.name, name_patient)
    message = refusal(tmp_path)
    assert "2 patients" in message
    assert "SECRET" not in message


def test_a_missing_slice_is_refused_naming_its_neighbours(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "cine_mr_ed")
    (folder / "120.dcm").unlink()
    message = refusal(folder)
    assert "gap of 16 mm between" in message
    assert "100.dcm" in message
    assert "140.dcm" in message


def test_two_slices_are_too_few_to_tell_whether_one_is_missing(data: Path, copied_folder: Callable[..., Path]) -> None:
    assert "found 2 DICOM slices" in refusal(copied_folder(data / "dicom" / "cine_mr_es"))


def test_colour_is_refused(data: Path) -> None:
    assert "RGB" in refusal(data / "dicom" / "colour")


def test_multi_frame_is_refused(data: Path) -> None:
    assert "multi-frame image (8 frames)" in refusal(data / "dicom" / "multiframe")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("seg_image_ct_binary.dcm", "SEG (segmentation)"),
        ("sparse-labelmap-ppv5.dcm", "SEG (label map"),
        ("rtdose.dcm", "RTDOSE"),
        ("rtplan_truncated.dcm", "RTPLAN"),
        ("MR_truncated.dcm", "damaged or unsupported"),
    ],
)
def test_objects_that_are_no_slice_are_refused_by_name(
    data: Path, copied_folder: Callable[..., Path], name: str, part: str
) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    shutil.copy(data / "dicom" / "single" / name, folder)
    message = refusal(folder)
    assert part in message
    assert name in message


def test_one_dicom_file_is_refused_in_favour_of_its_folder(data: Path) -> None:
    message = refusal(data / "dicom" / "oblique" / "0.dcm")
    assert "found one DICOM file" in message
    assert message.endswith("oblique")


def test_a_folder_without_dicom_names_its_subfolders(data: Path, tmp_path: Path) -> None:
    assert "oblique/" in refusal(data / "dicom")
    assert "no DICOM images" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm"])
def test_encoded_pixels_are_decoded_like_the_plain_ones(
    data: Path, tmp_path: Path, edited_copy: EditedCopy, dicom_oracle: Oracle, name: str
) -> None:
    for i in range(3):

        def place(dataset: Any, number: int = i) -> None:
            row, column = np.split(np.array(dataset.ImageOrientationPatient, dtype=float), 2)
            start = np.array(dataset.ImagePositionPatient, dtype=float)
            dataset.ImagePositionPatient = [f"{v:.6f}" for v in start + number * 2.5 * np.cross(row, column)]
            dataset.RescaleSlope, dataset.RescaleIntercept = str(1 + number * 0.5), "-100.25"

        edited_copy(data / "dicom" / "single" / name, tmp_path / f"{i}.dcm", place)
    read = read_volume(tmp_path).array[0]
    np.testing.assert_allclose(read, dicom_oracle(tmp_path)[0], rtol=1e-6)


def test_two_lossless_codecs_give_the_same_image(data: Path, tmp_path: Path, edited_copy: EditedCopy) -> None:
    # The same slice by way of CharLS and of libjpeg, which pydicom cannot decode without plugins.
    for i, name in enumerate(["jpeg_lossless.dcm", "jpeg_ls.dcm", "jpeg_lossless.dcm"]):
        edited_copy(data / "dicom" / "single" / name, tmp_path / f"{i}.dcm", shifted((float(i), 0, 0)))
    read = read_volume(tmp_path).array[0]
    assert np.unique(read).size > 100
    np.testing.assert_array_equal(read[0], read[1])


def test_a_slice_that_is_cut_off_is_refused(data: Path, copied_folder: Callable[..., Path]) -> None:
    for name, source in (("0.dcm", "oblique"), (None, "ct_empty_uids")):
        folder = copied_folder(data / "dicom" / source)
        file = folder / name if name else next(folder.iterdir())
        whole = file.read_bytes()
        for kept in (0.3, 0.6, 0.9, 0.999):
            file.write_bytes(whole[: int(len(whole) * kept)])
            assert "damaged or unsupported" in refusal(folder)
        shutil.rmtree(folder)


def shifted(step: tuple[float, float, float]) -> Edit:
    def edit(dataset: Any) -> None:
        position = np.array(dataset.ImagePositionPatient, dtype=float) + step
        dataset.ImagePositionPatient = [f"{v:.6f}" for v in position]

    return edit


def assign(**tags: Any) -> Edit:
    def edit(dataset: Any) -> None:
        for tag, value in tags.items():
            setattr(dataset, tag, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (shifted((0, 0, 0.5)), "uneven slices"),
        (shifted((3, 0, 0)), "sideways"),
        (assign(ImageOrientationPatient=["-1", "0", "0", "0", "-0.99", "0.14"]), "another orientation"),
        (assign(PixelSpacing=["2", "2.1"]), "pixels of 2.1 x 2 mm"),
        (assign(ImagePositionPatient=None), "none as ImagePositionPatient"),
        (assign(ImageOrientationPatient=None), "none as ImageOrientationPatient"),
        (assign(PixelSpacing=None), "none as PixelSpacing"),
        (assign(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
        (assign(RescaleSlope="0"), "slope of 0"),
        (assign(Modality="SEG"), "SEG"),
        (assign(SeriesInstanceUID="1.2.3", SeriesDescription="T2 \u00e4xial"), "2 series"),
        (assign(Rows=64, PixelData=bytes(64 * 88 * 2)), "88 x 64 pixels"),
    ],
)
def test_one_deviating_slice_is_refused(
    data: Path, copied_folder: Callable[..., Path], edited_copy: EditedCopy, edit: Edit, part: str
) -> None:
    folder = copied_folder(data / "dicom" / "head_flipped")
    edited_copy(folder / "IMG0003.dcm", folder / "IMG0003.dcm", edit)
    assert part in refusal(folder)


def test_gantry_tilt_is_refused(data: Path, tmp_path: Path, edited_copy: EditedCopy) -> None:
    for i, file in enumerate(sorted((data / "dicom" / "head_flipped").iterdir())):
        edited_copy(file, tmp_path / file.name, shifted((0, 0.7 * i, 0)))
    assert "gantry tilt" in refusal(tmp_path)


def test_implausible_pixel_spacing_is_refused(data: Path, tmp_path: Path, edited_copy: EditedCopy) -> None:
    for file in (data / "dicom" / "head_flipped").iterdir():
        edited_copy(file, tmp_path / file.name, assign(PixelSpacing=["0", "2"]))
    assert "voxel spacing of 2 x 0" in refusal(tmp_path)


def test_max_voxels_is_asked_before_pixels_are_decoded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("masksam_deploy.io.isolated_scan.IsolatedScan.read_into", decode)
    with pytest.raises(MemoryLimitError, match="found 15000 voxels"):
        read_volume(data / "dicom" / "oblique", max_voxels=14999)


def test_a_folder_can_be_one_of_several_channels(data: Path) -> None:
    folder = data / "dicom" / "oblique"
    assert read_volume([folder, folder]).array.shape == (2, 3, 50, 100)


def stated(folder: Path, edited_copy: EditedCopy, **tags: Any) -> Path:
    """Every second slice of `folder`, 8 mm thick and apart, with other statements."""
    for name in ("100.dcm", "140.dcm"):
        (folder / name).unlink()
    for file in sorted(folder.iterdir()):
        edited_copy(file, file, assign(**tags))
    return folder


@pytest.mark.parametrize("between", ["8", "8.2", "5.3"])
def test_steps_that_are_a_multiple_of_the_stated_one_are_missing_slices(
    data: Path, copied_folder: Callable[..., Path], edited_copy: EditedCopy, between: str
) -> None:
    folder = copied_folder(data / "dicom" / "cine_mr_ed")
    thickness = "8" if between != "5.3" else "5.5"
    stated(folder, edited_copy, SpacingBetweenSlices=between, SliceThickness=thickness)
    message = refusal(folder)
    assert f"found steps of 16 mm, the files state {between} mm between slices: slices are missing" in message


@pytest.mark.parametrize(
    ("between", "thickness"),
    [
        ("8", "10"),  # overlapping slices, or the gap between them
        ("6", "10"),  # the gap
        ("16", "8"),
        ("15.9", "8"),
        ("6.4", "6.4"),  # no whole multiple
        ("8", None),
        (None, "8"),
        ("8", "0"),
        ("-8", "8"),
        ("8\\8", "8"),
    ],
)
def test_steps_that_the_files_may_well_mean_are_accepted(
    data: Path, copied_folder: Callable[..., Path], edited_copy: EditedCopy, between: str | None, thickness: str | None
) -> None:
    folder = copied_folder(data / "dicom" / "cine_mr_ed")
    stated(folder, edited_copy, SpacingBetweenSlices=between, SliceThickness=thickness)
    assert read_volume(folder).geometry.spacing_xyz[2] == pytest.approx(16, abs=1e-3)


def test_slices_that_state_different_steps_are_not_judged_by_them(
    data: Path, copied_folder: Callable[..., Path], edited_copy: EditedCopy
) -> None:
    folder = stated(copied_folder(data / "dicom" / "cine_mr_ed"), edited_copy)
    edited_copy(folder / "120.dcm", folder / "120.dcm", assign(SpacingBetweenSlices="9"))
    assert read_volume(folder).array.shape[1] == 3


def test_a_folder_or_slice_whose_name_is_not_utf8_is_refused_before_it_aborts_itk(
    data: Path, copied_folder: Callable[..., Path]
) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    (folder / os.fsdecode(b"notes\xe9.txt")).write_text("not an image, so its name does no harm")
    assert read_volume(folder).array.shape == (1, 3, 50, 100)
    renamed = folder.rename(folder.with_name(os.fsdecode(b"s\xe9rie")))
    message = refusal(renamed)
    assert "s?rie: the path holds bytes that are not UTF-8" in message
    folder = renamed.rename(folder)
    (folder / "1.dcm").rename(folder / os.fsdecode(b"1\xe9.dcm"))
    assert f"{folder}/1?.dcm: the path holds bytes that are not UTF-8" in refusal(folder)


def test_a_slice_that_may_not_be_read_is_named(
    data: Path, copied_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    is_dicom_file = dicom.is_dicom_file

    def denied(path: Path) -> bool:
        if path.name == "1.dcm":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_dicom_file(path)

    monkeypatch.setattr(dicom, "is_dicom_file", denied)
    with pytest.raises(ScanError) as caught:
        open_channel(folder)
    assert str(caught.value).startswith(f"{folder / '1.dcm'}: cannot be read: Permission denied")
