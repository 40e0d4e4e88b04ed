"""From the pixel data of one DICOM file to numbers.

Plain and run-length encoded pixels are decoded here, from the bytes that were counted. Other streams are decoded by
GDCM, which is given a minimal file with nothing in it but the stream and the values that were checked.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import itk_reason, one_line
from masksam_deploy.base.volume import Array
from masksam_deploy.io.dicom_codestream import (
    JPEG_LS,
    READABLE,
    RLE,
    Stream,
    StreamError,
    check_stream,
    decode_rle,
)
from masksam_deploy.io.dicom_header import DicomHeader, PixelData, PixelFormat
from masksam_deploy.io.itk import quiet_itk

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_MOST_COMPLAINTS = 400
_IMAGE_CLASS = "1.2.840.10008.5.1.4.1.1.7"
"""Secondary capture: it has no attributes that GDCM would take into account."""


def check_readable(header: DicomHeader) -> None:
    """Refuse pixel data that cannot be decoded, or whose length is not what the header says; reads no pixels.

    Raises:
        ScanError: says what was found.
    """
    pixels, form = header.pixels, header.pixel_format
    if pixels.length is None:
        if pixels.syntax != RLE and pixels.syntax not in READABLE:
            raise header.damaged(f"transfer syntax {one_line(pixels.syntax)}")
        if pixels.syntax != RLE and form.allocated > 16:
            raise header.damaged(f"compressed pixels of {form.allocated} bits")
        return
    if pixels.length not in (form.size, form.size + form.size % 2):
        raise header.damaged(
            f"{pixels.length} bytes of pixels where {form.columns} x {form.rows} of {form.allocated} bits take "
            f"{form.size}"
        )
    if pixels.order == ">" and form.allocated == 8 and pixels.words:
        raise header.damaged("8-bit pixels in big-endian words")


def decode_plane(header: DicomHeader, plane: Array) -> None:
    """Write the rescaled pixels into a float32 plane `[rows, columns]`.

    Raises:
        ScanError: they are damaged, or hold bits that the header denies.
        OSError: the file cannot be read.
    """
    values = _checked(_stored(header), header)
    rescale = header.rescale
    if rescale is None:
        np.copyto(plane, values, casting="same_kind")
        return
    slope, intercept = rescale
    with np.errstate(over="ignore"):  # what is too large becomes infinite here, and is refused as such
        np.copyto(plane, values * slope + intercept, casting="same_kind")


def _stored(header: DicomHeader) -> NDArray[np.generic]:
    """Pixels as stored, `[rows, columns]`."""
    pixels, form = header.pixels, header.pixel_format
    try:
        with header.path.open("rb") as file:
            file.seek(pixels.start)
            data = b"".join(_fragments(file)) if pixels.length is None else file.read(form.size)
            _check_unchanged(file, header)
        if pixels.length is not None:
            return _plain(data, pixels, form)
        if pixels.syntax == RLE:
            return decode_rle(data, form)
        stream = check_stream(data, pixels.syntax, form)
        values = _decoded_by_gdcm(data, pixels.syntax, stream)
    except StreamError as error:
        raise header.damaged(str(error)) from error
    # A stream that knows no sign has negative values in two's complement of its own width.
    return _sign_extended(values, stream.precision) if form.signed and stream.signed is None else values


def _sign_extended(codes: NDArray[np.generic], bits: int) -> NDArray[np.int64]:
    """The signed values that codes of so many bits stand for."""
    value = codes.astype(np.int64)
    value -= (value >> (bits - 1)) << bits
    return value


def _check_unchanged(file: IO[bytes], header: DicomHeader) -> None:
    """Refuse pixels of another file than the header was of, as while a series is being exported again.

    Raises:
        ScanError: the file has another size or time than it had.
    """
    now = os.fstat(file.fileno())
    if (now.st_size, now.st_mtime_ns) != (header.status.st_size, header.status.st_mtime_ns):
        raise ScanError(
            f"{header.name}: found a file that changed while it was read, expected it to stay; wait until the series "
            "is complete"
        )


def _plain(data: bytes, pixels: PixelData, form: PixelFormat) -> NDArray[np.generic]:
    if len(data) != form.size:
        raise StreamError(f"{len(data)} bytes of pixels, not {form.size}")
    values = np.frombuffer(data, f"{pixels.order}u{form.allocated // 8}")
    return values.astype(values.dtype.newbyteorder("="), copy=False).reshape(form.rows, form.columns)


def _fragments(file: IO[bytes]) -> Iterator[bytes]:
    """The items of encapsulated pixel data (PS3.5 A.4) behind the table of offsets, which one image does not need.

    Raises:
        StreamError: an item ends behind the file, or there is no end.
    """
    size = os.fstat(file.fileno()).st_size
    first = True
    while True:
        head = file.read(8)
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if len(head) == 8 and tag == _END:
            return
        if len(head) != 8 or tag != _ITEM or length > size - file.tell():
            raise StreamError("fragments of pixels that break off")
        content = file.read(length)
        if not first:
            yield content
        first = False


def _checked(values: NDArray[np.generic], header: DicomHeader) -> NDArray[np.int64]:
    """The values that the stored bits mean (PS3.5 8.1.1).

    Raises:
        ScanError: bits above the value are set that neither continue its sign nor hold a stated overlay: either the
            value has more bits than the header says, or it is no value.
    """
    form = header.pixel_format
    code = values.astype(np.int64) & ((1 << form.allocated) - 1)
    value = code & ((1 << form.stored) - 1)
    if form.signed:
        value = _sign_extended(value, form.stored)
    odd = (code ^ value) & ((1 << form.allocated) - 1) & ~form.overlay_bits
    if odd.any():
        raise header.damaged(f"pixels with bits beyond the {form.stored} that are said to hold {_sign(form)} values")
    return value


def _sign(form: PixelFormat) -> str:
    return "signed" if form.signed else "unsigned"


def _decoded_by_gdcm(data: bytes, syntax: str, stream: Stream) -> NDArray[np.generic]:
    """Decode one checked stream to `[rows, columns]`; unsigned unless the stream itself knows signs.

    Raises:
        StreamError: GDCM refuses it, complains about it, or gives another image than its header says.
    """
    with _named_file(_minimal_file(data, syntax, stream)) as name, _complaints() as complaints:
        try:
            with quiet_itk():
                values = SimpleITK.GetArrayFromImage(_reader(name).Execute())
        except RuntimeError as error:
            raise StreamError(itk_reason(error)) from error
    # libjpeg fills what is missing with grey, and only says so.
    complaint = _of_weight(complaints, stream)
    if complaint:
        raise StreamError(one_line(complaint, _MOST_COMPLAINTS))
    if values.shape != (1, stream.rows, stream.columns) or values.dtype.kind not in "iu":
        raise StreamError(f"{values.dtype} pixels of shape {values.shape}")
    plane: NDArray[np.generic] = values[0]
    return plane


def _of_weight(complaints: list[str], stream: Stream) -> str:
    """What the decoders said, but for one of another width, which GDCM tries before the right one."""
    harmless = f"Unsupported JPEG data precision {stream.precision}"
    return " ".join(line for text in complaints for line in text.splitlines() if line.strip() != harmless)


def _minimal_file(data: bytes, syntax: str, stream: Stream) -> bytes:
    """A DICOM file that holds one compressed image and what a decoder must know of it."""
    from io import BytesIO

    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = _IMAGE_CLASS
    meta.MediaStorageSOPInstanceUID = "2.25.1"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = _IMAGE_CLASS, "2.25.1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stream.rows, stream.columns
    # GDCM masks what is beyond the bits stored. It wants narrow JPEG-LS in 8 bits, and narrow JPEG in 16.
    least = 1 if syntax in JPEG_LS else 8
    allocated = 8 if least <= stream.precision <= 8 else 16
    stored = 8 if allocated == 8 else stream.precision
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = int(bool(stream.signed))
    dataset.PixelData = encapsulate([data if len(data) % 2 == 0 else data + b"\0"], has_bot=False)
    dataset["PixelData"].VR = "OB"
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


@contextmanager
def _named_file(content: bytes) -> Iterator[str]:
    """A file that exists for a library that opens names only; on Linux it is on no disk."""
    if sys.platform == "linux":
        fd = os.memfd_create("masksam-image", os.MFD_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{fd}"
        return
    with tempfile.TemporaryDirectory(prefix="masksam-") as folder:
        path = Path(folder) / "image.dcm"
        path.write_bytes(content)
        yield str(path)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What C code writes to standard error meanwhile; the list is filled on leaving."""
    found: list[str] = []
    before = os.dup(2)
    with _unnamed_file() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            text = file.read(_MOST_COMPLAINTS).decode("utf-8", "replace").strip()
            if text:
                found.append(text)


def _unnamed_file() -> IO[bytes]:
    """A temporary file; on Linux it is on no disk."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("masksam-complaints", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


def _reader(name: str) -> SimpleITK.ImageFileReader:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(name)
    reader.SetImageIO("GDCMImageIO")
    reader.LoadPrivateTagsOff()
    return reader
