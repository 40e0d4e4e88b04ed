"""Checkpoints changed at random, over and over: an official one, damaged or forged.

Names start with what may become of a file. `damaged-`: refused, or the values of the original. `forged-`: its
checksums are right, so it is another checkpoint: refused, or whatever it says. Never more than that.
"""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable, Iterator
from itertools import count

from tests.fuzz import torch_files as write
from tests.fuzz.bombs import BOMBS

Change = Callable[[random.Random], bytes]
MARKS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")


def mutations(seed: int) -> Iterator[tuple[str, bytes]]:
    """Name and content of one file after the other, without end; the same ones for the same seed."""
    rng = random.Random(seed)
    kinds = sorted(CHANGES)
    for number in count():
        kind = rng.choice(kinds)
        yield f"{kind}-{seed}-{number}", CHANGES[kind](rng)


def _flip(rng: random.Random) -> bytes:
    data = bytearray(write.base())
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _flip_structure(rng: random.Random) -> bytes:
    """In or behind one of the archive's headers."""
    data = bytearray(write.base())
    mark = rng.choice([mark for mark in MARKS if mark in data])
    start = data.find(mark, rng.randrange(data.rindex(mark) + 1))
    position = min(start + rng.randrange(64), len(data) - 1)
    data[position] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data)


def _cut(rng: random.Random) -> bytes:
    return write.base()[: rng.randrange(len(write.base()))]


def _without_span(rng: random.Random) -> bytes:
    start, end = _span(rng, len(write.base()))
    return write.base()[:start] + write.base()[end:]


def _with_span_twice(rng: random.Random) -> bytes:
    start, end = _span(rng, len(write.base()))
    return write.base()[:end] + write.base()[start:]


def _zeroed(rng: random.Random) -> bytes:
    start, end = _span(rng, len(write.base()))
    return write.base()[:start] + bytes(end - start) + write.base()[end:]


def _around(rng: random.Random) -> bytes:
    more = rng.randbytes(rng.randrange(1, 200))
    return rng.choice((more + write.base(), write.base() + more))


def _span(rng: random.Random, length: int) -> tuple[int, int]:
    start = rng.randrange(length)
    return start, min(length, start + rng.choice((1, 4, 64, 4096, 100_000)))


def _pickle_bytes(rng: random.Random) -> bytes:
    data = bytearray(b"".join(write.base_opcodes()))
    for _ in range(rng.choice((1, 1, 2, 5))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return write.with_pickle(bytes(data))


def _opcodes(rng: random.Random) -> bytes:
    """Opcodes taken out, doubled, moved, replaced, or put in."""
    opcodes = list(write.base_opcodes())
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        where, other = rng.randrange(1, len(opcodes)), rng.randrange(1, len(opcodes))
        action = rng.randrange(6)
        if action == 0:
            del opcodes[where]
        elif action == 1:
            opcodes.insert(where, opcodes[where])
        elif action == 2:
            opcodes[where], opcodes[other] = opcodes[other], opcodes[where]
        elif action == 3:
            opcodes[where] = opcodes[other]
        else:
            opcodes[where : where + action - 4] = [rng.choice(PIECES)]
    return write.with_pickle(b"".join(opcodes))


def _arguments(rng: random.Random) -> bytes:
    """The same opcodes, some numbers or texts in them others."""
    opcodes = list(write.base_opcodes())
    numbers = [index for index, code in enumerate(opcodes) if code[:1] in b"KMJ"]
    texts = [index for index, code in enumerate(opcodes) if code[:1] == b"X"]
    for _ in range(rng.choice((1, 1, 3))):
        if rng.random() < 0.6:
            opcodes[rng.choice(numbers)] = rng.choice(
                [write.whole(value) for value in (0, 1, -1, 3, 2**31 - 1, 2**32, 2**47, 2**63, 2**200)]
            )
        else:
            opcodes[rng.choice(texts)] = rng.choice(
                [
                    write.text(value)
                    for value in ("", "0", "w", "\ud800", "module.", "x" * 600, "\x1b[2J", "cuda:0", "f8")
                ]
            )
    return write.with_pickle(b"".join(opcodes))


def _entries(rng: random.Random) -> bytes:
    """Entries of the archive missing, renamed, swapped, shorter, longer, or compressed."""
    entries = dict(write.base_entries())
    method = zipfile.ZIP_STORED
    for _ in range(rng.choice((1, 1, 2))):
        name, other = rng.choice(list(entries)), rng.choice(list(entries))
        action = rng.randrange(7)
        if action == 0 and len(entries) > 1:
            del entries[name]
        elif action == 1:
            entries[f"{name}x"] = entries.pop(name)
        elif action == 2:
            entries[name], entries[other] = entries[other], entries[name]
        elif action == 3:
            entries[name] = entries[name][: rng.randrange(len(entries[name]) + 1)]
        elif action == 4:
            entries[name] += rng.randbytes(rng.randrange(1, 100))
        elif action == 5:
            entries[name] = rng.randbytes(len(entries[name]))
        else:
            method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return write.zipped(entries, method)


def _bomb(rng: random.Random) -> bytes:
    return BOMBS[rng.choice(sorted(BOMBS))]()


PIECES = (
    b"(", b"t", b"u", b"s", b"a", b"e", b"R", b"b", b"Q", b"N", b".", b")", b"]", b"}", b"h\0", b"q\0", b"0", b"2",
    b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x93", b"\x94", b"j\xff\xff\xff\xff",
    b"r\xff\xff\xff\xff", b"X\xff\xff\xff\xff", b"\x8a\xff", b"\x8b\xff\xff\xff\x7f",
    b"G\x7f\xf0\0\0\0\0\0\0", b"G\x7f\xf8\0\0\0\0\0\0",
    write.name("posix", "system"), write.name("torch", "device"), write.name("collections", "OrderedDict"),
    write.name("torch._utils", "_rebuild_tensor_v2"), write.name("torch", "float8_e4m3fn"),
    write.storage(), write.tensor(),
)  # fmt: skip
CHANGES: dict[str, Change] = {
    "damaged-flip": _flip,
    "damaged-structure": _flip_structure,
    "damaged-cut": _cut,
    "damaged-without": _without_span,
    "damaged-twice": _with_span_twice,
    "damaged-zeroed": _zeroed,
    "damaged-around": _around,
    "forged-pickle": _pickle_bytes,
    "forged-opcodes": _opcodes,
    "forged-arguments": _arguments,
    "forged-entries": _entries,
    "forged-bomb": _bomb,
}
