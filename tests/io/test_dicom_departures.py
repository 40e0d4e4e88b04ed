"""DICOM files that depart from the standard as real writers do, without leaving a doubt: they are read, and rightly."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames

from masksam_deploy.io import read_volume
from tests.io.dicom_bytes import BIG, EXPLICIT, IMPLICIT, elements, fragments, lossless_jpeg, part_10


@pytest.fixture(autouse=True)
def quiet_pydicom() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(dataset: FileDataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def private_implicit(dataset: Dataset) -> bytes:
    """One private element without a value representation among others that have one."""
    content = elements(dataset, implicit=False)
    at = content.index(b"\x28\x00\x02\x00US")
    return content[:at] + b"\x21\x00\x10\x10" + struct.pack("<I", 6) + b"abcdef" + content[at:]


def unknown_with_explicit_items(dataset: Dataset) -> bytes:
    """A private sequence of unknown type and length whose items are not implicit, as the standard has it."""
    content = elements(dataset, implicit=False)
    at = content.index(b"\x28\x00\x02\x00US")
    item = b"\x08\x00\x00\x01SH\x04\x00ABCD"
    inside = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item + b"\xfe\xff\xdd\xe0" + bytes(4)
    return content[:at] + b"\x21\x00\x10\x10UN\0\0" + b"\xff" * 4 + inside + content[at:]


DEPARTURES: dict[str, Callable[[FileDataset], bytes]] = {
    "zeros behind the last element": lambda d: saved(d) + bytes(700),
    "a padding element behind the pixels": lambda d: (
        part_10(EXPLICIT, elements(d, implicit=False)) + b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", 8) + bytes(8)
    ),
    "implicit, without preamble and meta": lambda d: elements(d, implicit=True),
    "explicit, without preamble and meta": lambda d: elements(d, implicit=False),
    "meta without preamble": lambda d: part_10(EXPLICIT, elements(d, implicit=False))[132:],
    "implicit, said to be explicit": lambda d: part_10(EXPLICIT, elements(d, implicit=True)),
    "explicit, said to be implicit": lambda d: part_10(IMPLICIT, elements(d, implicit=False)),
    "one private element without a type": lambda d: part_10(EXPLICIT, private_implicit(d)),
    "unknown type with explicit items": lambda d: part_10(EXPLICIT, unknown_with_explicit_items(d)),
    "meta without a transfer syntax": lambda d: part_10(EXPLICIT, elements(d, implicit=False)).replace(
        b"\x02\x00\x10\x00UI", b"\x02\x00\x02\x00UI"
    ),
    "an unknown type of a private element": lambda d: part_10(
        EXPLICIT,
        elements(d, implicit=False).replace(b"\x28\x00\x02\x00US", b"\x21\x00\x10\x10ZZ\x04\0abcd\x28\x00\x02\x00US"),
    ),
}


@pytest.mark.parametrize("name", DEPARTURES)
def test_files_that_depart_from_the_standard_without_doubt_are_read(data: Path, tmp_path: Path, name: str) -> None:
    original = data / "dicom" / "head_flipped"
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(DEPARTURES[name](pydicom.dcmread(file)))
    read, expected = read_volume(tmp_path), read_volume(original)
    np.testing.assert_array_equal(read.array, expected.array)
    assert read.geometry == expected.geometry


def test_one_departing_slice_among_others_is_read(data: Path, tmp_path: Path) -> None:
    original = data / "dicom" / "head_flipped"
    for file, change in zip(sorted(original.iterdir()), DEPARTURES.values(), strict=False):
        (tmp_path / file.name).write_bytes(change(pydicom.dcmread(file)))
    np.testing.assert_array_equal(read_volume(tmp_path).array, read_volume(original).array)


def test_big_endian_files_are_read(data: Path, tmp_path: Path) -> None:
    original = data / "dicom" / "head_flipped"
    for file in original.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        (tmp_path / file.name).write_bytes(part_10(BIG, elements(dataset, implicit=False, little=False)))
    np.testing.assert_array_equal(read_volume(tmp_path).array, read_volume(original).array)


def in_fragments(dataset: FileDataset, stream: bytes) -> None:
    cuts = [0, 2 * (len(stream) // 7), 2 * (len(stream) // 5), len(stream)]
    dataset.PixelData = fragments(*(stream[a:b] for a, b in pairwise(cuts)))


def with_extended_offsets(dataset: FileDataset, stream: bytes) -> None:
    dataset.ExtendedOffsetTable = struct.pack("<Q", 0)
    dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(stream))
    dataset.PixelData = encapsulate([stream], has_bot=False)


def in_jp2_boxes(dataset: FileDataset, stream: bytes) -> None:
    boxes = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A) + struct.pack(">I4s4sI4s", 20, b"ftyp", b"jp2 ", 0, b"jp2 ")
    ihdr = struct.pack(">I4sIIHBBBB", 22, b"ihdr", dataset.Rows, dataset.Columns, 1, 11, 7, 0, 0)
    colr = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
    boxes += struct.pack(">I4s", 8 + len(ihdr) + len(colr), b"jp2h") + ihdr + colr
    whole = boxes + struct.pack(">I4s", 8 + len(stream), b"jp2c") + stream
    dataset.PixelData = encapsulate([whole + b"\0" * (len(whole) % 2)])


@pytest.mark.parametrize("wrap", [in_fragments, with_extended_offsets, in_jp2_boxes])
def test_compressed_pixels_are_read_however_they_are_wrapped(
    data: Path, tmp_path: Path, wrap: Callable[[FileDataset, bytes], None]
) -> None:
    original = data / "dicom" / "ct_empty_uids"
    for file in original.iterdir():
        dataset = pydicom.dcmread(file)
        wrap(dataset, next(generate_frames(dataset.PixelData, number_of_frames=1)))
        dataset.save_as(tmp_path / file.name)
    np.testing.assert_array_equal(read_volume(tmp_path).array, read_volume(original).array)


def placed(dataset: Any, number: int) -> None:
    """Make a slice of a stack of one image."""
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]


@pytest.mark.parametrize("frames", ["1", "01", "+1"])
def test_one_frame_is_no_multi_frame_image_however_it_is_written(data: Path, tmp_path: Path, frames: str) -> None:
    for file in sorted((data / "dicom" / "oblique").glob("*.dcm")):
        dataset = pydicom.dcmread(file)
        dataset.add_new(0x00280008, "LO", frames)
        dataset.save_as(tmp_path / file.name)
    assert read_volume(tmp_path).array.shape == (1, 3, 50, 100)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("signed", [False, True])
def test_plain_pixels_of_every_width_are_read(data: Path, tmp_path: Path, bits: int, signed: bool) -> None:
    source = data / "dicom" / "oblique" / "0.dcm"
    random = np.random.default_rng(bits)
    planes = []
    for number in range(3):
        dataset = pydicom.dcmread(source)
        placed(dataset, number)
        # An odd number of 8-bit pixels is filled up with one byte.
        dataset.Rows, dataset.Columns = 5, 7
        limits = np.iinfo(f"{'i' if signed else 'u'}{bits // 8}")
        plane = random.integers(limits.min, limits.max, (5, 7), dtype=limits.dtype, endpoint=True)
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "-3"
        dataset.PixelData = plane.tobytes() + b"\0" * (plane.nbytes % 2)
        dataset.save_as(tmp_path / f"{number}.dcm")
        planes.append(plane.astype(np.float64) * 0.5 - 3)
    np.testing.assert_array_equal(read_volume(tmp_path).array[0], np.stack(planes).astype(np.float32))


def test_an_overlay_in_unused_bits_is_left_out_where_the_file_states_it(data: Path, tmp_path: Path) -> None:
    expected = np.arange(35, dtype="<u2").reshape(5, 7) * 100
    for number in range(3):
        dataset = pydicom.dcmread(data / "dicom" / "oblique" / "0.dcm")
        placed(dataset, number)
        dataset.Rows, dataset.Columns, dataset.BitsStored, dataset.HighBit = 5, 7, 12, 11
        dataset.PixelRepresentation = 0
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
        dataset.add_new(0x60000100, "US", 16)
        dataset.add_new(0x60000102, "US", 13)
        dataset.PixelData = (expected | ((np.arange(35).reshape(5, 7) % 2).astype("<u2") << 13)).tobytes()
        dataset.save_as(tmp_path / f"{number}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array[0, 1], expected)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("allocated", "stored", "precision"),
    [(8, 7, 7), (8, 7, 8), (8, 8, 8), (16, 6, 6), (16, 8, 8), (16, 8, 16), (16, 12, 12), (16, 12, 16), (16, 16, 16)],
)
def test_lossless_streams_of_every_width_are_read(
    data: Path, tmp_path: Path, allocated: int, stored: int, precision: int, signed: bool
) -> None:
    # Streams know no sign: negative values are in two's complement of the stream's width.
    random = np.random.default_rng(stored)
    low = -(1 << (stored - 1)) if signed else 0
    plane = random.integers(low, low + (1 << stored), (5, 7))
    plane[0, :2] = low, low + (1 << stored) - 1
    stream = lossless_jpeg(plane & ((1 << precision) - 1), precision)
    for number in range(3):
        dataset = pydicom.dcmread(data / "dicom" / "single" / "jpeg_lossless.dcm")
        placed(dataset, number)
        dataset.Rows, dataset.Columns = plane.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.PixelData = fragments(stream + b"\0" * (len(stream) % 2))
        dataset.save_as(tmp_path / f"{number}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path).array[0, 1], plane)


def test_a_lossy_stream_of_12_bits_is_read(data: Path, tmp_path: Path) -> None:
    # GDCM's decoder for 8 bits is tried first, and says on standard error that it does not know 12.
    for number in range(3):
        dataset = pydicom.dcmread(data / "dicom" / "single" / "JPGExtended.dcm")
        placed(dataset, number)
        dataset.save_as(tmp_path / f"{number}.dcm")
    plane = read_volume(tmp_path).array[0, 1]
    # As libjpeg of pylibjpeg has it, up to rounding.
    assert plane.shape == (1024, 256)
    assert plane.max() == 264
    assert plane.mean() == pytest.approx(14.383, abs=0.05)
