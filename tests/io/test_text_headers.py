"""Odd NRRD and MetaImage headers are refused, each before ITK sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from masksam_deploy.base.errors import ScanError
from masksam_deploy.io.itk import open_itk_file

VALUES = np.arange(120, dtype="<i2").reshape(6, 5, 4)
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


def with_lines(header: str, *lines: str) -> str:
    """The header with lines behind its first."""
    first, _, rest = header.partition("\n")
    return "\n".join([first, *lines, rest])


LONG = "A" * 2000
NRRD_EDITS = [
    ("type: short", "type: " + LONG),
    ("type: short", "type: block"),
    ("type: short", "type: "),
    ("type: short", "type"),
    ("type: short", "type:short"),
    ("type: short", "type = short"),
    ("type: short", "type: short short"),
    ("type: short", "type: short\ntype: short"),
    ("type: short", "type: short\nType: uchar"),
    ("dimension: 3", "dimension: 2"),
    ("dimension: 3", "dimension: 4"),
    ("dimension: 3", "dimension: 16"),
    ("dimension: 3", "dimension: 100"),
    ("dimension: 3", "dimension: -1"),
    ("dimension: 3", "dimension: 3.0"),
    ("dimension: 3", "dimension: 03"),
    ("dimension: 3", ""),
    ("sizes: 4 5 6", "sizes: 4 5"),
    ("sizes: 4 5 6", "sizes: 4 5 6 1"),
    ("sizes: 4 5 6", "sizes: 4 5 -6"),
    ("sizes: 4 5 6", "sizes: 4 5 0"),
    ("sizes: 4 5 6", "sizes: 4 5 6.0"),
    ("sizes: 4 5 6", "sizes: 4,5,6"),
    ("sizes: 4 5 6", "sizes: 4 5 7"),
    ("sizes: 4 5 6", "sizes: 0x4 5 6"),
    ("sizes: 4 5 6", "sizes: 4 5 99999999999999999999999"),
    ("sizes: 4 5 6", "sizes: " + "1 " * 300),
    ("encoding: raw", "encoding: " + LONG),
    ("encoding: raw", "encoding: hex"),
    ("encoding: raw", "encoding: bzip2"),
    ("encoding: raw", "encoding: gzip"),
    ("encoding: raw", "encoding: ascii"),
    ("encoding: raw", ""),
    ("endian: little", ""),
    ("endian: little", "endian: middle"),
    ("endian: little", "endian: " + LONG),
    ("endian: little", "endian: little\nendian: big"),
    ("space: left-posterior-superior", "space: " + LONG),
    ("space: left-posterior-superior", "space: 3D-right-handed"),
    ("space: left-posterior-superior", "space: scanner-xyz"),
    ("space: left-posterior-superior", "space: left-posterior-superior-time"),
    ("space: left-posterior-superior", "space: PSL"),
    ("space: left-posterior-superior", "space dimension: 3"),
    ("space: left-posterior-superior", "space: LPS\nspace: RAS"),
    ("space: left-posterior-superior", "space: LPS\nspace dimension: 2"),
    ("(1,0,0)", "(1,0)"),
    ("(1,0,0)", "(1,0,0,0)"),
    ("(1,0,0)", "(1 0 0)"),
    ("(1,0,0)", "(1,,0)"),
    ("(1,0,0)", "(1,0,nan)"),
    ("(1,0,0)", "(inf,0,0)"),
    ("(1,0,0)", "(1e400,0,0)"),
    ("(1,0,0)", "(0x1,0,0)"),
    ("(1,0,0)", "(1,0,0"),
    ("(1,0,0)", "none"),
    ("(1,0,0)", "(1,0,0) (1,0,0)"),
    ("(1,0,0)", f"({'1' * 300},0,0)"),
    ("(1,0,0)", "(0,0,0)"),
    ("(1,0,0)", "(1,0.1,0)"),
    ("(1,0,0)", "((1,0,0))"),
    ("space origin: (1,2,3)", "space origin: (nan,2,3)"),
    ("space origin: (1,2,3)", "space origin: (1,2)"),
    ("space origin: (1,2,3)", "space origin: 1 2 3"),
    ("space origin: (1,2,3)", "space origin: (1,2,3) x"),
    ("space origin: (1,2,3)", "space origin: (1,2,3)\nspace origin: (1,2,4)"),
    ("space origin: (1,2,3)", "space origin: " + "(" * 2000),
    ("NRRD0004", "NRRD0006"),
    ("NRRD0004", "NRRD0004x"),
    ("NRRD0004", "nrrd0004"),
    ("NRRD0004", "NRRD00.01"),
]
NRRD_ADDED = [
    "spacings: 1 2 3",
    "axis mins: 0 0 0",
    "axismaxs: 1 1 1",
    "old min: 0",
    "oldmax: 255",
    "block size: 4",
    "blocksize: 4",
    "line skip: 1",
    "byte skip: -1",
    "byteskip: 8",
    "kinds: domain domain",
    "kinds: list domain domain",
    "kinds: domain domain time",
    f"kinds: {LONG} domain domain",
    "centerings: cell cell",
    f"centerings: {LONG} cell cell",
    'space units: "cm" "mm" "mm"',
    "units: cm cm cm",
    "number: 121",
    "min: nan",
    f"max: {LONG}",
    "measurement frame: (1,0,0) (0,1,0) (0,0,nan)",
    f"content: {LONG}",
    f"sample units: {LONG}",
    f"{LONG}: 1",
    LONG,
    "unknown field: 1",
    "content: a\x01b",
    "content: a\rtype: uchar",
    "content: a\0b",
    ":=value",
    "data file: ../voxels.raw",
    "data file: /etc/passwd",
    "data file: LIST",
    "datafile: voxels%03d.raw 1 3 1",
    "data file: c:\\voxels.raw",
    "data file: missing.raw",
]
META_EDITS = [
    ("NDims = 3", "NDims = 100"),
    ("NDims = 3", "NDims = -1"),
    ("NDims = 3", "NDims = 0"),
    ("NDims = 3", "NDims = 2"),
    ("NDims = 3", "NDims = 4"),
    ("NDims = 3", "NDims = 11"),
    ("NDims = 3", "NDims = 3.0"),
    ("NDims = 3", "NDims = 3 3"),
    ("NDims = 3", "NDims = " + "9" * 500),
    ("NDims = 3", "ndims = 3"),
    ("NDims = 3", "NDims: 3"),
    ("NDims = 3", "NDims 3"),
    ("NDims = 3", "NDims = 3\nNDims = 3"),
    ("Offset = 1 2 3", "Offset = nan 2 3"),
    ("Offset = 1 2 3", "Offset = 1 2"),
    ("Offset = 1 2 3", "Offset = 1 2 3 4"),
    ("Offset = 1 2 3", "Offset = 1 2 inf"),
    ("Offset = 1 2 3", "Offset = 1,2,3"),
    ("Offset = 1 2 3", "Offset = 1e999 2 3"),
    ("Offset = 1 2 3", "Offset = "),
    ("Offset = 1 2 3", "Offset = 1 2 3\nOffset = 1 2 3"),
    ("Offset = 1 2 3", "Offset = 1 2 3\nPosition = 1 2 4"),
    ("Offset = 1 2 3", "Offset = 1 2 3\nOrigin = 0 0 0"),
    ("Offset = 1 2 3", "offset = 1 2 3"),
    ("Offset = 1 2 3", "Offset: 1 2 3"),
    ("Offset = 1 2 3", "Offset = " + "1 " * 3000),
    ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 3 4"),
    ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2"),
    ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 nan"),
    ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 -3"),
    ("ElementSpacing = 1 2 3", "ElementSpacing = 1 2 0x3"),
    ("ElementSpacing = 1 2 3", "elementspacing = 1 2 3"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0 1 0 0 0"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0 1 0 0 0 1 0"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0 0 0 1 0 0 0 nan"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 0 0 0 0 0 0 0 0 0"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 2 0 0 0 1 0 0 0 1"),
    ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 1 0.2 0 0 1 0 0 0 1"),
    ("NDims = 3", "NDims = 3\nRotation = -1 0 0 0 -1 0 0 0 1"),
    ("NDims = 3", "NDims = 3\nOrientation = -1 0 0 0 -1 0 0 0 1"),
    ("DimSize = 4 5 6", "DimSize = 4 5"),
    ("DimSize = 4 5 6", "DimSize = 4 5 6 1"),
    ("DimSize = 4 5 6", "DimSize = 4 5 -6"),
    ("DimSize = 4 5 6", "DimSize = 4 5 7"),
    ("DimSize = 4 5 6", "DimSize = 4 5 6.5"),
    ("DimSize = 4 5 6", "DimSize = 4 5 4294967302"),
    ("DimSize = 4 5 6", ""),
    ("ElementType = MET_SHORT", "ElementType = MET_OTHER"),
    ("ElementType = MET_SHORT", "ElementType = MET_SHORT_ARRAY"),
    ("ElementType = MET_SHORT", "ElementType = met_short"),
    ("ElementType = MET_SHORT", "ElementType = " + LONG),
    ("ElementType = MET_SHORT", "ElementType = MET_INT"),
    ("ElementType = MET_SHORT", ""),
    ("BinaryData = True", "BinaryData = False"),
    ("BinaryData = True", "BinaryData = 2"),
    ("BinaryData = True", "binarydata = True"),
    ("CompressedData = False", "CompressedData = True"),
    ("CompressedData = False", "CompressedData = Yes"),
    ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = False\nElementByteOrderMSB = True"),
    ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = maybe"),
    ("ObjectType = Image", "ObjectType = Tube"),
    ("ObjectType = Image", "ObjectType = " + LONG),
    ("ObjectType = Image", "ObjectType = Image\n"),
    ("ObjectType = Image", "\0ObjectType = Image"),
    ("ElementDataFile = LOCAL", "ElementDataFile = LIST"),
    ("ElementDataFile = LOCAL", "ElementDataFile = /etc/passwd"),
    ("ElementDataFile = LOCAL", "ElementDataFile = ../scan.raw"),
    ("ElementDataFile = LOCAL", "ElementDataFile = a/../../scan.raw"),
    ("ElementDataFile = LOCAL", "ElementDataFile = scan%03d.raw 1 3 1"),
    ("ElementDataFile = LOCAL", "ElementDataFile = \\\\host\\share\\scan.raw"),
    ("ElementDataFile = LOCAL", "ElementDataFile = "),
    ("ElementDataFile = LOCAL", "ElementDataFile: LOCAL"),
    ("ElementDataFile = LOCAL", "ElementDataFile = LOCAL\nOffset = 9 9 9"),
]
META_ADDED = [
    "ElementNumberOfChannels = 2",
    "ElementNumberOfChannels = -1",
    "ElementNumberOfChannels = 1.0",
    "HeaderSize = 10",
    "HeaderSize = -1",
    "DistanceUnits = cm",
    "ElementToIntensityFunctionSlope = 2",
    "ElementToIntensityFunctionSlope = nan",
    "ElementToIntensityFunctionOffset = -1024",
    "ElementNBits = 8",
    "ElementMin = nan",
    "ElementSize = 1 1",
    "CenterOfRotation = 0 0",
    "CenterOfRotation = 0 0 nan",
    "SequenceID = 1 2 3 4",
    "ImagePosition = 1",
    f"{'A' * 200} = 1",
    f"Comment = {'A' * 5000}",
    "Comment = a\x07",
    "A B = 1",
    "= 1",
    "no separator",
    "0008|0081 = first\nOffset 9 9 9",
    "0008|0081 = first\nOffset: 9 9 9",
    "0008|0081 = first\n  offset",
    "0008|0081 = first\nNDims\t4",
    "0008|0081 = first\nnot a = field",
    "comment = x",
]


def odd_headers() -> list[tuple[str, str]]:
    """Suffix and header text of every odd header."""
    for headers, edits in ((NRRD, NRRD_EDITS), (META, META_EDITS)):
        assert all(old in headers for old, _ in edits)
    return [
        *((".nrrd", NRRD.replace(old, new, 1) + "\n") for old, new in NRRD_EDITS),
        *((".nrrd", with_lines(NRRD, line) + "\n") for line in NRRD_ADDED),
        *((".mha", META.replace(old, new, 1)) for old, new in META_EDITS),
        *((".mha", with_lines(META, line)) for line in META_ADDED),
    ]


@pytest.mark.parametrize(("suffix", "header"), odd_headers())
def test_an_odd_header_is_refused(tmp_path: Path, suffix: str, header: str) -> None:
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(header.encode("latin-1") + VALUES.tobytes())
    with pytest.raises(ScanError) as caught:
        open_itk_file(path).read_into(np.empty((6, 5, 4), np.float32))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert "expected" in message
    assert "ITK refuses" not in message


def test_there_are_many_odd_headers() -> None:
    assert len(odd_headers()) > 150


def test_damaged_files_are_refused_or_read_as_plain_parsing_reads_them() -> None:
    """In a process of its own: what is tested may crash."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.image_files", "0", "1500"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (run.returncode, run.stderr) == (0, "")
    *found, summary = run.stdout.splitlines()
    assert found == []
    assert int(summary.split()[1]) > 300
