"""Files that are cut off, altered or no image at all are refused; nothing crashes or is filled with zeros."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import MaskSamError, ScanError
from masksam_deploy.io import read_volume

SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]


def whole_file(suffix: str, compressed: bool) -> bytes:
    values = np.random.default_rng(0).integers(0, 900, (6, 7, 8)).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing([0.5, 0.75, 2.5])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        SimpleITK.WriteImage(image, str(path), useCompression=compressed)
        return path.read_bytes()


WHOLE = {(s, c): whole_file(s, c) for s in SUFFIXES for c in (False, True)}


def read_bytes(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{suffix}"
        path.write_bytes(content)
        try:
            read_volume(path, max_voxels=1_000_000)
        except MaskSamError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 500
            raise


@pytest.mark.parametrize(("suffix", "compressed"), list(WHOLE))
def test_the_whole_file_is_read(suffix: str, compressed: bool) -> None:
    read_bytes(WHOLE[suffix, compressed], suffix)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_file_cut_off_anywhere_is_refused(data: st.DataObject) -> None:
    suffix, compressed = data.draw(st.sampled_from(list(WHOLE)))
    whole = WHOLE[suffix, compressed]
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ScanError):
        read_bytes(whole[:length], suffix)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(min_size=1, max_size=600), suffix=st.sampled_from([*SUFFIXES, ".mhd", ".nhdr"]))
def test_random_bytes_are_refused(content: bytes, suffix: str) -> None:
    with pytest.raises(ScanError):
        read_bytes(content, suffix)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_one_altered_byte_in_compressed_voxels_is_refused(data: st.DataObject) -> None:
    # ITK itself reads such NRRD and MetaImage files without a word.
    suffix = data.draw(st.sampled_from([".nii.gz", ".nrrd", ".mha"]))
    altered = bytearray(WHOLE[suffix, True])
    # Behind the header, and not the gzip operating system byte, which means nothing.
    position = data.draw(st.integers(len(altered) // 2, len(altered) - 1))
    altered[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ScanError):
        read_bytes(bytes(altered), suffix)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_an_altered_nifti_header_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    altered = bytearray(WHOLE[".nii", False])
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, 351))] = data.draw(st.integers(0, 255))
    try:
        read_bytes(bytes(altered), ".nii")
    except MaskSamError:
        return


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_mode_transfer_that_adds_bytes_is_refused(suffix: str) -> None:
    whole = WHOLE[suffix, False]
    middle = len(whole) - 100
    with pytest.raises(ScanError):
        read_bytes(whole[:middle] + b"\r" + whole[middle:], suffix)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_an_altered_dicom_slice_is_read_or_refused_without_reserving_what_it_claims(data: st.DataObject) -> None:
    folder = Path(__file__).parents[1] / "data" / "io" / "dicom" / "oblique"
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        altered = bytearray((copy / "1.dcm").read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            altered[data.draw(st.integers(128, 1100))] = data.draw(st.integers(0, 255))
        (copy / "1.dcm").write_bytes(altered)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_volume(copy, max_voxels=1_000_000)
        except MaskSamError as error:
            assert "\n" not in str(error)
        # GDCM alone reserves up to 4 GiB for one altered length.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
