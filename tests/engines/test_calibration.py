"""Calibration scans: found, hashed, refused, cut into the windows that the network will see."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from masksam_deploy import Segmenter
from masksam_deploy.base.errors import OutputError, ScanError
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.calibration import GraphFeeds, calibration_windows
from masksam_deploy.io.cases import find_scans
from masksam_deploy.io.write_scan import write_scan
from masksam_deploy.runtimes import open_chain
from tests.engines.small_bundle import ball_scan, write_ball_scans


def test_windows_are_those_that_the_segmenter_runs(bundle: Bundle, tmp_path: Path) -> None:
    (scan,) = find_scans([write_ball_scans(tmp_path, range(1))], 1)
    seen: list[np.ndarray] = []
    network = open_chain(bundle)
    original = network.__class__.__call__

    class Watched(type(network)):  # type: ignore[misc]
        def __call__(self, image: np.ndarray) -> np.ndarray:
            seen.append(image.copy())
            scores: np.ndarray = original(self, image)
            return scores

    network.__class__ = Watched
    with Segmenter(bundle, network=network, tta=False) as segmenter:
        segmenter(ball_scan(0)[0])
    windows = calibration_windows(bundle, [scan], most=len(seen)).windows
    assert len(windows) == len(seen)
    for window, expected in zip(windows, seen, strict=True):
        assert np.array_equal(window, expected)


@pytest.mark.parametrize(("count", "most"), [(5, 8), (3, 9), (4, 4), (5, 40)])
def test_every_scan_gives_windows_and_together_no_more_than_wanted(
    bundle: Bundle, tmp_path: Path, count: int, most: int
) -> None:
    scans = find_scans([write_ball_scans(tmp_path, range(count))], 1)
    together = calibration_windows(bundle, scans, most=most, fewest=1).windows
    assert len(together) <= most
    for scan in scans:
        alone = calibration_windows(bundle, [scan], most=1000, fewest=1).windows
        shared = sum(any(np.array_equal(window, own) for own in alone) for window in together)
        assert min(most // count, len(alone)) <= shared <= -(-most // count) + 1, scan.name


def test_windows_are_spread_over_all_scans(bundle: Bundle, calibration: Path) -> None:
    scans = find_scans([calibration], 1)
    found = calibration_windows(bundle, scans, most=9)
    assert len(found.windows) == 9
    assert set(found.scans) == {"scan_10.nii.gz", "scan_11.nii.gz", "scan_12.nii.gz"}
    again = calibration_windows(bundle, scans[::-1], most=9)
    assert again.sha256 == found.sha256
    assert calibration_windows(bundle, scans[:2], most=9).sha256 != found.sha256


def test_too_few_windows_are_refused(bundle: Bundle, calibration: Path) -> None:
    with pytest.raises(ScanError, match="found 3 windows in 1 calibration scans, expected at least 8"):
        calibration_windows(bundle, find_scans([calibration / "scan_10.nii.gz"], 1), most=3)


def test_a_scan_without_contrast_is_refused_by_name(bundle: Bundle, tmp_path: Path) -> None:
    scan = ball_scan(0)[0]
    write_scan(Volume(np.zeros_like(scan.array), scan.geometry), 0, tmp_path / "flat.nii.gz")
    with pytest.raises(ScanError, match=r"flat\.nii\.gz: found no contrast"):
        calibration_windows(bundle, find_scans([tmp_path], 1))


def test_the_same_scan_under_two_names_is_refused(bundle: Bundle, calibration: Path, tmp_path: Path) -> None:
    for name in ("one.nii.gz", "two.nii.gz"):
        shutil.copy(calibration / "scan_10.nii.gz", tmp_path / name)
    with pytest.raises(ScanError, match=r"two\.nii\.gz: found the same scan as one\.nii\.gz"):
        calibration_windows(bundle, find_scans([tmp_path], 1))


def test_an_unreadable_calibration_scan_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(ScanError, match="broken"):
        calibration_windows(bundle, find_scans([tmp_path], 1))


def test_every_graph_is_fed_what_the_chain_passes_on(bundle: Bundle, calibration: Path) -> None:
    windows = calibration_windows(bundle, find_scans([calibration], 1), most=8).windows
    with GraphFeeds(bundle, windows) as feeds, open_chain(bundle) as chain:
        folder = Path(feeds._folder.name)
        for number, fed in enumerate(feeds.of("decoder")):
            assert set(fed) == {"features", "mask"}
            assert np.array_equal(feeds.tensor(number, "semseg"), chain(windows[number]))
        assert number == len(windows) - 1
        assert folder.exists()
    assert not folder.exists()


def test_folders_of_the_same_name_are_kept_apart_and_twins_found_all_the_same(
    bundle: Bundle, calibration: Path, tmp_path: Path
) -> None:
    paths = []
    for number in (10, 11):
        (tmp_path / str(number)).mkdir()
        paths.append(tmp_path / str(number) / "SAX.nii.gz")
        shutil.copy(calibration / f"scan_{number}.nii.gz", paths[-1])
    found = calibration_windows(bundle, find_scans(paths, 1))
    assert set(found.scans) == {"SAX.nii.gz", "SAX.nii.gz (2)"}
    with pytest.raises(ScanError, match="found the same scan as"):
        calibration_windows(bundle, find_scans([*paths, calibration / "scan_10.nii.gz"], 1))


def test_more_scans_than_windows_are_refused(bundle: Bundle, calibration: Path) -> None:
    with pytest.raises(ScanError, match="found 3 calibration scans for 2 windows"):
        calibration_windows(bundle, find_scans([calibration], 1), most=2, fewest=1)


def test_a_disk_that_cannot_hold_what_passes_between_the_graphs_is_refused_first(
    bundle: Bundle, calibration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = calibration_windows(bundle, find_scans([calibration], 1)).windows
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="set TMPDIR to a larger disk, or use fewer windows"):
        GraphFeeds(bundle, windows)
