"""NRRD and MetaImage files as other programs write them: read with the right voxels at the right place."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.grid import affine_lps
from masksam_deploy.io.itk import open_itk_file, quiet_itk
from masksam_deploy.io.text_header import read_meta_header, read_nrrd_header
from tests.fuzz.image_files import good_files
from tests.fuzz.plain_images import agrees, expected

VALUES = np.arange(120, dtype="<i2").reshape(6, 5, 4)
RAW = VALUES.tobytes()
NRRD = """NRRD0004
type: short
dimension: 3
sizes: 4 5 6
encoding: raw
endian: little
space: left-posterior-superior
space directions: (1,0,0) (0,2,0) (0,0,3)
space origin: (1,2,3)
"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 1 2 3
DimSize = 4 5 6
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""
WANTED = np.column_stack([np.diag([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]])


def read(path: Path) -> tuple[NDArray[np.float32], Channel]:
    channel = open_itk_file(path)
    values = np.empty(channel.geometry.shape_zyx, np.float32)
    channel.read_into(values)
    return values, channel


def assert_read(path: Path, header: str, data: bytes = RAW) -> None:
    path.write_bytes(header.encode() + (b"\n" if path.suffix == ".nrrd" else b"") + data)
    values, channel = read(path)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_array_equal(affine_lps(channel.geometry), WANTED)


def refusal(path: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("type: short", "Type: Short"),
        ("type: short", "TYPE: signed short int"),
        ("type: short", "type:   int16_t  "),
        ("type: short", "type: short\n# a comment: with a colon\n#"),
        ("type: short", "type: short\nkey:=value\nanother key:=a: b := c\\n"),
        ("type: short", "type: short\na note: of ours:=value\nx:y:=:"),
        ("type: short", "type: short\nSegment0_Name:=Leber \u00fc \u809d"),
        ("type: short", "type: short\ncontent: \u00dcbersicht"),
        ("type: short", "type: short\nkinds: domain domain domain"),
        ("type: short", "type: short\nkinds: space space space\ncenterings: cell cell cell"),
        ("type: short", "type: short\ncenters: node node node\nthicknesses: nan nan nan"),
        ("type: short", 'type: short\nspace units: "mm" "mm" "mm"'),
        ("type: short", 'type: short\nlabels: "x" "y" "z"\nunits: "mm" "mm" "mm"'),
        ("type: short", "type: short\nmeasurement frame: (1,0,0) (0,1,0) (0,0,1)"),
        ("type: short", "type: short\nmin: 0\nmax: 119\nnumber: 120\nsampleunits: HU"),
        ("type: short", "type: short\nspacings: nan nan nan\naxis mins: NaN NaN NaN"),
        ("type: short", "type: short\nline skip: 0\nbyteskip: 0"),
        ("NRRD0004", "NRRD0005"),
        ("NRRD0004", "NRRD0001"),
        ("endian: little", "Endian: LITTLE"),
        ("space: left-posterior-superior", "space: LPS"),
        ("space: left-posterior-superior", "Space: Left-Posterior-Superior"),
        ("(1,0,0) (0,2,0)", "( 1.0e0, 0 ,0)  (0,+2.,0)"),
        ("space origin: (1,2,3)", "space origin: (1.0,2.,.3e1)"),
    ],
)
def test_nrrd_headers_of_other_writers_are_read(tmp_path: Path, old: str, new: str) -> None:
    assert old in NRRD
    header = NRRD.replace(old, new, 1)
    assert_read(tmp_path / "scan.nrrd", header)
    assert_read(tmp_path / "crlf.nrrd", header.replace("\n", "\r\n"))


@pytest.mark.parametrize("length", [70_000, 1_000_000, 5_000_000])
def test_headers_as_long_as_slicer_writes_them_are_read(tmp_path: Path, length: int) -> None:
    lines = "".join(f"Segment{i}_Tags:={'x' * 900}\n" for i in range(length // 900))
    assert_read(tmp_path / "scan.seg.nrrd", NRRD + lines)
    assert_read(tmp_path / "one.seg.nrrd", NRRD + f"key:={'x' * min(length, 1_000_000)}\n")


@pytest.mark.parametrize("border", range(65_530, 65_542))
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_header_that_ends_where_reading_pauses_is_read(tmp_path: Path, border: int, end: str) -> None:
    header = NRRD.replace("\n", end) + "#"
    header += "x" * (border - len(header) - 2 * len(end)) + end
    (tmp_path / "scan.nrrd").write_bytes((header + end).encode() + RAW)
    np.testing.assert_array_equal(read(tmp_path / "scan.nrrd")[0], VALUES)


def test_headers_beyond_the_limits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    path.write_bytes((NRRD + "k:=v\n" * 200_000 + "\n").encode() + RAW)
    assert "lines" in refusal(path)
    path.write_bytes((NRRD + "k:=" + "v" * 2_000_000 + "\n\n").encode() + RAW)
    assert "header line beyond" in refusal(path)
    path.write_bytes((NRRD + ("k:=" + "v" * 500_000 + "\n") * 20 + "\n").encode() + RAW)
    assert "header beyond" in refusal(path)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("las", (1, -1, 1)),
    ],
)
def test_other_spaces_are_turned_to_lps_or_refused_where_simpleitk_turns_them_wrong(
    tmp_path: Path, space: str, signs: tuple[int, int, int]
) -> None:
    path = tmp_path / "scan.nrrd"
    path.write_bytes(NRRD.replace("left-posterior-superior", space).encode() + b"\n" + RAW)
    version = tuple(map(int, SimpleITK.Version_VersionString().split(".")[:3]))
    if signs == (1, -1, 1) and version < (2, 5, 4):
        assert "install a newer SimpleITK" in refusal(path)
        return
    np.testing.assert_array_equal(affine_lps(open_itk_file(path).geometry), np.diag(signs) @ WANTED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Offset = ", "Position = "),
        ("Offset = ", "Origin= "),
        ("Offset = 1 2 3", "Offset = 1 2 3\nPosition = 1.0 2.0 3.0\nOrigin = 1 2 3"),
        ("TransformMatrix", "Rotation"),
        ("TransformMatrix", "Orientation"),
        ("ElementSpacing = ", "ElementSpacing\t=\t"),
        ("ElementSpacing = 1 2 3", "ElementSize = 1 2 3"),
        ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 3\nElementSize = 9 9 9"),
        ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
        ("BinaryData = True", "BinaryData = true"),
        ("NDims = 3", "NDims = 3\nComment = sch\u00f6n\nAnatomicalOrientation = RAI\nCenterOfRotation = 0 0 0"),
        ("NDims = 3", "NDims = 3\nElementToIntensityFunctionSlope = 1\nElementToIntensityFunctionOffset = 0.0"),
        ("NDims = 3", "NDims = 3\nElementNumberOfChannels = 1\nElementNBits = 16\nElementMin = 0\nElementMax = 119"),
        (
            "NDims = 3",
            "NDims = 3\n0008|0005 = ISO_IR 100\n0010|0010 = \nITK_InputFilterName = MetaImageIO\nModality = MET_MOD_CT",
        ),
        ("NDims = 3", "NDims = 3\n0008|0081 = a street\nits town\n\nPhone: 1\n0010|0010 = \x1b$B;3\ndim[0] = 3"),
        ("NDims = 3", "NDims = 3\nDistanceUnits = mm\nHeaderSize = 0\nID = 1\nParentID = -1\nColor = 1 0 0 1"),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", ""),
        ("LOCAL", "Local"),
    ],
)
def test_meta_image_headers_of_other_writers_are_read(tmp_path: Path, old: str, new: str) -> None:
    assert old in META
    header = META.replace(old, new, 1)
    assert_read(tmp_path / "scan.mha", header)
    assert_read(tmp_path / "crlf.mha", header.replace("\n", "\r\n"))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**9))
def test_every_good_file_is_read_as_plain_parsing_reads_it(seed: int) -> None:
    name, content = next(good_files(seed))
    wanted = expected(name, content)
    assert wanted is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        values, channel = read(path)
    assert agrees(values, affine_lps(channel.geometry), wanted)
    np.testing.assert_array_equal(np.isfinite(values), True)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]),
    suffix=st.sampled_from([".nrrd", ".nhdr", ".mha", ".mhd"]),
    compressed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(
    kind: str, suffix: str, compressed: bool, seed: int
) -> None:
    bits = np.random.default_rng(seed).integers(0, 70 if kind[0] == "f" else 256, (3, 4, 5, 8), dtype=np.uint8)
    image = SimpleITK.GetImageFromArray(bits[..., : int(kind[1])].copy().view(kind)[..., 0])
    image.SetSpacing([0.1, 1 / 3, 2.5])
    image.SetOrigin([-12.345, 1e-3, 300.7])
    image.SetDirection([0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, -1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        SimpleITK.WriteImage(image, str(path), useCompression=compressed)
        values, channel = read(path)
        again = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(values, SimpleITK.GetArrayFromImage(again).astype(np.float32))
    assert channel.geometry.spacing_xyz == again.GetSpacing()
    assert channel.geometry.origin_lps == again.GetOrigin()
    assert channel.geometry.direction_lps == again.GetDirection()


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("series", ["cine_mr_ed", "ct_empty_uids", "oblique"])
def test_what_simpleitk_writes_with_all_dicom_tags_is_read(
    data: Path, tmp_path: Path, series: str, suffix: str
) -> None:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(data / "dicom" / series)))
    reader.MetaDataDictionaryArrayUpdateOn()
    reader.LoadPrivateTagsOn()
    image = reader.Execute()
    for key in reader.GetMetaDataKeys(0):
        image.SetMetaData(key, reader.GetMetaData(0, key))
    path = tmp_path / f"scan{suffix}"
    with quiet_itk():  # it says which tags it leaves out
        SimpleITK.WriteImage(image, str(path))
    values, channel = read(path)
    np.testing.assert_array_equal(values, SimpleITK.GetArrayFromImage(image).astype(np.float32))
    np.testing.assert_allclose(channel.geometry.origin_lps, image.GetOrigin())


def test_numbers_written_out_are_read_and_counted(tmp_path: Path) -> None:
    text = "\n".join(" ".join(map(str, row)) for row in VALUES.reshape(-1, 4)).encode()
    nrrd, meta = NRRD.replace("raw", "ascii"), META.replace("BinaryData = True", "BinaryData = False")
    for data in (text, text + b"\n", b"\r\n" + text.replace(b"\n", b"\r\n")):
        assert_read(tmp_path / "scan.nrrd", nrrd, data)
        assert_read(tmp_path / "scan.mha", meta, data)
    for data, part in (
        (text[:-4], "numbers, expected 120"),
        (text + b" 1", "found more numbers"),
        (text.replace(b" 7", b" 32768"), "beyond -32768 to 32767"),
        (text.replace(b" 7", b" 7.5"), "something else than numbers"),
        (text.replace(b" 7", b" 0x7"), "something else than numbers"),
        (text.replace(b" 7", b" 7,"), "something else than numbers"),
        (text.replace(b" 7", b" 1-7"), "something else than numbers"),
        (text + b"\0", "something else than numbers"),
        (b"1" * 500_000, "numbers"),
    ):
        for suffix, header in ((".nrrd", nrrd + "\n"), (".mha", meta)):
            (tmp_path / f"scan{suffix}").write_bytes(header.encode() + data)
            assert part in refusal(tmp_path / f"scan{suffix}")


def test_real_numbers_written_out_are_read(tmp_path: Path) -> None:
    values = np.linspace(-1e-3, 1e30, 120).astype(np.float32)
    text = " ".join(map(repr, values.tolist())).encode()
    (tmp_path / "scan.nrrd").write_bytes(NRRD.replace("raw", "text").replace("short", "float").encode() + b"\n" + text)
    np.testing.assert_array_equal(read(tmp_path / "scan.nrrd")[0].ravel(), values)


COMPRESSED = META.replace("CompressedData = False", "CompressedData = True")


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("wrapper", ["zlib", "gzip"])
@pytest.mark.parametrize("stated", [None, 0])
def test_compressed_meta_images_give_their_own_voxels_not_those_of_the_scan_before(
    tmp_path: Path, suffix: str, wrapper: str, stated: int | None
) -> None:
    """ITK gave out memory that it had not filled: the voxels of the scan that was read before."""
    data = zlib.compress(RAW) if wrapper == "zlib" else gzip.compress(RAW)
    size = f"CompressedDataSize = {len(data)}\n" if stated is not None else ""
    header = COMPRESSED.replace("NDims", f"{size}NDims")
    if suffix == ".mhd":
        (tmp_path / "scan.zraw").write_bytes(data)
        header, data = header.replace("LOCAL", "scan.zraw"), b""
    for _ in range(3):
        read_before = np.full((6, 5, 4), 77, np.int16)
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(read_before), str(tmp_path / "before.mha"), useCompression=True
        )
        read(tmp_path / "before.mha")
        assert_read(tmp_path / f"scan{suffix}", header, data)


@pytest.mark.parametrize("stated", ["0", "1", "-1", "10", "1e3", "99999999999", "nan", "", "7.5"])
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_wrong_size_of_compressed_voxels_is_refused(tmp_path: Path, suffix: str, stated: str) -> None:
    data = zlib.compress(RAW)
    header = COMPRESSED.replace("NDims", f"CompressedDataSize = {stated}\nNDims")
    if suffix == ".mhd":
        (tmp_path / "scan.zraw").write_bytes(data)
        header, data = header.replace("LOCAL", "scan.zraw"), b""
    (tmp_path / f"scan{suffix}").write_bytes(header.encode() + data)
    assert "compressed" in refusal(tmp_path / f"scan{suffix}").lower()


def test_compressed_streams_must_be_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    whole = zlib.compress(RAW)
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    for data, part in (
        (whole[:-1], "break off"),
        (flipped, "damaged"),
        (whole + b"x", "further bytes"),
        (whole + whole, "further bytes"),
        (zlib.compress(RAW + b"x"), "more than 240 bytes"),
        (zlib.compress(RAW[:-1]), "found 239 bytes"),
        (zlib.compress(RAW[:-2]), "found 238 bytes"),
        (b"", "cut off"),
    ):
        path.write_bytes(COMPRESSED.encode() + data)
        assert part in refusal(path)
    path = tmp_path / "scan.nrrd"
    header = NRRD.replace("raw", "gz").encode() + b"\n"
    whole = gzip.compress(RAW)
    for data in (whole[:-1], whole + b"x", whole + gzip.compress(b"x"), zlib.compress(RAW), RAW, whole[:-5] + b"abcde"):
        path.write_bytes(header + data)
        refusal(path)
    for data in (whole, gzip.compress(RAW[:99]) + gzip.compress(RAW[99:])):  # members follow each other in the standard
        path.write_bytes(header + data)
        np.testing.assert_array_equal(read(path)[0], VALUES)


def test_a_detached_file_lies_in_the_folder_of_its_header(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.raw").write_bytes(RAW)
    for name in ("voxels.raw", "sub/voxels.raw", "two words.raw", "b\u00e4r.raw"):
        (folder / name).write_bytes(RAW)
        (folder / "a.nhdr").write_text(NRRD + f"data file: {name}\n", "utf-8")
        (folder / "a.mhd").write_text(META.replace("LOCAL", name), "utf-8")
        for header in ("a.nhdr", "a.mhd"):
            np.testing.assert_array_equal(read(folder / header)[0], VALUES)
        assert read_nrrd_header(folder / "a.nhdr", "a").path == folder / name
        assert read_meta_header(folder / "a.mhd", "a").path == folder / name
    os.mkfifo(folder / "fifo.raw")
    (folder / "loop.raw").symlink_to("loop.raw")
    (folder / "null.raw").symlink_to("/dev/null")
    for name in (
        *("../outside.raw", "sub/../../outside.raw", str(tmp_path / "outside.raw"), "fifo.raw", "loop.raw", "null.raw"),
        *("sub", ".", "..", "/dev/zero", "C:voxels.raw", "C:\\x", "\\\\server\\share\\x", "..\\outside.raw", "x" * 300),
        "voxels.raw\x01",
    ):
        (folder / "a.nhdr").write_text(NRRD + f"data file: {name}\n", "utf-8")
        (folder / "a.mhd").write_text(META.replace("LOCAL", name), "utf-8")
        for header in ("a.nhdr", "a.mhd"):
            assert "\n" not in refusal(folder / header)


def test_a_file_that_changes_between_header_and_voxels_is_refused(tmp_path: Path) -> None:
    for suffix, header in ((".nrrd", NRRD + "\n"), (".mha", META)):
        path = tmp_path / f"scan{suffix}"
        path.write_bytes(header.encode() + RAW)
        channel = open_itk_file(path)
        path.write_bytes(header.replace("1", "7").encode() + RAW)
        with pytest.raises(ScanError, match="changed while it was read"):
            channel.read_into(np.empty((6, 5, 4), np.float32))


def test_no_temporary_files_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        assert_read(tmp_path / "scan.mha", META)
        (tmp_path / "scan.nrrd").write_bytes(NRRD.replace("(1,0,0)", "(1,0.0009,0)").encode() + b"\n" + RAW)
        open_itk_file(tmp_path / "scan.nrrd")
        assert list((tmp_path / "tmp").iterdir()) == []
        (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
        for folder in ("missing", os.fsdecode(b"caf\xe9")):
            patched.setattr(tempfile, "tempdir", str(tmp_path / folder))
            assert "set TMPDIR" in refusal(tmp_path / "scan.mha")
        patched.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        assert "no room for a temporary file" in refusal(tmp_path / "scan.mha")
