"""The two places of a NIfTI header: what they mean, which is used, and that a label map states both again."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.quaternions import mat2quat
from numpy.typing import NDArray

from masksam_deploy.base.errors import OutputError, ScanError
from masksam_deploy.base.volume import Volume
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.grid import affine_lps
from masksam_deploy.io.itk import open_itk_file
from masksam_deploy.io.write_scan import write_scan

Matrix = NDArray[np.float64]
SIZE = (30, 20, 10)
SPACING = np.array([0.8, 0.9, 3.0])


def turned(x: float, y: float, z: float) -> Matrix:
    """A rotation about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x, y, z])), np.sin(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    product: Matrix = about_z @ about_y @ about_x
    return product


def affine(rotation: Matrix, offset: tuple[float, float, float] = (10, -20, 30)) -> Matrix:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * SPACING
    matrix[:3, 3] = offset
    return matrix


def nifti(
    path: Path, qform: Matrix | None, sform: Matrix | None, codes: tuple[int, int] = (1, 1), order: str = "<"
) -> Path:
    header = nibabel.Nifti1Header(endianness=order)
    image = nibabel.Nifti1Image(np.zeros(SIZE, np.int16), None, header)
    if qform is not None:
        image.set_qform(qform, codes[0])
    if sform is not None:
        image.set_sform(sform, codes[1])
    if qform is None:
        image.header["pixdim"][1:4] = SPACING
    nibabel.save(image, path)
    return path


def ras(channel: Channel) -> Matrix:
    placed: Matrix = np.diag([-1.0, -1.0, 1.0]) @ affine_lps(channel.geometry)
    return placed


def written(channel: Channel, path: Path) -> Path:
    labels = np.zeros(channel.geometry.shape_zyx, np.uint8)
    labels[1, 2, 3] = 7
    write_labels(Volume(labels, channel.geometry), path)
    return path


def header_of(path: Path) -> bytes:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.name.endswith(".gz") else content)[:348]


FIRST = affine(turned(10, 20, 30))
OTHERS = {
    "rotation": affine(turned(-40, 10, 5), (60, 0, -50)),
    "translation": affine(turned(10, 20, 30), (60, 0, -50)),
    "half a turn": affine(turned(10, 20, 210)),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", [(1, 4), (1, 2), (2, 1), (4, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("other", OTHERS)
def test_a_label_map_states_both_forms_as_the_scan_does(
    tmp_path: Path, suffix: str, codes: tuple[int, int], other: str
) -> None:
    order = ">" if suffix == ".nii" else "<"
    scan = nifti(tmp_path / f"scan{suffix}", FIRST, OTHERS[other], codes, order)
    channel = open_itk_file(scan)
    (warning,) = channel.warnings
    assert f"qform (code {codes[0]})" in warning
    assert f"sform (code {codes[1]})" in warning
    used = "sform" if codes[1] == 1 else "qform"
    assert f"the {used} is used" in warning
    np.testing.assert_allclose(ras(channel), (FIRST if used == "qform" else OTHERS[other])[:3], atol=1e-4)
    a, b = nibabel.load(scan), nibabel.load(written(channel, tmp_path / f"labels{suffix}"))
    for get in ("get_qform", "get_sform"):
        (wanted, code), (found, found_code) = getattr(a, get)(coded=True), getattr(b, get)(coded=True)
        assert found_code == code
        np.testing.assert_array_equal(found, wanted)
    assert np.asarray(b.dataobj)[3, 2, 1] == 7
    assert np.asarray(b.dataobj).sum() == 7
    again = open_itk_file(tmp_path / f"labels{suffix}")
    assert again.geometry == channel.geometry
    assert again.geometry.nifti_forms == channel.geometry.nifti_forms
    assert again.warnings == channel.warnings


def test_the_warning_states_the_shift_at_the_worst_corner(tmp_path: Path) -> None:
    channel = open_itk_file(nifti(tmp_path / "a.nii", FIRST, affine(turned(10, 20, 30), (10, -20, 71)), (1, 2)))
    assert "up to 41 mm apart" in channel.warnings[0]


def test_raw_fields_of_both_forms_are_kept_bit_by_bit(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii.gz", FIRST, OTHERS["rotation"], (2, 3))
    labels = written(open_itk_file(scan), tmp_path / "b.nii.gz")
    assert header_of(labels)[252:328] == header_of(scan)[252:328]
    assert header_of(labels)[76:92] == header_of(scan)[76:92]


def test_an_unstated_handedness_is_kept(tmp_path: Path) -> None:
    scan = nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (2, 3))
    raw = bytearray(scan.read_bytes())
    struct.pack_into("<f", raw, 76, 0.0)
    scan.write_bytes(raw)
    labels = written(open_itk_file(scan), tmp_path / "b.nii")
    assert header_of(labels)[76:92] == header_of(scan)[76:92]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_formats_with_one_place_state_the_one_that_was_used(tmp_path: Path, suffix: str) -> None:
    channel = open_itk_file(nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (1, 4)))
    again = open_itk_file(written(channel, tmp_path / f"b{suffix}"))
    np.testing.assert_allclose(ras(again), FIRST[:3], atol=1e-4)
    assert again.geometry.nifti_forms is None


def test_a_scan_that_travels_states_both_forms_too(tmp_path: Path) -> None:
    channel = open_itk_file(nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (1, 4)))
    volume = Volume(np.ones((1, *channel.geometry.shape_zyx), np.float32), channel.geometry)
    write_scan(volume, 0, tmp_path / "b.nii.gz")
    assert header_of(tmp_path / "b.nii.gz")[252:328] == header_of(tmp_path / "a.nii")[252:328]


def test_labels_on_another_grid_than_the_forms_are_refused(tmp_path: Path) -> None:
    geometry = open_itk_file(nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (1, 4))).geometry
    moved = type(geometry)(
        geometry.size_xyz, geometry.spacing_xyz, (0.0, 0.0, 0.0), geometry.direction_lps, geometry.nifti_forms
    )
    with pytest.raises(OutputError, match="origin"):
        write_labels(Volume(np.zeros(moved.shape_zyx, np.uint8), moved), tmp_path / "b.nii.gz")
    assert not (tmp_path / "b.nii.gz").exists()


def test_forms_beyond_what_a_header_holds_are_refused(tmp_path: Path) -> None:
    geometry = open_itk_file(nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (1, 4))).geometry
    forms = geometry.nifti_forms
    assert forms is not None
    for wrong in (replace(forms, qform_code=70_000), replace(forms, offset=(1e300, 0.0, 0.0))):
        changed = replace(geometry, nifti_forms=wrong)
        with pytest.raises(OutputError, match="beyond what NIfTI holds"):
            write_labels(Volume(np.zeros(changed.shape_zyx, np.uint8), changed), tmp_path / "b.nii")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii"]


def test_a_disk_that_fills_up_while_the_forms_are_stated_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = open_itk_file(nifti(tmp_path / "a.nii", FIRST, OTHERS["rotation"], (1, 4))).geometry

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("masksam_deploy.io.read_back.state_forms", full)
    with pytest.raises(
        OutputError, match=r"b\.nii\.gz: cannot be written whole \(No space left on device\); check the disk"
    ):
        write_labels(Volume(np.zeros(geometry.shape_zyx, np.uint8), geometry), tmp_path / "b.nii.gz")
    assert not (tmp_path / "b.nii.gz").exists()


def test_a_volume_read_in_another_process_carries_forms_and_warnings(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz", FIRST, OTHERS["rotation"], (1, 4))
    channel, volume = open_itk_file(path), read_volume(path)
    assert volume.geometry.nifti_forms == channel.geometry.nifti_forms
    assert volume.warnings == channel.warnings


def test_equal_forms_give_neither_warning_nor_forms(tmp_path: Path) -> None:
    channel = open_itk_file(nifti(tmp_path / "a.nii", FIRST, FIRST, (1, 2)))
    assert channel.warnings == ()
    assert channel.geometry.nifti_forms is None


@pytest.mark.parametrize("shift", [0.02, 0.05])
def test_forms_that_differ_by_rounding_are_kept_without_a_word(tmp_path: Path, shift: float) -> None:
    channel = open_itk_file(nifti(tmp_path / "a.nii", FIRST, affine(turned(10, 20, 30), (10 + shift, -20, 30)), (1, 2)))
    assert channel.warnings == ()
    labels = written(channel, tmp_path / "b.nii")
    assert header_of(labels)[252:328] == header_of(tmp_path / "a.nii")[252:328]


def scaled() -> Matrix:
    return FIRST @ np.diag([1.1, 1.1, 1.1, 1.0])


def sheared() -> Matrix:
    matrix: Matrix = FIRST.copy()
    matrix[0, 1] += 0.3
    return matrix


@pytest.mark.parametrize("codes", list(itertools.product((1, 2, 4), (1, 2, 4))))
@pytest.mark.parametrize(
    ("other", "part"),
    [
        (scaled(), "contradict each other"),
        (sheared(), "sheared sform"),
        (FIRST @ np.diag([-1.0, 1.0, 1.0, 1.0]), "mirror images"),
        (np.diag([0.0, 0.0, 0.0, 1.0]), "no length"),
        (affine(turned(0, 0, 0), (1e9, 0, 0)), "float32 resolves"),
        (affine(turned(0, 0, 0), (float("nan"), 0, 0)), "not finite"),
    ],
)
def test_forms_that_no_rigid_motion_connects_are_refused(
    tmp_path: Path, codes: tuple[int, int], other: Matrix, part: str
) -> None:
    path = nifti(tmp_path / "a.nii", FIRST, FIRST, codes)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<12f", raw, 280, *other[:3].ravel())
    path.write_bytes(raw)
    with pytest.raises(ScanError, match=part):
        open_itk_file(path)


@settings(max_examples=150, deadline=None)
@given(
    tilt=st.floats(-180, 180),
    about=st.sampled_from(["x", "y", "z"]),
    then=st.floats(-0.2, 0.2),
    qfac=st.sampled_from([1.0, -1.0]),
    order=st.sampled_from("<>"),
)
def test_a_qform_of_half_a_turn_and_a_tilt_is_read_as_its_quaternion_says(
    tilt: float, about: str, then: float, qfac: float, order: str
) -> None:
    """What is left of 1 - b² - c² - d² below 1e-7 is rounding, and counts as half a turn."""
    matrix = turned(tilt, 0, 0) @ turned(*(180.0 + then if axis == about else 0.0 for axis in "xyz"))
    b, c, d = mat2quat(matrix)[1:]
    header = nibabel.Nifti1Header(endianness=order)
    raw = bytearray(nibabel.Nifti1Image(np.zeros(SIZE, np.int16), None, header).to_bytes())
    struct.pack_into(f"{order}4f", raw, 76, qfac, *SPACING)
    struct.pack_into(f"{order}2h", raw, 252, 1, 0)
    struct.pack_into(f"{order}6f", raw, 256, b, c, d, 10, -20, 30)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        path.write_bytes(raw)
        found = ras(open_itk_file(path))
    # Near half a turn a quaternion in float32 resolves angles to 2 sqrt(1e-7).
    np.testing.assert_allclose(found, affine(matrix @ np.diag([1, 1, qfac]))[:3], atol=2 * np.sqrt(1.7e-7) * 3)
    # nibabel takes up to 3.6e-7 as half a turn, where nifti1_io takes 1e-7.
    image = nibabel.Nifti1Image.from_bytes(bytes(raw))
    np.testing.assert_allclose(found, image.get_qform()[:3], atol=2 * np.sqrt(3.7e-7) * 3)


@settings(max_examples=100, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    others=st.tuples(*[st.floats(-180, 180)] * 3),
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    order=st.sampled_from("<>"),
)
def test_any_two_forms_are_read_as_one_of_them(
    angles: tuple[float, float, float], others: tuple[float, float, float], codes: tuple[int, int], order: str
) -> None:
    header = nibabel.Nifti1Header(endianness=order)
    image = nibabel.Nifti1Image(np.zeros(SIZE, np.int16), None, header)
    image.set_qform(affine(turned(*angles)), codes[0])
    image.set_sform(affine(turned(*others), (0, 5, 10)), codes[1])
    buffer = io.BytesIO(image.to_bytes())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii"
        path.write_bytes(buffer.getvalue())
        if codes == (0, 0):
            with pytest.raises(ScanError, match="neither"):
                open_itk_file(path)
            return
        found = open_itk_file(path)
        uses_sform = codes[1] > 0 and (codes[0] == 0 or codes[1] == 1)
        stored = nibabel.load(path)
        wanted = stored.get_sform() if uses_sform else stored.get_qform()
        np.testing.assert_allclose(ras(found), wanted[:3], atol=2e-3)
        assert bool(found.warnings) == (min(codes) > 0)


Edit = Callable[[bytearray], None]


def put(form: str, offset: int, *values: float) -> Edit:
    return lambda raw: struct.pack_into(form, raw, offset, *values)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (put("<f", 76, 2.0), "handedness"),
        (put("<f", 76, -0.5), "handedness"),
        (put("<f", 76, float("nan")), "handedness"),
        (put("<h", 252, 6), "qform_code of 6"),
        (put("<h", 252, -1), "qform_code of -1"),
        (put("<h", 254, 1000), "sform_code of 1000"),
        (put("<3f", 256, 0.9, 0.9, 0.9), "quaternion of length"),
        (put("<f", 256, float("nan")), "qform that is not finite"),
        (put("<f", 268, float("inf")), "qform that is not finite"),
        (put("<f", 268, 1e30), "float32 resolves"),
        (put("<f", 108, 348), "offset of 348"),
        (put("<f", 108, 352.5), "offset of 352.5"),
        (put("<f", 108, 0), "offset of 0"),
        (put("<h", 72, 8), "8 bits per voxel"),
        (put("<2f", 112, 0, 5), "slope 0 and intercept 5"),
        (put("<2f", 112, float("nan"), 5), "slope nan and intercept 5"),
        (put("<2f", 112, 2, float("nan")), "slope 2 and intercept nan"),
        (put("<2f", 112, 1e-17, 0), "slope 1e-17"),
        (put("<2f", 112, -1e-20, 3), "slope -1e-20"),
        (put("<2f", 112, 1, 1e-17), "intercept 1e-17"),
        (put("<2f", 112, float("inf"), 0), "infinite intensity scaling"),
        (put("4s", 344, b"ni1\0"), "pair"),  # type: ignore[arg-type]
        (put("4s", 344, b"n+1 "), "pair"),  # type: ignore[arg-type]
    ],
)
def test_a_header_that_readers_take_differently_is_refused(tmp_path: Path, edit: Edit, part: str) -> None:
    path = nifti(tmp_path / "a.nii", FIRST, None, (1, 0))
    raw = bytearray(path.read_bytes())
    edit(raw)
    path.write_bytes(raw)
    with pytest.raises(ScanError, match=part):
        open_itk_file(path)


@pytest.mark.parametrize("edit", [put("<f", 76, 0.0), put("<h", 72, 0), put("<2f", 112, np.nan, np.nan)])
def test_what_the_standard_leaves_open_is_read(tmp_path: Path, edit: Edit) -> None:
    path = nifti(tmp_path / "a.nii", FIRST, None, (1, 0))
    raw = bytearray(path.read_bytes())
    edit(raw)
    path.write_bytes(raw)
    np.testing.assert_allclose(ras(open_itk_file(path)), FIRST[:3], atol=1e-4)


def test_texts_and_intents_of_a_header_do_not_reach_itk(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", FIRST, None, (1, 0))
    raw = bytearray(path.read_bytes())
    raw[148:252] = b"\xff" * 104
    raw[328:344] = b"A" * 16
    struct.pack_into("<h", raw, 68, 1007)  # a vector by its intent, one number per voxel by its dimensions
    path.write_bytes(raw)
    channel = open_itk_file(path)
    assert channel.geometry.size_xyz == SIZE


def test_geometry_is_that_of_itk_though_it_reads_a_copy(tmp_path: Path) -> None:
    for codes in ((1, 0), (0, 2), (1, 1)):
        path = nifti(tmp_path / "a.nii.gz", FIRST if codes[0] else None, FIRST if codes[1] else None, codes)
        geometry = open_itk_file(path).geometry
        image = SimpleITK.ReadImage(str(path))
        assert geometry.spacing_xyz == image.GetSpacing()
        assert geometry.origin_lps == image.GetOrigin()
        assert geometry.direction_lps == image.GetDirection()
