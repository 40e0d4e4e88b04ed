"""Compressed images inside DICOM files: does a stream's own header say what the file says.

A decoder believes the stream. Where the two differ it reads beyond its buffers, takes gigabytes, or gives another
image; so they are compared before any decoder sees the stream. Formats: JPEG (ITU-T T.81 annex B), JPEG-LS (T.87), JPEG
2000 (T.800 annex A, I), RLE (DICOM PS3.5 annex G).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.io.dicom_header import PixelFormat

_MOST_TILES = 65_535
_END_OF_IMAGE = b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
_RLE_HEADER = struct.Struct("<16I")
_RLE_SEGMENTS = 15
_FRAME_MARKERS = frozenset([0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7])
_START_OF_SCAN, _NUMBER_OF_LINES = 0xDA, 0xDC


class StreamError(Exception):
    """A stream is not what the file says, or is cut off; the text says what was found."""


@dataclass(frozen=True)
class Stream:
    """What the header of a compressed image says of it.

    Attributes:
        rows, columns, components: of the image.
        precision: bits of a value.
        signed: of the values; None where the format does not say.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool | None = None


def check_stream(data: bytes, syntax: str, pixels: PixelFormat) -> Stream:
    """Compare a stream's own header with the file's.

    Args:
        data: all fragments of one image.
        syntax: transfer syntax UID, one of `READABLE`.
        pixels: what the file says.

    Returns:
        What the stream says.

    Raises:
        StreamError: they differ, or the stream has no end.
    """
    stream = READABLE[syntax](data)
    if (stream.rows, stream.columns) != (pixels.rows, pixels.columns):
        raise StreamError(
            f"a stream of {stream.columns} x {stream.rows} pixels where the file says {pixels.columns} x {pixels.rows}"
        )
    if stream.components != 1:
        raise StreamError(f"a stream of {stream.components} values per pixel")
    # Fewer bits than stated leave the value as it is, unless it has a sign in the topmost one.
    least = pixels.stored if pixels.signed and stream.signed is None else 1
    if not least <= stream.precision <= pixels.allocated:
        raise StreamError(
            f"a stream of {stream.precision} bits where the file says {pixels.stored} of {pixels.allocated}"
        )
    if stream.signed is not None and stream.signed != pixels.signed:
        raise StreamError(f"a stream of {_sign(stream.signed)} values where the file says {_sign(pixels.signed)}")
    return stream


def decode_rle(data: bytes, pixels: PixelFormat) -> NDArray[np.generic]:
    """One image in DICOM's run-length encoding: unsigned `[rows, columns]` as stored.

    Raises:
        StreamError: a segment is missing, too short or too long.
    """
    width = pixels.allocated // 8
    if len(data) < _RLE_HEADER.size:
        raise StreamError("a stream without a header")
    count, *offsets = _RLE_HEADER.unpack_from(data)
    used, rest = offsets[:width], offsets[width:_RLE_SEGMENTS]
    if count != width or any(rest) or used != sorted(set(used)) or used[0] != _RLE_HEADER.size or used[-1] > len(data):
        raise StreamError(f"{count} run-length segments at {used}, not {width} one after the other")
    size = pixels.rows * pixels.columns
    planes = np.empty((size, width), np.uint8)
    for index, (start, end) in enumerate(zip(used, [*used[1:], len(data)], strict=True)):
        planes[:, width - 1 - index] = _unpacked(data[start:end], size)  # the highest byte comes first
    return planes.view(f"<u{width}").reshape(pixels.rows, pixels.columns)


def _unpacked(segment: bytes, size: int) -> NDArray[np.uint8]:
    """PackBits (PS3.5 G.3), with every byte accounted for."""
    out = bytearray()
    position = 0
    while len(out) < size:
        if position >= len(segment):
            raise StreamError(f"a run-length segment of {len(out)} values, not {size}")
        code = segment[position]
        position += 1
        if code < 128:
            literal = segment[position : position + code + 1]
            if len(literal) != code + 1:
                raise StreamError("a run-length segment that breaks off")
            out += literal
            position += code + 1
        elif code > 128:
            if position >= len(segment):
                raise StreamError("a run-length segment that breaks off")
            out += segment[position : position + 1] * (257 - code)
            position += 1
    # Segments have an even length; some writers fill up with zeros or with codes that mean nothing.
    if len(out) != size or segment[position:].strip(b"\0\x80"):
        raise StreamError(f"a run-length segment of more than {size} values")
    return np.frombuffer(bytes(out), np.uint8)


def _jpeg(*frames: int) -> Callable[[bytes], Stream]:
    """A reader of JPEG streams whose frame header is one of these."""

    def read(data: bytes) -> Stream:
        found: Stream | None = None
        start = 0
        for marker, segment, end in _jpeg_segments(data):
            start = end
            if marker == _NUMBER_OF_LINES:
                raise StreamError("a stream that states its number of lines at its end")
            if marker not in _FRAME_MARKERS:
                continue
            if marker not in frames or found is not None or len(segment) < 6:
                raise StreamError(f"a frame of JPEG type {marker:#x} that its transfer syntax does not have")
            precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
            found = Stream(rows, columns, components, precision)
        if found is None:
            raise StreamError("a stream without a frame")
        _check_end(data, start)
        return found

    return read


def _check_end(data: bytes, start: int) -> None:
    """Refuse a stream without an end, or with a further image behind it.

    Args:
        data: the stream.
        start: of the coded values, among which there are no markers.
    """
    end = data.find(_END_OF_IMAGE, start)
    if end < 0:
        raise StreamError("a stream without an end")
    if data[end + 2 :].strip(b"\0\xff"):
        raise StreamError("something behind the end of the image")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker segments up to the first scan, and where each one ends."""
    if data[:2] != b"\xff\xd8":
        raise StreamError("something that is no JPEG stream")
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise StreamError("something between the segments of a JPEG stream")
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if length < 2 or position + 2 + length > len(data):
            raise StreamError("a JPEG segment that ends behind the stream")
        yield marker, data[position + 4 : position + 2 + length], position + 2 + length
        if marker == _START_OF_SCAN:
            return
        position += 2 + length
    raise StreamError("a JPEG stream without a scan")


def _jpeg_2000(data: bytes) -> Stream:
    code = _contiguous(data)
    if code[:4] != _J2K_START or len(code) < 45:
        raise StreamError("something that is no JPEG 2000 stream")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = struct.unpack_from(">8I", code, 8)
    components = struct.unpack_from(">H", code, 40)[0]
    depth, step_x, step_y = struct.unpack_from(">3B", code, 42)
    if x1 <= x0 or y1 <= y0 or not tile_x or not tile_y or tile_x0 > x0 or tile_y0 > y0 or (step_x, step_y) != (1, 1):
        raise StreamError("a JPEG 2000 stream with an impossible grid")
    if -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y) > _MOST_TILES:
        raise StreamError("a JPEG 2000 stream of more tiles than there may be")
    if depth & 0x7F < 7:
        raise StreamError(f"a JPEG 2000 stream of {(depth & 0x7F) + 1} bits, which its decoder does not know")
    if not code.rstrip(b"\0\xff").endswith(_END_OF_IMAGE):
        raise StreamError("a stream without an end")
    if code.find(_J2K_START, 4) >= 0:
        raise StreamError("a further image behind the first one")
    return Stream(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1, bool(depth & 0x80))


def _contiguous(data: bytes) -> bytes:
    """The code stream, also out of the boxes of a JP2 file, which some writers leave around it."""
    if data[4:8] != b"jP  ":
        return data
    position = 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"jp2c" and (length == 0 or not data[position + length :].strip(b"\0")):
            return data[position + 8 :]
        if length < 8:
            break
        position += length
    raise StreamError("a JP2 file without a stream")


def _sign(signed: bool) -> str:
    return "signed" if signed else "unsigned"


RLE = "1.2.840.10008.1.2.5"
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
READABLE: dict[str, Callable[[bytes], Stream]] = {
    "1.2.840.10008.1.2.4.50": _jpeg(0xC0),
    "1.2.840.10008.1.2.4.51": _jpeg(0xC0, 0xC1),
    "1.2.840.10008.1.2.4.57": _jpeg(0xC3),
    "1.2.840.10008.1.2.4.70": _jpeg(0xC3),
    **dict.fromkeys(JPEG_LS, _jpeg(0xF7)),
    "1.2.840.10008.1.2.4.90": _jpeg_2000,
    "1.2.840.10008.1.2.4.91": _jpeg_2000,
}
"""Transfer syntaxes that GDCM decodes, with what reads the header of their streams."""
