"""DICOM series without end, one slice of each damaged or odd; and what pydicom alone makes of them.

pydicom decodes plain, run-length and JPEG 2000 pixels (the last with Pillow). Of streams that it cannot decode, only
those that were left as they are can be compared: with the pixels of the series that was not damaged.
"""

from __future__ import annotations

import io
import random
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.encaps import generate_frames

from tests.io.dicom_bytes import BIG, EXPLICIT, IMPLICIT, elements, fragments, part_10

DATA = Path(__file__).parents[1] / "data" / "io" / "dicom"
Files = Mapping[str, bytes]
_ODD = "1.dcm"
_J2K = "1.2.840.10008.1.2.4.90"
_SYNTAXES = [EXPLICIT, IMPLICIT, BIG, _J2K, *(f"1.2.840.10008.1.2.{n}" for n in ("1.99", "5", "4.50", "4.70", "4.80"))]
_NUMBERS = ["Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"]
_TEXTS = [
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "PhotometricInterpretation", "NumberOfFrames", "Modality"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SeriesInstanceUID", "SOPClassUID"),
]
_VALUES = [
    "",
    "0",
    "1",
    "-1",
    "nan",
    "1e400",
    "1_0",
    "0\\0",
    "0\\0\\0",
    "1\\0\\0\\0\\1\\0",
    "CT",
    "US",
    "x" * 300,
    "1.5\\2",
]


@dataclass(frozen=True)
class Expected:
    """A series by pydicom: rescaled pixels `[Z, Y, X]`, and the affine `[3, 4]` of indices (x, y, z) in LPS mm."""

    values: NDArray[np.float64]
    affine: NDArray[np.float64]


def mutations(seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A name and the files of a series, endlessly; the same for the same seed."""
    rng = random.Random(seed)
    kinds = list(_bases())
    for number in range(10**9):
        kind = rng.choice(kinds)
        change = rng.choice(_CHANGES)
        files = dict(_bases()[kind])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                files[_ODD] = change(rng, files[_ODD])
            except Exception:  # noqa: BLE001  pydicom cannot write some of what is asked of it
                continue
        yield f"{kind}-{change.__name__.strip('_')}-{number}", files


def expected(files: Files) -> Expected | None:
    """What pydicom makes of a series; None if it cannot decode it, or finds no stack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _stacked([pydicom.dcmread(io.BytesIO(content), force=True) for content in files.values()])
        except Exception:  # noqa: BLE001  whatever a damaged file makes pydicom raise
            return None


def left_as_it_was(name: str, files: Files) -> Expected | None:
    """The undamaged series, if what was changed in the odd slice is neither its stream nor what it means."""
    base = _bases()[name.split("-", maxsplit=1)[0]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            odd, good = (pydicom.dcmread(io.BytesIO(f[_ODD]), force=True) for f in (files, base))
            same = all(odd.get(tag) == good.get(tag) for tag in (*_NUMBERS, *_TEXTS, "PixelData"))
        except Exception:  # noqa: BLE001  as above
            return None
    return _decoded_base(name.split("-", maxsplit=1)[0]) if same else None


@lru_cache
def _decoded_base(kind: str) -> Expected:
    import SimpleITK

    datasets = []
    planes = []
    for content in _bases()[kind].values():
        path = Path("/dev/shm") / f"masksam-fuzz-{kind}.dcm"
        path.write_bytes(content)
        planes.append(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))[0].astype(np.float64))
        path.unlink()
        datasets.append(pydicom.dcmread(io.BytesIO(content)))
    return Expected(np.stack(planes), _affine(datasets))


def _stacked(slices: list[FileDataset]) -> Expected:
    row, column = np.split(np.array(slices[0].ImageOrientationPatient, dtype=float), 2)
    slices.sort(key=lambda s: float(np.dot(np.array(s.ImagePositionPatient, dtype=float), np.cross(row, column))))
    planes = [
        s.pixel_array.astype(np.float64) * float(s.get("RescaleSlope") or 1) + float(s.get("RescaleIntercept") or 0)
        for s in slices
    ]
    return Expected(np.stack(planes), _affine(slices))


def _affine(slices: list[FileDataset]) -> NDArray[np.float64]:
    row, column = np.split(np.array(slices[0].ImageOrientationPatient, dtype=float), 2)
    between_rows, between_columns = (float(v) for v in slices[0].PixelSpacing)
    first, last = (np.array(s.ImagePositionPatient, dtype=float) for s in (slices[0], slices[-1]))
    step = float(np.dot(last - first, np.cross(row, column))) / (len(slices) - 1)
    return np.column_stack([row * between_columns, column * between_rows, np.cross(row, column) * step, first])


@lru_cache
def _bases() -> dict[str, dict[str, bytes]]:
    """Series of three slices, in plain pixels and by codec."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "explicit": _plain(EXPLICIT, DATA / "oblique" / "0.dcm"),
            "implicit": _plain(IMPLICIT, DATA / "oblique" / "1.dcm"),
            "big": _plain(BIG, DATA / "oblique" / "2.dcm"),
            "rle": _series(pydicom.dcmread(DATA / "single" / "MR_small_RLE.dcm")),
            "jll": _series(pydicom.dcmread(DATA / "single" / "jpeg_lossless.dcm")),
            "jls": _series(pydicom.dcmread(DATA / "single" / "jpeg_ls.dcm")),
            "j2k": _series(_in_jpeg_2000(pydicom.dcmread(DATA / "oblique" / "0.dcm"))),
        }


def _series(dataset: FileDataset) -> dict[str, bytes]:
    files = {}
    for number in range(3):
        _place(dataset, number)
        files[f"{number}.dcm"] = _saved(dataset)
    return files


def _plain(syntax: str, path: Path) -> dict[str, bytes]:
    dataset = pydicom.dcmread(path)
    if syntax == BIG:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    files = {}
    for number in range(3):
        _place(dataset, number)
        content = elements(dataset, implicit=syntax == IMPLICIT, little=syntax != BIG)
        files[f"{number}.dcm"] = part_10(syntax, content)
    return files


def _place(dataset: FileDataset, number: int) -> None:
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = (
        [1, 0, 0, 0, 0.6, 0.8],
        [7, 1.6 * -number, 1.2 * number],
    )
    dataset.PixelSpacing = [1.5, 2]


def _in_jpeg_2000(dataset: FileDataset) -> FileDataset:
    values = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 2
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format="JPEG2000", no_jp2=True)
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-5"
    dataset.file_meta.TransferSyntaxUID = _J2K
    data = stream.getvalue()
    dataset.PixelData = fragments(data + b"\0" * (len(data) % 2))
    dataset["PixelData"].VR = "OB"
    return dataset


def _saved(dataset: FileDataset) -> bytes:
    content = io.BytesIO()
    dataset.save_as(content)
    return content.getvalue()


def _flip_header(rng: random.Random, content: bytes) -> bytes:
    return _flipped(
        rng, content, 128, max(140, content.rindex(b"\xe0\x7f\x10\x00") if b"\xe0\x7f\x10\x00" in content else 900)
    )


def _flip_stream_header(rng: random.Random, content: bytes) -> bytes:
    start = content.rfind(b"\xe0\x7f\x10\x00")
    start = start if start >= 0 else content.rfind(b"\x7f\xe0\x00\x10")
    return _flipped(rng, content, start, start + 100)


def _flip_anywhere(rng: random.Random, content: bytes) -> bytes:
    return _flipped(rng, content, 0, len(content))


def _flipped(rng: random.Random, content: bytes, start: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(start, min(end, len(content)))
        changed[at] = rng.choice([rng.randrange(256), changed[at] ^ (1 << rng.randrange(8)), 0, 255])
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.choice([rng.randrange(len(content)), len(content) - rng.randint(1, 300)])]


def _missing(rng: random.Random, content: bytes) -> bytes:
    at, length = rng.randrange(len(content)), rng.choice([1, 2, 4, 8, 100, 3000])
    return content[:at] + content[at + length :]


def _doubled(rng: random.Random, content: bytes) -> bytes:
    at, length = rng.randrange(len(content)), rng.choice([1, 2, 8, 10, 100])
    return content[: at + length] + content[at:]


def _behind(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice([bytes(rng.randint(1, 900)), rng.randbytes(rng.randint(1, 300))])


def _number(rng: random.Random, content: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    tag = rng.choice(_NUMBERS)
    before = int(dataset.get(tag) or 0)
    setattr(dataset, tag, rng.choice([before + 1, max(before - 1, 0), 2 * before, before // 2, 0, 1, 8, 32, 65535]))
    return _written_like(content, dataset)


def _text(rng: random.Random, content: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    tag = rng.choice(_TEXTS)
    if rng.random() < 0.3 and tag in dataset:
        delattr(dataset, tag)
    else:
        dataset.add_new(pydicom.datadict.tag_for_keyword(tag), "LT", rng.choice(_VALUES))
    return _written_like(content, dataset)


def _pixels(rng: random.Random, content: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    data = dataset.PixelData
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        stream = next(generate_frames(data, number_of_frames=1))
        at = rng.randrange(len(stream))
        changed = rng.choice(
            [stream[:at], stream[:at] + stream[at + 2 :], stream[:at] + b"\xff\xd9", stream[:at] + stream]
        )
        dataset.PixelData = fragments(changed + b"\0" * (len(changed) % 2))
    else:
        length = rng.choice([len(data) - 2, len(data) + 2, len(data) // 2, 2 * len(data), 0])
        dataset.PixelData = (data + data)[:length]
    return _written_like(content, dataset)


def _syntax(rng: random.Random, content: bytes) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    return part_10(rng.choice(_SYNTAXES), elements(dataset, implicit=rng.random() < 0.5))


def _length_of_an_element(rng: random.Random, content: bytes) -> bytes:
    at = content.find(rng.choice([b"US", b"DS", b"UI", b"OW", b"OB", b"SQ", b"LO"]), 140)
    length = struct.pack("<H", rng.choice([0, 1, 3, 65535, rng.randrange(65536)]))
    return content[: at + 2] + length + content[at + 4 :]


def _written_like(content: bytes, dataset: FileDataset) -> bytes:
    implicit, little = dataset.original_encoding
    return part_10(
        str(dataset.file_meta.TransferSyntaxUID), elements(dataset, implicit=bool(implicit), little=bool(little))
    )


_CHANGES: list[Callable[[random.Random, bytes], bytes]] = [
    *(_flip_header, _flip_stream_header, _flip_anywhere, _cut, _missing, _doubled, _behind),
    *(_number, _number, _text, _pixels, _syntax, _length_of_an_element),
]
