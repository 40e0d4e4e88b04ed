"""Does every element of a DICOM file end within the file.

GDCM reserves whatever length a damaged element claims, up to 4 GiB each, before it notices that the file is
shorter. So lengths are checked here first. Encoding: DICOM PS3.5 chapter 7.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from masksam_deploy.errors import ScanError
from masksam_deploy.text import shown

_START = 132
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT_VRS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS"),
    *(b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_ITEM, _ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_MAX_DEPTH = 30


def check_lengths(path: Path) -> None:
    """Check the length of every element and item, reading none of their values.

    Raises:
        ScanError: no DICM mark, an element that claims more bytes than there are, or a structure that cannot be
            followed.
        OSError: the file cannot be read.
    """
    if path.stat().st_size == 0:
        raise ScanError(f"{shown(path)}: found an empty file, expected a DICOM slice; copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walker = _Walker(data, shown(path))
        if data[128:_START] != b"DICM":
            raise walker.damaged("no DICM mark")
        start, syntax = walker.file_meta()
        if syntax == _DEFLATED:
            raise ScanError(f"{shown(path)}: found a deflated DICOM file, expected another transfer syntax; convert it")
        order = ">" if syntax == _BIG_ENDIAN else "<"
        walker.elements(start, len(data), order, explicit=syntax != _IMPLICIT)


class _Walker:
    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data = data
        self._name = name

    def file_meta(self) -> tuple[int, str]:
        """Where group 2 ends, and the transfer syntax it states."""
        pos, syntax = _START, ""
        while pos + 8 <= len(self._data):
            group, element = struct.unpack_from("<2H", self._data, pos)
            if group != 2:
                break
            start, length, _ = self._header(pos, len(self._data), "<", explicit=True)
            if element == 0x10:
                syntax = self._data[start : start + length].decode("ascii", "replace").strip(" \0")
            pos = start + length
        return pos, syntax

    def elements(self, pos: int, end: int, order: str, *, explicit: bool, depth: int = 0) -> int:
        """Follow elements up to `end` or an end mark; where the next one starts."""
        while pos + 8 <= end:
            tag = struct.unpack_from(f"{order}2H", self._data, pos)
            if tag == _ITEM_END:
                return pos + 8
            start, length, vr = self._header(pos, end, order, explicit=explicit)
            if length == _UNDEFINED:
                # An undefined length of unknown type holds implicit items (PS3.5 6.2.2).
                inside = explicit and vr != b"UN"
                fragments = tag == (0x7FE0, 0x0010)
                pos = self._items(start, end, order, explicit=inside, depth=depth, opaque=fragments)
            else:
                pos = start + length
                if vr == b"SQ":
                    self._items(start, pos, order, explicit=explicit, depth=depth)
        return pos

    def _items(self, pos: int, end: int, order: str, *, explicit: bool, depth: int, opaque: bool = False) -> int:
        if depth > _MAX_DEPTH:
            raise self.damaged(f"sequences nested deeper than {_MAX_DEPTH}")
        while pos + 8 <= end:
            *tag, length = struct.unpack_from(f"{order}2HI", self._data, pos)
            pos += 8
            if tuple(tag) == _SEQUENCE_END:
                return pos
            if tuple(tag) != _ITEM:
                raise self.damaged("something other than an item in a sequence")
            if length == _UNDEFINED:
                pos = self.elements(pos, end, order, explicit=explicit, depth=depth + 1)
            elif length > end - pos:
                raise self.damaged(f"an item of {length} bytes where {end - pos} are left")
            else:
                if not opaque:
                    self.elements(pos, pos + length, order, explicit=explicit, depth=depth + 1)
                pos += length
        return pos

    def _header(self, pos: int, end: int, order: str, *, explicit: bool) -> tuple[int, int, bytes]:
        """Start and length of the value, and the type (empty if implicit)."""
        vr = self._data[pos + 4 : pos + 6] if explicit else b""
        if explicit and vr in _SHORT_VRS:
            start, length = pos + 8, struct.unpack_from(f"{order}H", self._data, pos + 6)[0]
        elif not explicit:
            start, length = pos + 8, struct.unpack_from(f"{order}I", self._data, pos + 4)[0]
        elif vr in _LONG_VRS and pos + 12 <= end:
            start, length = pos + 12, struct.unpack_from(f"{order}I", self._data, pos + 8)[0]
        else:
            raise self.damaged(f"an element of unknown type {vr!r}")
        if length != _UNDEFINED and length > end - start:
            raise self.damaged(f"an element of {length} bytes where {end - start} are left")
        return start, length, vr

    def damaged(self, found: str) -> ScanError:
        """What to say about a file that cannot be followed."""
        return ScanError(
            f"{self._name}: found a damaged or unsupported DICOM file ({found}), expected a complete image; "
            "copy it again, or remove it if it is no image"
        )
