"""Voxels of one file, decoded in one pass: what is counted and checked is what is given out.

ITK is never asked for voxels: where a file is cut off or its compressed data break off, it fills in zeros, or memory
of the scan before.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import one_line
from masksam_deploy.base.volume import Array

Encoding = Literal["raw", "gzip", "zlib", "text"]
Convert = Callable[[Array], Array]

# Deflate cannot shrink data further than about 1032:1, so a header that promises more is lying.
MAX_DEFLATE_RATIO = 1040
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
_CHUNK = 1 << 20
# How far compressed data are followed for the sake of a message that names their damage.
_BEGINNING = 1 << 26
_GZIP_OR_ZLIB = 47
_LONGEST_NUMBER = 64
_NUMBER_BYTES = {"f": b"0123456789+-.eE", "i": b"0123456789+-", "u": b"0123456789+-"}
_WHITE_SPACE = b" \t\r\n"


@dataclass(frozen=True)
class StoredVoxels:
    """Where the voxels of a file lie, and how.

    Attributes:
        path: the file that holds them: the header's own, or the one it names.
        start: offset of their first byte; with `whole_file_is_gzip`, in the inflated file.
        encoding: plain bytes, compressed, or numbers written out.
        voxel_type: as stored, with byte order.
        size_xyz: voxels per axis, x fastest.
        head: what the file began with when its header was read (a detached file: nothing).
        whole_file_is_gzip: the header is compressed too.
        compressed_size: bytes of the compressed voxels as the header states them, or None.
    """

    path: Path
    start: int
    encoding: Encoding
    voxel_type: np.dtype[np.generic]
    size_xyz: tuple[int, int, int]
    head: bytes = b""
    whole_file_is_gzip: bool = False
    compressed_size: int | None = None

    @property
    def count(self) -> int:
        """Number of voxels."""
        return math.prod(self.size_xyz)

    @property
    def needed(self) -> int:
        """Bytes of all voxels in memory, as stored."""
        return self.count * self.voxel_type.itemsize


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def check_stored_size(voxels: StoredVoxels, what: str) -> None:
    """Check the length of the file before anything is allocated, so that a lying header costs nothing.

    Raises:
        ScanError: it cannot hold the voxels, or holds more.
        OSError: the file cannot be read.
    """
    length = voxels.path.stat().st_size
    if voxels.whole_file_is_gzip:
        most, needed = length * MAX_DEFLATE_RATIO, voxels.start + voxels.needed
        if most < needed:
            raise _wrong_size(what, f"at most {most}", needed)
        return
    stored = max(length - voxels.start, 0)
    if voxels.compressed_size is not None and voxels.compressed_size != stored:
        raise ScanError(
            f"{what}: found {stored} bytes of compressed voxels, expected {voxels.compressed_size} as the header says; "
            "the file is cut off or corrupt, copy it again"
        )
    if voxels.encoding == "text":
        # A written-out number takes at least a digit and, but for the last, a separator.
        most = (stored + 1) // 2
        if most < voxels.count:
            raise _wrong_size(what, f"at most {most * voxels.voxel_type.itemsize}", voxels.needed)
    elif voxels.encoding == "raw":
        # A transfer in text mode adds bytes and shifts every voxel behind them.
        if stored != voxels.needed:
            raise _wrong_size(what, str(stored), voxels.needed)
    elif stored * MAX_DEFLATE_RATIO < voxels.needed:
        raise _wrong_size(what, f"at most {stored * MAX_DEFLATE_RATIO}", voxels.needed)


def read_voxels(voxels: StoredVoxels, out: Array, what: str, convert: Convert | None = None) -> None:
    """Decode all voxels into `out`, in one pass and with little memory beside it.

    Args:
        voxels: where they lie.
        out: `[Z, Y, X]`, C-contiguous, of a type that the converted voxels cast to in kind.
        what: what messages call the file.
        convert: stored values to values; without one they are taken as they are.

    Raises:
        ScanError: too few or too many bytes, a damaged stream, a voxel that is stored as NaN or infinite, or a header
            that is no longer the one that was read.
        OSError: the file cannot be read.
    """
    if not out.flags.c_contiguous:
        raise ValueError("voxels can only be read into a C-contiguous array")  # a reshaped copy would take them
    with voxels.path.open("rb") as file:
        try:
            bad = _decode(voxels, file, out.reshape(-1), what, convert)
        except GZIP_ERRORS as error:
            raise damaged(what, error) from error
    if bad:
        raise ScanError(f"{what}: found {bad} voxels that are NaN or infinite, expected finite numbers; replace them")


def check_gzip(path: Path, what: str) -> None:
    """Check that the beginning of a compressed file inflates, in constant memory; a plain file passes.

    Raises:
        ScanError: the stream is damaged.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
        file.seek(0)
        try:
            _skip(gzip.GzipFile(fileobj=file), _BEGINNING)
        except GZIP_ERRORS as error:
            raise damaged(what, error) from error


def damaged(what: str, error: Exception) -> ScanError:
    """What to say about a compressed stream that breaks off or does not fit its checksum."""
    reason = one_line(str(error))
    return ScanError(f"{what}: found a damaged gzip stream ({reason}), expected an intact one; copy it again")


def _decode(voxels: StoredVoxels, file: BinaryIO, flat: Array, what: str, convert: Convert | None) -> int:
    """Fill `flat`; the number of stored values that are not finite."""
    outer: _Stream = gzip.GzipFile(fileobj=file) if voxels.whole_file_is_gzip else file
    if _exactly(outer, len(voxels.head)) != voxels.head:
        raise ScanError(f"{what}: found a file that changed while it was read; read it again")
    _skip(outer, voxels.start - len(voxels.head))
    if voxels.encoding == "text":
        values = _written_values(file, voxels, what)
    else:
        values = _stored_values(_inner(voxels, file, outer, what), voxels, what)
    done = bad = 0
    for stored in values:
        if stored.dtype.kind == "f":
            bad += stored.size - int(np.count_nonzero(np.isfinite(stored)))
        # A value too large for float32 becomes infinite here and is refused with the other non-finite voxels.
        with np.errstate(over="ignore", invalid="ignore"):
            converted = convert(stored) if convert else stored
            np.copyto(flat[done : done + stored.size], converted, casting="same_kind")
        done += stored.size
    return bad


def _inner(voxels: StoredVoxels, file: BinaryIO, outer: _Stream, what: str) -> _Stream:
    if voxels.encoding == "gzip":
        return gzip.GzipFile(fileobj=file)
    if voxels.encoding == "zlib":
        return _Inflating(file, what)
    return outer


def _stored_values(stream: _Stream, voxels: StoredVoxels, what: str) -> Iterator[Array]:
    """Arrays of values in the order of the file, which must end behind the last."""
    left = voxels.needed
    while left:
        chunk = _exactly(stream, min(_CHUNK, left))
        if not chunk or len(chunk) % voxels.voxel_type.itemsize:
            raise _wrong_size(what, str(voxels.needed - left + len(chunk)), voxels.needed)
        left -= len(chunk)
        yield np.frombuffer(chunk, voxels.voxel_type)
    if stream.read(1):  # reading to the end also has the checksum compared
        _skip(stream, _BEGINNING)
        raise _wrong_size(what, f"more than {voxels.needed}", voxels.needed)


def _written_values(file: BinaryIO, voxels: StoredVoxels, what: str) -> Iterator[Array]:
    """Arrays of values from numbers that are written out, with white space between them."""
    done, rest = 0, b""
    allowed = _NUMBER_BYTES[voxels.voxel_type.kind] + _WHITE_SPACE
    while chunk := file.read(_CHUNK):
        if chunk.translate(None, allowed):
            raise _not_numbers(what)
        chunk = rest + chunk
        cut = max(chunk.rfind(space) for space in (b" ", b"\t", b"\r", b"\n")) + 1
        rest = chunk[cut:]
        if len(rest) > _LONGEST_NUMBER:
            raise _not_numbers(what)
        words = chunk[:cut].split()
        done += len(words)
        if done > voxels.count:
            break
        if words:
            yield _numbers(words, voxels.voxel_type, what)
    if rest and done < voxels.count:
        done += 1
        yield _numbers([rest], voxels.voxel_type, what)
    elif rest:
        done += 1
    if done != voxels.count:
        raise ScanError(
            f"{what}: found {'more' if done > voxels.count else done} numbers, expected {voxels.count} voxels as the "
            "header says; the file is cut off or corrupt, copy it again"
        )


def _numbers(words: list[bytes], voxel_type: np.dtype[np.generic], what: str) -> Array:
    if max(map(len, words)) > _LONGEST_NUMBER:
        raise _not_numbers(what)
    try:
        if voxel_type.kind == "f":
            with np.errstate(over="ignore"):
                return np.array([float(word) for word in words]).astype(voxel_type)
        values = [int(word) for word in words]
    except ValueError:
        raise _not_numbers(what) from None
    limits = np.iinfo(np.dtype(voxel_type.str))
    if min(values) < limits.min or max(values) > limits.max:
        raise ScanError(
            f"{what}: found a voxel beyond {limits.min} to {limits.max}, expected what its type holds; the file is "
            "corrupt, copy it again"
        )
    return np.array(values, voxel_type)


class _Inflating:
    """One zlib or gzip stream that must end where the file does."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file, self._what = file, what
        self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB)

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none only at the end.

        Raises:
            ScanError: the stream is damaged, breaks off or is followed by something.
        """
        while not self._inflate.eof:
            chunk = self._inflate.unconsumed_tail or self._file.read(_CHUNK)
            try:
                content = self._inflate.decompress(chunk, size)
            except zlib.error as error:
                raise ScanError(
                    f"{self._what}: found damaged compressed voxels ({one_line(str(error))}), expected a whole file; "
                    "copy it again"
                ) from error
            if content:
                return content
            if not chunk and not self._inflate.eof:
                raise ScanError(
                    f"{self._what}: found compressed voxels that break off, expected a whole file; copy it again"
                )
        if self._inflate.unused_data or self._file.read(1):
            raise ScanError(
                f"{self._what}: found further bytes behind the compressed voxels, expected the end of the file; it is "
                "corrupt, copy it again"
            )
        return b""


def _exactly(stream: _Stream, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    first = stream.read(size) if size else b""
    if len(first) == size or not first:
        return first
    parts, length = [first], len(first)
    while length < size and (part := stream.read(size - length)):
        parts.append(part)
        length += len(part)
    return b"".join(parts)


def _skip(stream: _Stream, size: int) -> None:
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        size -= len(chunk)


def _not_numbers(what: str) -> ScanError:
    return ScanError(
        f"{what}: found something else than numbers among its written-out voxels, expected numbers with white space "
        "between them; copy the file again"
    )


def _wrong_size(what: str, found: str, expected: int) -> ScanError:
    return ScanError(
        f"{what}: found {found} bytes of voxels, expected {expected} as the header says; the file is cut off or "
        "corrupt, copy it again"
    )
