"""Endless, repeatable damage to the file of a packed bundle; see `bundles.py`."""

from __future__ import annotations

import os
import random
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.bundles import Change, Mutation, endless, scribble


def mutations(seed: int) -> Iterator[tuple[str, Mutation]]:
    """What is damaged, and what does it to a packed bundle's file; the same for the same seed."""
    return endless(seed, _PACKED)


def _bytes_of_the_archive(rng: random.Random, packed: Path) -> None:
    scribble(rng, packed)


def _fields_of_headers(rng: random.Random, packed: Path) -> None:
    """Sizes, offsets and flags of some local, central or end header."""
    data = bytearray(packed.read_bytes())
    signature = rng.choice([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"])
    places = [place for place in range(len(data) - 50) if data[place : place + 4] == signature] or [len(data) - 22]
    start = rng.choice(places)
    for _ in range(rng.randint(1, 3)):
        place = start + rng.randrange(4, 46)
        size = rng.choice([1, 2, 4])
        value = struct.pack("<Q", rng.choice([0, 1, 0xFF, 0xFFFF, 2**31, 2**32 - 1, rng.randrange(2**32)]))[:size]
        data[place : place + size] = value
    packed.write_bytes(data)


def _entries(rng: random.Random, packed: Path) -> None:
    """Names, kinds and compression of the archive's files."""
    with zipfile.ZipFile(packed) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    info, data = rng.choice(entries)
    what = rng.randrange(6)
    if what == 0:
        info.filename = rng.choice(["../evil", "/evil", "a\\..\\b", "con", "x/" * 300, "é", "manifest.json", ""])
    elif what == 1:
        info.compress_type = zipfile.ZIP_DEFLATED
    elif what == 2:
        info.external_attr = rng.randrange(2**32)
    elif what == 3:
        entries.remove((info, data))
    elif what == 4:
        entries[entries.index((info, data))] = (info, rng.randbytes(rng.choice([0, 1, len(data)])))
    else:
        rng.shuffle(entries)
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w") as archive:
        warnings.simplefilter("ignore")  # of one name for two entries
        for kept, content in entries:
            archive.writestr(kept, content)


def _strange_archive(rng: random.Random, packed: Path) -> None:
    packed.unlink()
    what = rng.randrange(4)
    if what == 0:
        os.mkfifo(packed)
    elif what == 1:
        packed.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", packed.name, "nothing"]))
    elif what == 2:
        packed.mkdir()
    else:
        with packed.open("wb") as file:
            file.truncate(rng.choice([0, 2**33]))


_PACKED: tuple[Change, ...] = (
    _bytes_of_the_archive,
    _bytes_of_the_archive,
    _fields_of_headers,
    _fields_of_headers,
    _entries,
    _strange_archive,
)
