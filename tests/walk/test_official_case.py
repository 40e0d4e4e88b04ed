"""The whole walk on a real scan: checkpoint -> bundle -> label map, as the training code would have given it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from masksam_deploy import Segmenter, Volume, read_volume, write_labels
from masksam_deploy.base.errors import BundleError, MemoryLimitError, ScanError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.segmenter import Segmentation


@pytest.fixture(scope="module")
def scan(cardiac_case: Path) -> Volume:
    return read_volume(cardiac_case / "c_cardiac_0000.nii.gz")


@pytest.fixture(scope="module")
def official(cardiac_bundle: Path, scan: Volume) -> Segmentation:
    """With the official arithmetic: all mirror passes, float16 accumulation."""
    calls: list[tuple[int, int]] = []
    with Segmenter(cardiac_bundle, accumulator="float16") as segmenter:
        result = segmenter(scan, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (192, 192)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    return result


def test_preprocessed_data_equal_the_official_ones(cardiac_bundle: Path, cardiac_case: Path, scan: Volume) -> None:
    found = prepare(scan, Bundle.load(cardiac_bundle).manifest.recipe).data
    with np.load(cardiac_case / "preprocessed.npz") as archive:
        expected = archive[archive.files[0]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_label_map_equals_the_official_one_wherever_the_classes_are_apart(
    official: Segmentation, cardiac_case: Path
) -> None:
    expected = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(cardiac_case / "labels.nii.gz")))
    with np.load(cardiac_case / "margins.npz") as archive:
        margin = archive["margin"]
    differs = official.labels.array != expected
    assert not differs[margin > 0.01].any()
    assert differs.mean() <= 1e-3


def test_written_label_map_has_the_scans_geometry(official: Segmentation, cardiac_case: Path, tmp_path: Path) -> None:
    write_labels(official.labels, tmp_path / "seg.nii.gz")
    ours = SimpleITK.ReadImage(str(tmp_path / "seg.nii.gz"))
    theirs = SimpleITK.ReadImage(str(cardiac_case / "labels.nii.gz"))
    assert ours.GetPixelID() == SimpleITK.sitkUInt8
    for property_ in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(ours, property_)(), getattr(theirs, property_)(), atol=1e-6)


def test_report_says_what_was_found_how_and_with_what(official: Segmentation, cardiac_bundle: Path) -> None:
    report = official.report
    array, geometry = official.labels.array, official.labels.geometry
    for label in report.labels:
        assert label.voxels == int((array == label.value).sum())
        assert label.volume_ml == pytest.approx(label.voxels * geometry.voxel_volume_ml, abs=1e-6)
    assert report.settings["accumulator"] == "float16"
    assert report.settings["mirror_axes"] == [0, 1, 2]
    assert report.settings["providers"]["decoder"] == "CPUExecutionProvider"
    assert report.bundle["manifest_sha256"] == Bundle.load(cardiac_bundle).sha256
    assert report.scan["windows"] == 24
    assert report.timings_s["network"] > 0


def test_segmenter_can_be_called_again_and_gives_the_same(cardiac_bundle: Path, scan: Volume) -> None:
    small = cropped(scan)
    before = small.array.copy()
    with Segmenter(cardiac_bundle, tta=False) as segmenter:
        first, second = segmenter(small), segmenter(small)
    assert np.array_equal(first.labels.array, second.labels.array)
    assert np.array_equal(small.array, before)
    assert first.report.settings["mirror_axes"] == []
    assert first.labels.geometry == small.geometry


def cropped(scan: Volume) -> Volume:
    """The four middle slices of the scan."""
    x, y, _ = scan.geometry.size_xyz
    geometry = type(scan.geometry)((x, y, 4), *list(vars(scan.geometry).values())[1:])
    return Volume(np.ascontiguousarray(scan.array[:, 4:8]), geometry)


def test_unverified_bundles_are_not_run(cardiac_bundle: Path) -> None:
    with pytest.raises(BundleError, match="without checking its hashes"):
        Segmenter(Bundle.load(cardiac_bundle, verify=False))


def test_scan_with_another_number_of_channels_is_refused(cardiac_bundle: Path, scan: Volume) -> None:
    doubled = Volume(np.concatenate([scan.array, scan.array]), scan.geometry)
    with Segmenter(cardiac_bundle) as segmenter, pytest.raises(ScanError, match="2 channels"):
        segmenter(doubled)


def test_scan_beyond_the_memory_limit_is_refused_before_work(cardiac_bundle: Path, scan: Volume) -> None:
    with Segmenter(cardiac_bundle, max_ram=2**20) as segmenter, pytest.raises(MemoryLimitError, match="--max-ram"):
        segmenter(scan)
