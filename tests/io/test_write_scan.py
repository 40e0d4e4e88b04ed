"""Scans that travel with a bundle: the same voxels at the same place, and nothing else."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy import read_volume
from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.io.write_scan import write_scan

OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def volume(values: np.ndarray) -> Volume:
    z, y, x = values.shape[-3:]
    return Volume(values, Geometry((x, y, z), (0.7, 1.3, 4.0), (-12.5, 30.25, 8.0), OBLIQUE))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20), whole=st.booleans(), channel=st.booleans()
)
def test_what_is_written_reads_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], whole: bool, channel: bool
) -> None:
    array = np.resize(np.array(values, np.float32), (2, 2, 3, 4))
    if whole:
        array = np.rint(array % 1000)
    scan = volume(array)
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_scan(scan, int(channel), path)
    again = read_volume(path)
    assert np.array_equal(again.channels_czyx[0], array[int(channel)])
    assert again.geometry.size_xyz == scan.geometry.size_xyz
    assert again.geometry.direction_lps == pytest.approx(OBLIQUE, abs=1e-6)


def test_whole_numbers_take_two_bytes_and_others_four(tmp_path: Path) -> None:
    for values, size in ((np.arange(24.0), 2), (np.arange(24.0) / 7, 4), (np.arange(24.0) * 1e4, 4)):
        write_scan(volume(values.reshape(2, 3, 4).astype(np.float32)), 0, tmp_path / "scan.nii.gz")
        assert len(gzip.decompress((tmp_path / "scan.nii.gz").read_bytes())) == 352 + 24 * size


def test_a_folder_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(OutputError, match="not UTF-8"):
        write_scan(volume(np.zeros((2, 3, 4), np.float32)), 0, folder / "a.nii.gz")
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


def test_other_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected \.nii\.gz"):
        write_scan(volume(np.zeros((2, 3, 4), np.float32)), 0, tmp_path / "scan.nrrd")
