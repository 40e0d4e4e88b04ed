"""DICOM files put together from their parts, so that tests decide every byte."""

from __future__ import annotations

import struct

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
