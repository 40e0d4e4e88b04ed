"""DICOM files put together from their parts, so that tests decide every byte."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"


def elements(dataset: Dataset, *, implicit: bool, little: bool = True) -> bytes:
    """The data set alone, without preamble and file meta information."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def part_10(syntax: str, content: bytes) -> bytes:
    """Preamble and a minimal file meta information before the data set."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(uid)) + uid
    length = b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(element))
    return bytes(128) + b"DICM" + length + element + content


def fragments(*parts: bytes) -> bytes:
    """Encapsulated pixel data with an empty table of offsets; every part must have an even length."""
    items = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in [b"", *parts])
    return items + b"\xfe\xff\xdd\xe0" + bytes(4)


def lossless_jpeg(codes: NDArray[np.integer], precision: int) -> bytes:
    """A lossless JPEG stream (ITU-T T.81 annex H) of codes `[rows, columns]` that have so many bits.

    Each value is predicted by the one on its left, or above where there is none; classes of differences have codes of
    five bits.
    """
    wide = codes.astype(np.int64)
    predicted = np.empty_like(wide)
    predicted[:, 1:] = wide[:, :-1]
    predicted[1:, 0] = wide[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = ""
    for value in (((wide - predicted + 2**15) % 2**16) - 2**15).ravel().tolist():
        size = abs(value).bit_length()
        bits += f"{size:05b}"
        if 0 < size < 16:
            bits += f"{value if value > 0 else value + (1 << size) - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    rows, columns = codes.shape
    segments = (
        (0xC3, struct.pack(">BHHBBBB", precision, rows, columns, 1, 1, 0x11, 0)),
        (0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
        (0xDA, bytes([1, 1, 0, 1, 0, 0])),
    )
    head = b"".join(bytes([0xFF, marker]) + struct.pack(">H", len(part) + 2) + part for marker, part in segments)
    return b"\xff\xd8" + head + coded + b"\xff\xd9"
