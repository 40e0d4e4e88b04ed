"""Reading protobuf messages field by field, without their schema and without reading what is skipped.

The bytes are untrusted: every length is held against its message, and the number of fields against a budget.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

Bytes: TypeAlias = bytes | mmap.mmap

VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5
_FIXED_SIZES = {FIXED_64: 8, FIXED_32: 4}
_LONGEST_VARINT = 10
_TOO_LONG = "the message ends within a field"


class WireError(ValueError):
    """The bytes are no protobuf message, or hold more fields than allowed."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: as in the schema.
        kind: `VARINT`, `FIXED_64`, `LENGTH` or `FIXED_32`.
        value: of a varint; otherwise 0.
        start, end: where the content of any other kind lies.
    """

    number: int
    kind: int
    value: int
    start: int
    end: int


class WireReader:
    """Walks messages that lie in `data`.

    Args:
        data: a whole file, or a map of it.
        most_fields: of all messages together that are walked.
    """

    def __init__(self, data: Bytes, most_fields: int) -> None:
        self.data = data
        self._left = most_fields
        self._most = most_fields

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """All fields of the message in `data[start:end]`, in their order.

        Raises:
            WireError: they are no message, or too many.
        """
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise WireError(f"more than {self._most} fields")
            tag, position = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise WireError("a field has number 0")
            if kind == VARINT:
                value, position = self._varint(position, end)
                yield Field(number, kind, value, 0, 0)
                continue
            if kind == LENGTH:
                size, position = self._varint(position, end)
            elif kind in _FIXED_SIZES:
                size = _FIXED_SIZES[kind]
            else:
                raise WireError(f"a field is of the unknown kind {kind}")
            if size > end - position:
                raise WireError(_TOO_LONG)
            yield Field(number, kind, 0, position, position + size)
            position += size

    def varints(self, field: Field) -> Iterator[int]:
        """The numbers of a repeated integer field: one, or several packed into one field."""
        if field.kind == VARINT:
            yield field.value
        elif field.kind == LENGTH:
            position = field.start
            while position < field.end:
                value, position = self._varint(position, field.end)
                yield value

    def text(self, field: Field, longest: int) -> str:
        """A string field.

        Raises:
            WireError: it takes more than `longest` bytes.
        """
        if field.end - field.start > longest:
            raise WireError(f"a name of {field.end - field.start} bytes, expected at most {longest}")
        return bytes(self.data[field.start : field.end]).decode("utf-8", "replace")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        for place in range(position, min(position + _LONGEST_VARINT, end)):
            byte = self.data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
            shift += 7
        raise WireError(_TOO_LONG if end - position < _LONGEST_VARINT else "a number takes more than 10 bytes")
