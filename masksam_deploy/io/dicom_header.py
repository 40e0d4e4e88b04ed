"""The header of one DICOM file: found by pydicom, judged here.

pydicom follows the structure (PS3.5 chapter 7), also of files that depart from it in ways that leave no doubt: without
preamble or file meta information, in another encoding of value representations than stated, with zeros behind the last
element. It reads short values without a word and keeps the last of two equal elements; so lengths and doubles are
checked while it reads. Values are decoded here, from their bytes, as strictly as a label map needs.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import one_line, shown

PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
_FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)
_DEFERRED = 64 * 2**10
"""Bytes: values longer than this stay on the disk."""
_TRANSFER_SYNTAX = 0x00020010
_PREAMBLE = 128
_CHUNK = 2**20
# A decimal string (PS3.5 6.2), and what writers make of it. Python's float takes more: 'nan', '1_0', other digits.
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_NATIVE = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.2": ">",
}
"""Transfer syntaxes whose pixels are plain numbers, with the order of their bytes."""
_DEFLATED = "1.2.840.10008.1.2.1.99"


class Tag:
    """The elements that decide what an image is and where it lies (PS3.6)."""

    SOP_CLASS = 0x00080016
    MODALITY = 0x00080060
    SERIES_DESCRIPTION = 0x0008103E
    PATIENT_ID = 0x00100020
    THICKNESS = 0x00180050
    BETWEEN = 0x00180088
    STUDY = 0x0020000D
    SERIES = 0x0020000E
    POSITION = 0x00200032
    ORIENTATION = 0x00200037
    SAMPLES = 0x00280002
    PHOTOMETRIC = 0x00280004
    FRAMES = 0x00280008
    FUNCTIONAL_GROUPS = 0x52009229
    ROWS = 0x00280010
    COLUMNS = 0x00280011
    PIXEL_SPACING = 0x00280030
    BITS_ALLOCATED = 0x00280100
    BITS_STORED = 0x00280101
    HIGH_BIT = 0x00280102
    SIGNED = 0x00280103
    INTERCEPT = 0x00281052
    SLOPE = 0x00281053
    RESCALE_TYPE = 0x00281054
    MODALITY_LUT = 0x00283000
    UNITS = 0x00541001


_NAMES = {value: name for name, value in vars(Tag).items() if isinstance(value, int)}
_NUMBER_NAMES = {
    Tag.POSITION: "ImagePositionPatient",
    Tag.ORIENTATION: "ImageOrientationPatient",
    Tag.PIXEL_SPACING: "PixelSpacing",
    Tag.INTERCEPT: "RescaleIntercept",
    Tag.SLOPE: "RescaleSlope",
    Tag.ROWS: "Rows",
    Tag.COLUMNS: "Columns",
    Tag.BITS_ALLOCATED: "BitsAllocated",
    Tag.BITS_STORED: "BitsStored",
    Tag.HIGH_BIT: "HighBit",
    Tag.SIGNED: "PixelRepresentation",
    Tag.SAMPLES: "SamplesPerPixel",
}


@dataclass(frozen=True)
class PixelFormat:
    """How one image's pixels are stored (PS3.5 8.1).

    Attributes:
        rows, columns: of the image.
        allocated, stored: bits for each pixel, and those that hold its value; the others are above.
        signed: whether values are in two's complement.
        overlay_bits: mask of the bits above the value that the file says hold an overlay.
    """

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    overlay_bits: int = 0

    @property
    def size(self) -> int:
        """Bytes of the plain image."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def described(self) -> str:
        """For messages about slices that differ."""
        return f"{self.stored} of {self.allocated} bits, {'signed' if self.signed else 'unsigned'}"


@dataclass(frozen=True)
class PixelData:
    """Where the pixels lie in the file.

    Attributes:
        start: offset of the value.
        length: of the value; None if it is a sequence of fragments, which are compressed.
        syntax: transfer syntax UID.
        order: of the bytes of plain numbers, `<` or `>`.
        words: whether plain pixels are stored as 16-bit words.
    """

    start: int
    length: int | None
    syntax: str
    order: str
    words: bool


class DicomHeader:
    """The elements of one file.

    Args:
        path: of the file.

    Raises:
        ScanError: it is no DICOM file, is damaged, or holds no pixels.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = shown(path)
        with path.open("rb") as file:
            self.status = os.fstat(file.fileno())
            if self.status.st_size == 0:
                raise ScanError(f"{self.name}: found an empty file, expected a DICOM slice; copy it again")
            self._dataset = _read(file, self.status.st_size, self)

    def text(self, tag: int) -> str:
        """The element's value on one line, or an empty string."""
        return _text(self._value(tag))

    def numbers(self, tag: int, count: int) -> tuple[float, ...]:
        """Decimal strings.

        Raises:
            ScanError: there are not so many, or they are no finite numbers.
        """
        text = self.text(tag)
        words = [word.strip() for word in text.split("\\")]
        values = tuple(float(word) for word in words if _DECIMAL.fullmatch(word))
        if len(words) != count or len(values) != count or not np.isfinite(values).all():
            found = f"'{text}'" if text else "none"
            raise ScanError(
                f"{self.name}: found {found} as {_NUMBER_NAMES[tag]}, expected {count} numbers; give the original "
                "series"
            )
        return values

    def length(self, tag: int) -> float | None:
        """A length in mm that is only a hint; None if it is missing or makes no sense."""
        text = self.text(tag)
        value = float(text) if _DECIMAL.fullmatch(text) else 0.0
        return value if 0 < value < np.inf else None

    def unsigned(self, tag: int, default: int | None = None) -> int:
        """A 16-bit number.

        Raises:
            ScanError: there is none, and no default.
        """
        value = self._value(tag)
        if not value and default is not None:
            return default
        if len(value) != 2:
            found = f"{len(value)} bytes" if value else "none"
            raise ScanError(
                f"{self.name}: found {found} as {_NUMBER_NAMES[tag]}, expected one 16-bit number; give the original "
                "series"
            )
        return int(struct.unpack(f"{self._order}H", value)[0])

    def has(self, tag: int) -> bool:
        """Whether the element is there, be it empty."""
        return tag in self._dataset

    def check_has_pixels(self) -> None:
        """Refuse a file without an image of whole numbers.

        Raises:
            ScanError: it has none.
        """
        if any(self.has(tag) for tag in _FLOAT_PIXELS):
            raise ScanError(f"{self.name}: found pixels in floating point, expected whole numbers; convert the series")
        if not self.has(PIXEL_DATA):
            raise self.damaged("no pixels")

    @cached_property
    def pixel_format(self) -> PixelFormat:
        """How pixels are stored.

        Raises:
            ScanError: the file contradicts itself, or its pixels are of a kind that is not read.
        """
        rows, columns = self.unsigned(Tag.ROWS), self.unsigned(Tag.COLUMNS)
        allocated, stored = self.unsigned(Tag.BITS_ALLOCATED), self.unsigned(Tag.BITS_STORED)
        high, signed = self.unsigned(Tag.HIGH_BIT, stored - 1), self.unsigned(Tag.SIGNED)
        if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or high != stored - 1 or signed not in (0, 1):
            raise ScanError(
                f"{self.name}: found pixels of {allocated} bits, of which {stored} up to bit {high} hold the value, "
                f"with representation {signed}; expected 8, 16 or 32 bits with the value in the lowest ones; give the "
                "original series"
            )
        if not rows or not columns:
            raise ScanError(
                f"{self.name}: found {columns} x {rows} pixels, expected an image; give the original series"
            )
        return PixelFormat(rows, columns, allocated, stored, bool(signed), self._overlay_bits(stored, allocated))

    @cached_property
    def pixels(self) -> PixelData:
        """Where they lie.

        Raises:
            ScanError: there are none, or not as the transfer syntax has it.
        """
        self.check_has_pixels()
        element = self._dataset.get_item(PIXEL_DATA, keep_deferred=True)
        syntax = self._syntax()
        if not hasattr(element, "length"):
            raise self.damaged("a sequence where the pixels should be")
        fragments = element.length == UNDEFINED
        if fragments == (syntax in _NATIVE):
            kind = "compressed" if fragments else "plain"
            raise self.damaged(f"{kind} pixels in transfer syntax {syntax}")
        return PixelData(
            start=element.value_tell,
            length=None if fragments else element.length,
            syntax=syntax,
            order=self._order,
            words=element.VR != "OB",
        )

    @cached_property
    def rescale(self) -> tuple[float, float] | None:
        """Slope and intercept (PS3.3 C.11.1); None if neither is there.

        Raises:
            ScanError: one is there without the other, which readers take differently; or they are no numbers, or the
                slope is 0.
        """
        if not self.text(Tag.SLOPE) and not self.text(Tag.INTERCEPT):
            return None
        slope, intercept = self.numbers(Tag.SLOPE, 1)[0], self.numbers(Tag.INTERCEPT, 1)[0]
        if slope == 0:
            raise ScanError(f"{self.name}: found a rescale slope of 0, expected another number; repair the file")
        return slope, intercept

    def damaged(self, found: str) -> ScanError:
        """What to say about a file that cannot be followed."""
        return ScanError(
            f"{self.name}: found a damaged or unsupported DICOM file ({found}), expected a complete image; "
            "copy it again, or remove it if it is no image"
        )

    @property
    def _order(self) -> str:
        return "<" if self._dataset.original_encoding[1] else ">"

    def _syntax(self) -> str:
        """As stated; without a statement, as the elements are encoded."""
        meta = self._dataset.file_meta
        stated = one_line(str(meta.TransferSyntaxUID)) if _TRANSFER_SYNTAX in meta else ""
        if stated == _DEFLATED:
            raise ScanError(f"{self.name}: found a deflated DICOM file, expected another transfer syntax; convert it")
        return stated or ("1.2.840.10008.1.2.1" if self._order == "<" else "1.2.840.10008.1.2.2")

    def _value(self, tag: int) -> bytes:
        """The bytes of an element's value; none if it is missing.

        Raises:
            ScanError: it is a sequence, or far too long for what it should hold.
        """
        if tag not in self._dataset:
            return b""
        element = self._dataset.get_item(tag, keep_deferred=True)
        if isinstance(element.value, bytes):
            return element.value
        if element.value is None and getattr(element, "length", None) == 0:
            return b""
        raise self.damaged(f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) of another kind than it should be")

    def _overlay_bits(self, stored: int, allocated: int) -> int:
        """Bits that old files use for overlays instead of the pixels' value (PS3.3 C.9.2, retired)."""
        mask = 0
        for group in range(0x6000, 0x6020, 2):
            position = self._value(group << 16 | 0x0102)
            if len(position) == 2 and not self.has(group << 16 | 0x3000):
                bit = struct.unpack(f"{self._order}H", position)[0]
                mask |= 1 << bit if stored <= bit < allocated else 0
        return mask


def media_storage_class(path: Path) -> str:
    """MediaStorageSOPClassUID of the file meta information, also of a file that is damaged behind it; or nothing.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    start = head.find(b"\x02\x00\x02\x00UI", _PREAMBLE)
    if start < 0:
        return ""
    length = int.from_bytes(head[start + 6 : start + 8], "little")
    return _text(head[start + 8 : start + 8 + length])


def _text(value: bytes) -> str:
    return one_line(value.decode("utf-8", "replace").strip(" \0"))


def _read(file: IO[bytes], size: int, header: DicomHeader) -> Any:
    """The elements as pydicom finds them, with every length and double checked.

    Raises:
        ScanError: an element claims more bytes than there are, an element that matters is there twice, or the file
            cannot be followed.
    """
    from pydicom import config
    from pydicom.filereader import read_partial

    seen: dict[int, int] = {}

    def check(tag: int, _: str | None, length: int) -> bool:
        here = file.tell()
        if length != UNDEFINED and length > size - here:
            raise header.damaged(f"an element of {length} bytes where {size - here} are left")
        if tag == 0:
            return _only_zeros(file, header)
        # pydicom looks at the first element twice, a few bytes apart, if it is not encoded as stated.
        if (tag in _NAMES or tag in (PIXEL_DATA, *_FLOAT_PIXELS)) and here - seen.setdefault(tag, here) > 8:
            raise header.damaged(f"element ({tag >> 16:04x},{tag & 0xFFFF:04x}) twice")
        return False

    config.settings.reading_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _refuse_deflated(file, header)
            return read_partial(file, stop_when=check, defer_size=_DEFERRED, force=True)
    except (ScanError, OSError, MemoryError):
        raise
    except Exception as error:
        raise header.damaged(one_line(str(error)) or type(error).__name__) from error


def _refuse_deflated(file: IO[bytes], header: DicomHeader) -> None:
    """pydicom would inflate the whole file at once, whatever it inflates to."""
    head = file.read(4096)
    file.seek(0)
    if b"\x02\x00\x10\x00UI" in head and _DEFLATED.encode() in head:
        raise ScanError(f"{header.name}: found a deflated DICOM file, expected another transfer syntax; convert it")


def _only_zeros(file: IO[bytes], header: DicomHeader) -> bool:
    """Whether nothing but zeros follows, as some writers fill up a block.

    Raises:
        ScanError: something else follows.
    """
    here = file.tell()
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise header.damaged("an element of tag 0 among the others")
    file.seek(here)
    return True
