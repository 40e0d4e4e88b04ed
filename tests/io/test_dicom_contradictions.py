"""DICOM files whose header and pixels contradict each other: all are refused by name, none gives other pixels."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.isolation import SharedArray
from masksam_deploy.io import read_volume
from masksam_deploy.io.dicom import open_dicom_series
from masksam_deploy.io.isolated_scan import IsolatedScan
from tests.io.dicom_bytes import EXPLICIT, elements, fragments, part_10

Change = Callable[[Any], None]
CODECS = ["jpeg_lossless.dcm", "jpeg_ls.dcm", "MR_small_RLE.dcm", "ct_empty_uids"]


@pytest.fixture(autouse=True)
def quiet_pydicom() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refusal(folder: Path) -> str:
    with pytest.raises(ScanError) as caught:
        read_volume(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def assign(**tags: Any) -> Change:
    def change(dataset: Any) -> None:
        for tag, value in tags.items():
            setattr(dataset, tag, value)

    return change


def without(*tags: str) -> Change:
    def change(dataset: Any) -> None:
        for tag in tags:
            delattr(dataset, tag)

    return change


def pixels(part: Callable[[bytes], bytes]) -> Change:
    def change(dataset: Any) -> None:
        dataset.PixelData = part(dataset.PixelData)

    return change


def changed_series(source: Path, target: Path, change: Change, *, only: int | None = None) -> Path:
    """A copy of a series with all its slices changed, or one."""
    target.mkdir(exist_ok=True)
    for number, file in enumerate(sorted(f for f in source.iterdir() if f.suffix != ".txt")):
        dataset = pydicom.dcmread(file)
        if only in (None, number):
            change(dataset)
        dataset.save_as(target / file.name)
    return target


def float_pixels(dataset: Any) -> None:
    del dataset.PixelData
    dataset.FloatPixelData = bytes(4 * 88 * 128)


def slope_alone(dataset: Any) -> None:
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "1"
    del dataset.RescaleIntercept


CONTRADICTIONS: dict[str, Change] = {
    "a row is missing": pixels(lambda data: data[: -2 * 88]),
    "half is missing": pixels(lambda data: data[: len(data) // 2]),
    "two bytes are missing": pixels(lambda data: data[:-2]),
    "all is missing": pixels(lambda _: b""),
    "two bytes too many": pixels(lambda data: data + b"\0\0"),
    "twice as many": pixels(lambda data: data + data),
    "a column less": assign(Columns=87),
    "a row more": assign(Rows=129),
    "rows and columns swapped with one more": assign(Rows=89, Columns=128),
    "8 bits": assign(BitsAllocated=8, BitsStored=8, HighBit=7),
    "32 bits": assign(BitsAllocated=32, BitsStored=32, HighBit=31),
    "12 bits": assign(BitsAllocated=12, BitsStored=12, HighBit=11),
    "1 bit": assign(BitsAllocated=1, BitsStored=1, HighBit=0),
    "more bits stored than there are": assign(BitsStored=17, HighBit=16),
    "no bits stored": assign(BitsStored=0, HighBit=0),
    "fewer bits stored than pixels have": assign(BitsStored=8, HighBit=7),
    "another highest bit": assign(HighBit=14),
    "the value in the upper bits": assign(BitsStored=12, HighBit=15),
    "a representation that there is not": assign(PixelRepresentation=2),
    "three samples": assign(SamplesPerPixel=3),
    "two frames": assign(NumberOfFrames="2"),
    "frames that are no number": lambda dataset: dataset.add_new(0x00280008, "LO", "one"),
    "functional groups, which may rescale": lambda dataset: setattr(
        dataset, "SharedFunctionalGroupsSequence", [pydicom.Dataset()]
    ),
    "no rows": without("Rows"),
    "zero columns": assign(Columns=0),
    "no bits": without("BitsAllocated"),
    "a table of values": lambda dataset: setattr(dataset, "ModalityLUTSequence", [pydicom.Dataset()]),
    "float pixels": float_pixels,
    "a slope that is no number": lambda dataset: dataset.add_new(0x00281053, "LO", "1_0"),
    "a slope that is nan": lambda dataset: dataset.add_new(0x00281053, "LO", "nan"),
    "an intercept that is infinite": lambda dataset: dataset.add_new(0x00281052, "LO", "1e999"),
    "a slope without an intercept": slope_alone,
    "a slope behind megabytes of blanks": lambda dataset: dataset.add_new(0x00281053, "UT", " " * 70_000 + "2"),
    "a slope that is a sequence": lambda dataset: dataset.add_new(0x00281053, "SQ", [pydicom.Dataset()]),
    "two slopes": lambda dataset: dataset.add_new(0x00281053, "DS", ["1", "2"]),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_plain_pixels_that_contradict_the_header_are_refused(data: Path, tmp_path: Path, name: str) -> None:
    source = data / "dicom" / "head_flipped"
    first = sorted(source.iterdir())[0].name
    assert first in refusal(changed_series(source, tmp_path / "all", CONTRADICTIONS[name]))
    assert first in refusal(changed_series(source, tmp_path / "one", CONTRADICTIONS[name], only=0))


MEANINGS: dict[str, Change] = {
    "no rescaling": without("RescaleSlope", "RescaleIntercept"),
    "another intercept": assign(RescaleIntercept="0"),
    "another slope": assign(RescaleSlope="2"),
    "another rescale type": assign(RescaleType="US"),
    "other units": assign(Units="CNTS"),
    "another modality": assign(Modality="PT"),
    "unsigned": assign(PixelRepresentation=0),
    "other bits": assign(BitsStored=15, HighBit=14),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_ct_slice_whose_values_mean_something_else_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    source = changed_series(
        data / "dicom" / "head_flipped",
        tmp_path / "ct",
        assign(Modality="CT", RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU"),
    )
    assert read_volume(source).array.min() == -1024
    message = refusal(changed_series(source, tmp_path / "odd", MEANINGS[name], only=2))
    assert sorted(source.iterdir())[2].name in message
    assert "as in most slices" in message


def test_slopes_of_pet_may_change_from_slice_to_slice(data: Path, tmp_path: Path) -> None:
    source = data / "dicom" / "head_flipped"
    stored = read_volume(source).array[0]
    base = changed_series(source, tmp_path / "pet", assign(Modality="PT", RescaleSlope="1", RescaleIntercept="0"))
    scaled = changed_series(base, tmp_path / "scaled", assign(RescaleSlope="2.5"), only=1)
    # The series runs against its file names, so the slice is found by its values.
    ratio = read_volume(scaled).array[0].max(axis=(1, 2)) / stored.max(axis=(1, 2))
    assert sorted(ratio) == [1, 1, 1, 2.5]


def compressed(data: Path, folder: Path, codec: str, change: Callable[[Any, bytes], bytes]) -> Path:
    """Three slices of one compressed image, its stream and header changed in the second one."""
    folder.mkdir(exist_ok=True)
    single = data / "dicom" / "single" / codec
    source = single if single.exists() else sorted((data / "dicom" / codec).iterdir())[0]
    for number in range(3):
        dataset = pydicom.dcmread(source)
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [1, 1]
        if number == 1:
            stream = change(dataset, next(generate_frames(dataset.PixelData, number_of_frames=1)))
            dataset.PixelData = fragments(stream + b"\0" * (len(stream) % 2))
        dataset.save_as(folder / f"{number}.dcm")
    return folder


def header(change: Change) -> Callable[[Any, bytes], bytes]:
    """Change the header alone."""

    def changed(dataset: Any, stream: bytes) -> bytes:
        change(dataset)
        return stream

    return changed


STREAMS: dict[str, Callable[[Any, bytes], bytes]] = {
    "cut in half": lambda _, stream: stream[: len(stream) // 2],
    "two images": lambda _, stream: stream + stream,
    "cut, with an end": lambda _, stream: stream[: len(stream) // 2] + b"\xff\xd9",
    "a part in the middle is missing": lambda _, stream: stream[: len(stream) // 3] + stream[2 * len(stream) // 3 :],
    "the last bytes are missing": lambda _, stream: stream[:-22] + b"\xff\xd9",
    "empty": lambda *_: b"",
    "something else": lambda *_: b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a row less in the header": header(lambda d: assign(Rows=d.Rows - 1)(d)),
    "a column more in the header": header(lambda d: assign(Columns=d.Columns + 1)(d)),
    "fewer bits in the header": header(assign(BitsAllocated=8, BitsStored=8, HighBit=7)),
    "more bits in the header": header(assign(BitsAllocated=32, BitsStored=32, HighBit=31)),
    "said to be plain": header(lambda d: assign(TransferSyntaxUID=EXPLICIT)(d.file_meta)),
    "said to be another codec": header(lambda d: assign(TransferSyntaxUID="1.2.840.10008.1.2.4.50")(d.file_meta)),
    "said to be a video": header(lambda d: assign(TransferSyntaxUID="1.2.840.10008.1.2.4.100")(d.file_meta)),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", STREAMS)
def test_streams_that_contradict_the_header_or_break_off_are_refused(
    data: Path, tmp_path: Path, codec: str, name: str
) -> None:
    assert "1.dcm" in refusal(compressed(data, tmp_path / "odd", codec, STREAMS[name]))


@pytest.mark.parametrize("codec", CODECS)
def test_unchanged_streams_are_read(data: Path, tmp_path: Path, codec: str) -> None:
    whole = read_volume(compressed(data, tmp_path / "whole", codec, lambda _, stream: stream)).array[0]
    np.testing.assert_array_equal(whole[0], whole[1])


@pytest.mark.parametrize("codec", ["jpeg_lossless.dcm", "jpeg_ls.dcm", "ct_empty_uids"])
def test_a_stream_whose_own_header_was_altered_is_refused_or_read_as_it_was(
    data: Path, tmp_path: Path, codec: str
) -> None:
    # One altered byte made GDCM end the process or take 4 GB.
    whole = read_volume(compressed(data, tmp_path / "whole", codec, lambda _, stream: stream)).array[0, 1]
    refused = 0
    for position in range(2, 42, 4):

        def altered(_: Any, stream: bytes, position: int = position) -> bytes:
            return stream[:position] + bytes([stream[position] ^ 0xFF]) + stream[position + 1 :]

        folder = compressed(data, tmp_path / "odd", codec, altered)
        try:
            assert read_volume(folder).array[0, 1].shape == whole.shape
        except ScanError:
            refused += 1
    assert refused >= 5


@pytest.mark.parametrize(
    "change",
    [
        lambda stream: struct.pack("<I", 1) + stream[4:],
        lambda stream: struct.pack("<I", 4) + stream[4:],
        lambda stream: stream[:8] + struct.pack("<I", 2**31) + stream[12:],
        lambda stream: stream[:4] + struct.pack("<I", 66) + stream[8:],
        lambda stream: stream[:8] + stream[4:8] + stream[12:],
        lambda stream: stream[:64] + b"\x7f" + stream[65:],
        lambda stream: stream[:64] + b"\x81" + stream[65:],
        lambda stream: stream + b"\x05abcdef",
    ],
)
def test_run_length_segments_that_do_not_add_up_are_refused(
    data: Path, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    folder = compressed(data, tmp_path / "odd", "MR_small_RLE.dcm", lambda _, stream: change(stream))
    assert "1.dcm" in refusal(folder)


def twice(file: Path, element: bytes) -> bytes:
    """The file with one element repeated before the pixels."""
    content = elements(pydicom.dcmread(file), implicit=False)
    at = content.rindex(b"\xe0\x7f\x10\x00")
    return part_10(EXPLICIT, content[:at] + element + content[at:])


@pytest.mark.parametrize(
    "element",
    [
        b"\x28\x00\x10\x00US\x02\x00" + struct.pack("<H", 128),
        b"\x28\x00\x11\x00US\x02\x00" + struct.pack("<H", 44),
        b"\x28\x00\x03\x01US\x02\x00" + struct.pack("<H", 1),
        b"\x20\x00\x32\x00DS\x06\x00" + b"0\\0\\0 ",
    ],
)
def test_an_element_that_is_there_twice_is_refused(data: Path, tmp_path: Path, element: bytes) -> None:
    shutil.copytree(data / "dicom" / "head_flipped", tmp_path / "series")
    file = sorted((tmp_path / "series").iterdir())[0]
    file.write_bytes(twice(file, element))
    assert "twice" in refusal(tmp_path / "series")


def test_what_stands_for_a_slice_and_is_none_is_refused(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    link = folder / "0.dcm"
    link.unlink()
    link.symlink_to(folder / "moved" / "0.dcm")
    assert f"{link}: found a link that leads nowhere" in refusal(folder)
    link.unlink()
    os.mkfifo(link)
    assert f"{link}: found neither a file nor a folder" in refusal(folder)
    link.unlink()
    link.symlink_to(link.name)
    assert f"{link}: found a link that leads nowhere" in refusal(folder)


def test_slices_in_a_folder_beside_the_others_are_refused(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    (folder / "more" / "inside").mkdir(parents=True)
    shutil.move(folder / "2.dcm", folder / "more" / "inside" / "2.dcm")
    assert "2.dcm: found a DICOM file in a folder beside the slices" in refusal(folder)


def test_files_that_are_passed_over_are_named(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    (folder / "info.txt").unlink()
    assert read_volume(folder).warnings == ()
    for name in (".DS_Store", "Thumbs.db", "DICOMDIR", "report.pdf", "slice.dcm.bak"):
        (folder / name).write_bytes(b"no image\n")
    (folder / "previews").mkdir()
    (warning,) = read_volume(folder).warnings
    assert (
        "3 file(s) or folder(s) that are no DICOM images were not read: report.pdf, slice.dcm.bak, previews/" in warning
    )


def test_a_link_to_a_slice_is_as_good_as_the_slice(data: Path, tmp_path: Path) -> None:
    source = data / "dicom" / "oblique"
    for file in source.glob("*.dcm"):
        (tmp_path / file.name).symlink_to(file)
    np.testing.assert_array_equal(read_volume(tmp_path).array, read_volume(source).array)


def test_a_slice_that_changes_between_its_header_and_its_pixels_is_refused(
    data: Path, copied_folder: Callable[..., Path]
) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    with IsolatedScan(folder) as scan, SharedArray((1, *scan.geometry.shape_zyx)) as memory:
        (folder / "1.dcm").unlink()
        shutil.copyfile(folder / "2.dcm", folder / "1.dcm")
        with pytest.raises(ScanError, match=r"1\.dcm: found a file that changed while it was read"):
            scan.read_into(memory, 0)


def test_a_series_that_grows_while_it_is_read_is_refused(data: Path, copied_folder: Callable[..., Path]) -> None:
    folder = copied_folder(data / "dicom" / "oblique")
    with IsolatedScan(folder) as scan, SharedArray((1, *scan.geometry.shape_zyx)) as memory:
        shutil.copyfile(folder / "2.dcm", folder / "3.dcm")
        with pytest.raises(ScanError, match="found files that came or went while the series was read"):
            scan.read_into(memory, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the decoder needs a file")
def test_compressed_pixels_need_no_temporary_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    channel = open_dicom_series(data / "dicom" / "ct_empty_uids")
    out = np.zeros(channel.geometry.shape_zyx, np.float32)
    with monkeypatch.context() as full:
        full.setattr(tempfile, "gettempdir", nowhere)
        full.setattr(tempfile, "_gettempdir", nowhere)
        channel.read_into(out)
    assert out.min() < -900
