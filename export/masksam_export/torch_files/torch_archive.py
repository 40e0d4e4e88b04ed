"""The two containers of torch files: where in the file each storage is, once every byte has been checked."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from masksam_deploy.base.text import one_line
from masksam_export.torch_files.pickle_walk import MAX_PICKLE_BYTES
from masksam_export.torch_files.plain_values import DamagedError
from masksam_export.torch_files.torch_pickle import StorageRef, read_pickle

ZIP_START = b"PK\3\4"
LEGACY_START = b"\x80\x02"  # protocol 2
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DIRECTORY_BYTES = 8 * 2**20
"""Of a zip archive's table of contents: 50,000 storages and more."""
_CHUNK = 2**20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_UTF8_FLAG, _UNREADABLE_FLAGS = 0x800, 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patched, encrypted twice more


@dataclass(frozen=True)
class Region:
    """Bytes of a file.

    Attributes:
        start: offset of the first one.
        length: how many.
    """

    start: int
    length: int


@dataclass(frozen=True)
class Contents:
    """What a torch file holds, its tensors not yet made.

    Attributes:
        value: the saved object, with `TensorSpec`s in it.
        regions: the bytes of each storage, by its key.
        sha256: hash of the whole file.
    """

    value: Any
    regions: dict[str, Region]
    sha256: str


def read_contents(file: BinaryIO) -> Contents:
    """Read a file of torch.save, of torch 1.6 and later (a zip archive) or before.

    The archive's checksums are verified. The older format has none: only its structure can be checked.

    Args:
        file: open, buffered, seekable.

    Raises:
        DamagedError: not such a file, incomplete or altered.
        UnsafeObjectsError: objects other than tensors and plain values.
    """
    file.seek(0)
    return _read_archive(file) if file.read(len(ZIP_START)) == ZIP_START else _read_legacy(file)


def _read_archive(file: BinaryIO) -> Contents:
    with zipfile.ZipFile(_BoundedReads(file)) as archive:
        entries, end = archive.infolist(), archive.start_dir
    prefix = entries[0].filename.partition("/")[0] + "/" if entries else ""
    places = _places(file, entries, end)
    if prefix + "data.pkl" not in places:
        raise DamagedError("it is a zip archive without data.pkl, so torch.save did not write it")
    if prefix + "constants.pkl" in places:
        raise DamagedError("it is a TorchScript program, not a checkpoint")
    sha256 = _verified(file, [(places[entry.filename], entry) for entry in entries])
    order = _content(file, places.get(prefix + "byteorder"), limit=16)
    if order not in (b"", b"little"):
        raise DamagedError(f"its byte order is '{one_line(order.decode('latin-1'))}', expected 'little'")
    saved = read_pickle(io.BytesIO(_content(file, places[prefix + "data.pkl"], limit=MAX_PICKLE_BYTES)))
    start = prefix + "data/"
    regions = {name.removeprefix(start): place for name, place in places.items() if name.startswith(start)}
    return Contents(saved.value, regions, sha256)


class _BoundedReads(io.RawIOBase):
    """A file that does not let `zipfile` take a table of contents of gigabytes into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_DIRECTORY_BYTES + 1 if size < 0 else min(size, MAX_DIRECTORY_BYTES + 1))
        if len(data) > MAX_DIRECTORY_BYTES:
            raise DamagedError(f"its table of contents is larger than {MAX_DIRECTORY_BYTES >> 20} MiB")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _places(file: BinaryIO, entries: list[zipfile.ZipInfo], end: int) -> dict[str, Region]:
    """Where the bytes of each entry are; they do not overlap, and nothing about them is ambiguous."""
    places: dict[str, Region] = {}
    taken = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = one_line(entry.filename, limit=60)
        if entry.filename in places:
            raise DamagedError(f"its entry '{name}' is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise DamagedError(f"its entry '{name}' is compressed, which torch.save never does")
        start = _data_start(file, entry)
        if entry.header_offset < taken or start + entry.file_size > end:
            raise DamagedError(f"its entry '{name}' overlaps another part of the file")
        taken = start + entry.file_size
        places[entry.filename] = Region(start, entry.file_size)
    return places


def _data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    name = one_line(entry.filename, limit=60)
    if len(header) < _LOCAL_HEADER.size:
        raise DamagedError(f"its entry '{name}' is beyond the end of the file")
    magic, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    found = file.read(name_length).decode("utf-8" if flags & _UTF8_FLAG else "cp437")
    if magic != ZIP_START or found != entry.orig_filename or method != entry.compress_type:
        raise DamagedError(f"its entry '{name}' is not what the table of contents says")
    if (flags | entry.flag_bits) & _UNREADABLE_FLAGS:
        raise DamagedError(f"its entry '{name}' is encrypted")
    return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _verified(file: BinaryIO, entries: list[tuple[Region, zipfile.ZipInfo]]) -> str:
    """SHA-256 of the file, every entry's CRC-32 compared on the way."""
    digest, position = hashlib.sha256(), 0
    file.seek(0)
    for place, entry in sorted(entries, key=lambda pair: (pair[0].start, pair[0].length)):
        for chunk in _chunks(file, place.start - position):
            digest.update(chunk)
        checksum = 0
        for chunk in _chunks(file, place.length):
            digest.update(chunk)
            checksum = zlib.crc32(chunk, checksum)
        if checksum != entry.CRC:
            raise DamagedError(
                f"its entry '{one_line(entry.filename, limit=60)}' has the CRC-32 {checksum:08x}, expected "
                f"{entry.CRC:08x}: its data were altered"
            )
        position = place.start + place.length
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length:
        chunk = file.read(min(length, _CHUNK))
        if not chunk:
            raise DamagedError("it ends in the middle")
        length -= len(chunk)
        yield chunk


def _content(file: BinaryIO, place: Region | None, limit: int) -> bytes:
    if place is None:
        return b""
    if place.length > limit:
        raise DamagedError(f"an entry of it has {place.length:,} bytes, expected at most {limit:,}")
    file.seek(place.start)
    return file.read(place.length)


def _read_legacy(file: BinaryIO) -> Contents:
    """Five pickles (magic number, version, system, object, keys), then each storage: its length, its values."""
    file.seek(0)
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if not stream.getvalue().startswith(LEGACY_START) or read_pickle(stream).value != LEGACY_MAGIC:
        raise DamagedError("it is neither a zip archive nor in the format before torch 1.6")
    version, system = read_pickle(stream).value, read_pickle(stream).value
    if version != LEGACY_PROTOCOL or type(system) is not dict or system.get("little_endian") is not True:
        raise DamagedError("its version or byte order is not that of torch.save on a PC")
    saved, keys = read_pickle(stream), read_pickle(stream).value
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise DamagedError("it has no list of storages")
    regions = _legacy_regions(file, stream.tell(), keys, saved.storages)
    return Contents(saved.value, regions, _digest(file))


def _legacy_regions(
    file: BinaryIO, start: int, keys: list[str], storages: Mapping[str, StorageRef]
) -> dict[str, Region]:
    end = file.seek(0, io.SEEK_END)
    regions: dict[str, Region] = {}
    for key in keys:
        storage = storages.get(key)
        file.seek(start)
        if storage is None or key in regions or file.read(8) != storage.numel.to_bytes(8, "little"):
            raise DamagedError(f"its storage '{one_line(key, limit=60)}' is not as its tensors say")
        regions[key] = Region(start + 8, storage.numel * storage.dtype.itemsize)
        start += 8 + regions[key].length
        if start > end:
            raise DamagedError("it ends in the middle")
    return regions


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
