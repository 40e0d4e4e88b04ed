"""Torch files written byte by byte, as no torch would: pickles from opcodes, archives with any entries."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from struct import pack

DATA = Path(__file__).parents[1] / "data"
BASE = DATA / "e2e" / "c_cardiac" / "checkpoint_final.pth"
Entries = dict[str, bytes]

EMPTY_DICT, EMPTY_LIST, NONE, REDUCE, BUILD, PERSISTENT = b"}", b"]", b"N", b"R", b"b", b"Q"
LEGACY_HEAD = (
    b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    b"\x80\x02}q\x00(X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\x0d\x00\x00\x00little_endianq\x02\x88u."
)
"""Magic number, version and system, as torch.save wrote them before 1.6."""


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode("utf-8", "surrogatepass")


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def many(values: Iterable[bytes]) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def items(*pairs: tuple[str, bytes]) -> bytes:
    """A dict."""
    return EMPTY_DICT + b"(" + b"".join(text(key) + value for key, value in pairs) + b"u"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(arguments) + REDUCE


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return many([text("storage"), name("torch", kind), text(key), text("cpu"), whole(numel)]) + PERSISTENT


def tensor(
    values: bytes | None = None, offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)
) -> bytes:
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage() if values is None else values,
        whole(offset),
        many(map(whole, shape)),
        many(map(whole, stride)),
        b"\x89",
        EMPTY_DICT,
    )


def archive(pickle: bytes, entries: Entries | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file whose only storage, '0', has 16 bytes."""
    found = {"data.pkl": b"\x80\x02" + pickle + b".", "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
    return zipped({f"archive/{key}": value for key, value in (found | (entries or {})).items()}, method)


def zipped(entries: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as file:
        for entry, value in entries.items():
            file.writestr(zipfile.ZipInfo(entry), value, compress_type=method)
    return target.getvalue()


@cache
def base() -> bytes:
    """A whole official checkpoint."""
    return BASE.read_bytes()


@cache
def base_entries() -> Entries:
    with zipfile.ZipFile(BASE) as file:
        return {entry: file.read(entry) for entry in file.namelist()}


@cache
def base_pickle_name() -> str:
    return next(entry for entry in base_entries() if entry.endswith("data.pkl"))


@cache
def base_opcodes() -> tuple[bytes, ...]:
    """The checkpoint's pickle, cut into its opcodes with their arguments."""
    data = base_entries()[base_pickle_name()]
    starts = [position for _, _, position in pickletools.genops(data) if position is not None]
    return tuple(data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True))


def with_pickle(pickle: bytes) -> bytes:
    """The checkpoint with another pickle, its checksums right."""
    return zipped(base_entries() | {base_pickle_name(): pickle})
