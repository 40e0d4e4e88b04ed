"""Good, damaged and odd NIfTI, NRRD and MetaImage files without end; `plain_images` says what is in them."""

from __future__ import annotations

import gzip
import random
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.plain_images import META_TYPES, NIFTI_TYPES, NRRD_TYPES, agrees, expected, rotation_matrix, ways

__all__ = ["agrees", "expected", "faults", "good_files", "mutations", "ways"]

Mutation = Callable[[random.Random, bytes], bytes]

_SIZE = (5, 4, 3)
_NIFTI_FIELDS = [
    *[(40 + 2 * i, "h") for i in range(8)],
    *[(70, "h"), (72, "h"), (108, "f"), (112, "f"), (116, "f"), (123, "B"), (252, "h"), (254, "h"), (68, "h")],
    *[(76 + 4 * i, "f") for i in range(5)],
    *[(256 + 4 * i, "f") for i in range(18)],
    *[(0, "i"), (344, "i")],
]
_ODD_NUMBERS = (*range(8), 255, 352, 351, 348, 32767, -32768, -1, -0.0, 0.5, -2.5, 1e-7, 1e-17, 1e-30, 1e30)
_ODD_TEXT = (
    "0 -1 1 2 3 4 100 1000000000 99999999999999999999 1e400 nan inf -inf 0x10 1.5 1,5 x True False none (1,0,0) LIST "
    "(nan,0,0) LOCAL /etc/passwd ../x.raw %d %n%n%n \0 \xff\xfe ? - --1 1_0 MET_SHORT big cm"
)
_ODD_WORDS = (*_ODD_TEXT.split(" "), "", "\r", "A" * 2000, "1" * 300)
_MORE_NRRD_LINES = """spacings: 1 2 3
axis mins: 0 0 0
old min: 0
line skip: 1
byte skip: -1
kinds: domain list domain
space units: "cm" "cm" "cm"
measurement frame: (1,0,0) (0,1,0) (0,0,1)
content: x
key:=value
# comment
labels: a b c
centerings: cell cell cell
thicknesses: 1 1 1
number: 60
min: 0
block size: 4
Space: RAS
space dimension: 3
units: mm mm mm
sample units: x
data file: x.raw
space: scanner-xyz
unknown: 1"""
_MORE_META_LINES = """Offset = 9 9 9
Position = 1 2 3
Origin = 1 2 3
Rotation = 1 0 0 0 1 0 0 0 1
ElementByteOrderMSB = True
ElementNumberOfChannels = 2
HeaderSize = -1
HeaderSize = 10
ElementToIntensityFunctionSlope = 2
ElementToIntensityFunctionOffset = 1
ElementSize = 1 1 1
DistanceUnits = cm
elementspacing = 9 9 9
CompressedDataSize = 7
CompressedDataSize = 100000000
CompressedData = True
BinaryData = False
ndims = 2
Comment = x
0008|0060 = MR
ObjectType = Tube
ElementNBits = 8
Offset: 1 2 3
NDims = 100
NDims = -1"""
_MORE_LINES = {"nrrd": _MORE_NRRD_LINES.splitlines(), "mha": _MORE_META_LINES.splitlines()}


def mutations(seed: int) -> Iterator[tuple[str, bytes]]:
    """Files without end, the same for the same seed: a name whose suffix tells the format, and the content."""
    rng = random.Random(seed)
    number = 0
    while True:
        suffix, content = _good_file(rng)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            content = _mutated(rng, suffix, content)
        number += 1
        yield f"{number}{suffix}", content


def good_files(seed: int) -> Iterator[tuple[str, bytes]]:
    """Undamaged files without end, of every format, type, byte order and encoding."""
    rng = random.Random(seed)
    while True:
        suffix, content = _good_file(rng)
        yield f"good{suffix}", content


def faults(seed: int, count: int) -> Iterator[str]:
    """What is wrong with how this package reads the first `count` mutations; also how many it accepts."""
    from masksam_deploy.base.errors import MaskSamError
    from masksam_deploy.io.grid import affine_lps
    from masksam_deploy.io.itk import open_itk_file

    accepted = 0
    with tempfile.TemporaryDirectory() as folder:
        for (name, content), _ in zip(mutations(seed), range(count), strict=False):
            path = Path(folder) / name
            path.write_bytes(content)
            try:
                channel = open_itk_file(path)
                values = np.zeros(channel.geometry.shape_zyx, np.float32)
                channel.read_into(values)
            except MaskSamError as error:
                if "\n" in str(error) or len(str(error)) > 700:
                    yield f"{name}: a message of {len(str(error))} letters"
                continue
            finally:
                path.unlink()
            if not np.isfinite(values).all():  # refused when all channels have been read
                continue
            accepted += 1
            wanted = ways(name, content)
            if not any(agrees(values, affine_lps(channel.geometry), way) for way in wanted):
                yield f"{name}: accepted, but plain reading finds {'another' if wanted else 'no scan'}"
    yield f"accepted {accepted} of {count}"


def _good_file(rng: random.Random) -> tuple[str, bytes]:
    suffix = rng.choice((".nii", ".nii.gz", ".nrrd", ".mha"))
    make = {".nrrd": _nrrd, ".mha": _meta}.get(suffix)
    content = make(rng) if make else _nifti(rng)
    return suffix, gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content


def _values(rng: random.Random, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    count = _SIZE[0] * _SIZE[1] * _SIZE[2]
    low = 0 if dtype.kind == "u" else -100
    return np.array([rng.randint(low, 120) for _ in range(count)]).astype(dtype)


def _rotation(rng: random.Random) -> tuple[tuple[float, float, float, float], NDArray[np.float64]]:
    q = np.array([rng.gauss(0, 1) for _ in range(4)])
    if rng.random() < 0.3:
        q[0] = 0.0  # half a turn
    q /= np.linalg.norm(q) * (1 if q[0] >= 0 else -1)
    return (float(q[0]), float(q[1]), float(q[2]), float(q[3])), rotation_matrix(*q)


def _nifti(rng: random.Random) -> bytes:
    order = rng.choice("<>")
    code = rng.choice(list(NIFTI_TYPES))
    dtype = np.dtype(order + NIFTI_TYPES[code])
    raw = bytearray(352)
    struct.pack_into(f"{order}i", raw, 0, 348)
    struct.pack_into(f"{order}8h", raw, 40, 3, *_SIZE, 1, 1, 1, 1)
    struct.pack_into(f"{order}2h", raw, 70, code, 8 * dtype.itemsize)
    qfac = rng.choice((1.0, -1.0))
    struct.pack_into(f"{order}5f", raw, 76, qfac, 0.75, 1.5, 2.5, 0)
    struct.pack_into(f"{order}3f", raw, 108, 352, *rng.choice(((0.0, 0.0), (1.0, 0.0), (0.5, -3.0), (2.0, 0.25))))
    raw[123] = 2
    qcode, scode = rng.choice(((1, 0), (0, 1), (1, 1), (2, 1), (1, 2), (4, 4)))
    struct.pack_into(f"{order}2h", raw, 252, qcode, scode)
    (_, b, c, d), rotation = _rotation(rng)
    origin = [rng.uniform(-200, 200) for _ in range(3)]
    struct.pack_into(f"{order}6f", raw, 256, b, c, d, *origin)
    if rng.random() < 0.3:
        rotation = _rotation(rng)[1]
    affine = np.column_stack([rotation * np.array([0.75, 1.5, 2.5 * qfac]), origin])
    struct.pack_into(f"{order}12f", raw, 280, *affine.ravel())
    raw[344:348] = b"n+1\0"
    return bytes(raw) + _values(rng, dtype).tobytes()


def _vector(values: NDArray[np.float64] | list[float], separator: str) -> str:
    return separator.join(repr(float(v)) for v in values)


def _nrrd(rng: random.Random) -> bytes:
    name = rng.choice(list(NRRD_TYPES))
    endian = rng.choice(("little", "big"))
    values = _values(rng, np.dtype((">" if endian == "big" else "<") + NRRD_TYPES[name]))
    encoding = rng.choice(("raw", "gzip", "ascii"))
    steps = _rotation(rng)[1] * np.array([0.75, 1.5, 2.5])
    space = rng.choice(("left-posterior-superior", "right-anterior-superior", "LPS", "ras"))
    lines = [
        f"type: {name}",
        "dimension: 3",
        "sizes: " + " ".join(map(str, _SIZE)),
        f"space: {space}",
        "space directions: " + " ".join(f"({_vector(steps[:, i], ',')})" for i in range(3)),
        f"space origin: ({_vector([1.5, -20, 300], ',')})",
        f"endian: {endian}",
        f"encoding: {encoding}",
    ]
    if rng.random() < 0.5:
        lines.append("kinds: domain domain domain")
    rng.shuffle(lines)
    data = values.tobytes()
    if encoding == "gzip":
        data = gzip.compress(data, mtime=0)
    elif encoding == "ascii":
        data = " ".join(map(str, values.tolist())).encode()
    return "\n".join(["NRRD0004", "# comment", *lines, "", ""]).encode() + data


def _meta(rng: random.Random) -> bytes:
    name = rng.choice(list(META_TYPES))
    big = rng.random() < 0.5
    values = _values(rng, np.dtype((">" if big else "<") + META_TYPES[name]))
    kind = rng.choice(("raw", "zlib", "ascii"))
    data = values.tobytes()
    if kind == "zlib":
        data = zlib.compress(data)
    elif kind == "ascii":
        data = " ".join(map(str, values.tolist())).encode()
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        f"BinaryData = {kind != 'ascii'}",
        f"BinaryDataByteOrderMSB = {big}",
        f"CompressedData = {kind == 'zlib'}",
        *([f"CompressedDataSize = {len(data)}"] if kind == "zlib" and rng.random() < 0.5 else []),
        f"TransformMatrix = {_vector(_rotation(rng)[1].T.ravel(), ' ')}",
        "Offset = 1.5 -20 300",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = RAI",
        "ElementSpacing = 0.75 1.5 2.5",
        "DimSize = " + " ".join(map(str, _SIZE)),
        f"ElementType = MET_{name}",
        "ElementDataFile = LOCAL",
    ]
    return "\n".join([*lines, ""]).encode() + data


def _mutated(rng: random.Random, suffix: str, content: bytes) -> bytes:
    general: list[Mutation] = [_flip, _flip, _cut, _longer, _spliced, _one_more_or_less]
    if suffix == ".nii":
        return rng.choice([_nifti_field, _nifti_field, _nifti_field, *general])(rng, content)
    if suffix == ".nii.gz":
        if rng.random() < 0.6:
            try:
                plain = gzip.decompress(content)
            except (OSError, EOFError, zlib.error):
                plain = b""
            if len(plain) > 352:
                return gzip.compress(rng.choice([_nifti_field, _nifti_field, *general])(rng, plain), mtime=0)
        return rng.choice([*general, _one_more_member, _zeros_behind])(rng, content)
    if rng.random() < 0.3:
        return rng.choice(general)(rng, content)
    return _text_header(rng, suffix[1:], content)


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        changed[rng.randrange(end)] ^= rng.randint(1, 255)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randint(0, len(content))]


def _longer(rng: random.Random, content: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 2, 100)))


def _spliced(rng: random.Random, content: bytes) -> bytes:
    other = _good_file(rng)[1]
    return content[: rng.randint(0, len(content))] + other[rng.randint(0, len(other)) :]


def _one_more_member(rng: random.Random, content: bytes) -> bytes:
    return content + gzip.compress(b"x" * rng.randint(0, 3), mtime=0)


def _zeros_behind(rng: random.Random, content: bytes) -> bytes:
    return content + bytes(rng.randint(1, 20))


def _one_more_or_less(rng: random.Random, content: bytes) -> bytes:
    where = rng.randint(0, len(content))
    return content[:where] + (b"\r" + content[where:] if rng.random() < 0.5 else content[where + 1 :])


def _nifti_field(rng: random.Random, content: bytes) -> bytes:
    if len(content) < 352:
        return content
    changed = bytearray(content)
    offset, kind = rng.choice(_NIFTI_FIELDS)
    order = "<" if content[0] == 92 else ">"
    value: float = (
        rng.choice((*_ODD_NUMBERS, float("nan"), float("inf")))
        if kind == "f"
        else rng.choice([int(v) for v in _ODD_NUMBERS if abs(v) <= 32768 and not (kind == "B" and not 0 <= v <= 255)])
    )
    if kind == "h" and value > 32767:
        value = 32767
    struct.pack_into(f"{order}{kind}", changed, offset, value)
    return bytes(changed)


def _text_header(rng: random.Random, kind: str, content: bytes) -> bytes:
    """A change to the lines of a header; what follows it stays."""
    end = content.find(b"\n\n") + 1 if kind == "nrrd" else content.find(b"ElementDataFile")
    lines = content[: max(end, 0)].decode("latin-1").split("\n")[:-1]
    if len(lines) < 3:
        return _flip(rng, content)
    where = rng.randrange(1 if kind == "nrrd" else 0, len(lines))
    name, mark, value = re.fullmatch(r"([^:=]*)(:=|: ?| ?= ?|)(.*)", lines[where], re.DOTALL).groups()  # type: ignore[union-attr]
    action = rng.randrange(10)
    if action == 0:
        del lines[where]
    elif action == 1:
        lines.insert(rng.randint(1, len(lines)), lines[where])
    elif action == 2:
        first = lines.pop(0) if kind == "nrrd" else None
        rng.shuffle(lines)
        lines[:0] = [first] if first else []
    elif action == 3:
        lines[where] = rng.choice((name.upper(), name.lower(), name.title(), name.swapcase())) + mark + value
    elif action in (4, 5):
        words = value.split(" ")
        words[rng.randrange(len(words))] = rng.choice(_ODD_WORDS)
        lines[where] = name + mark + " ".join(words)
    elif action == 6:
        words = value.split(" ")
        words = words[:-1] if rng.random() < 0.5 else [*words, words[-1]]
        lines[where] = name + mark + " ".join(words)
    elif action == 7:
        lines.insert(rng.randint(1, len(lines)), rng.choice(_MORE_LINES[kind]))
    elif action == 8:
        lines[where] = name + rng.choice((":", "=", ": ", " = ", ":=", "  ", "\t=\t", ":\t")) + value
    else:
        lines[where] += rng.choice(("\r", " ", "\t", "\0", " 0", "x", "\n"))
    return "\n".join([*lines, ""]).encode("latin-1") + content[max(end, 0) :]


if __name__ == "__main__":
    for fault in faults(int(sys.argv[1]), int(sys.argv[2])):
        sys.stdout.write(f"{fault}\n")
