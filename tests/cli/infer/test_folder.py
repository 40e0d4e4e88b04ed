"""`masksam-deploy infer` on folders and lists of scans, unattended: nothing lost, nothing wrong, nothing in silence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from masksam_deploy.base.errors import DiskFullError, ScansFailedError
from masksam_deploy.batch import pipeline as batch
from masksam_deploy.io import read_volume
from masksam_deploy.outputs.one_scan import described_scan, write_results
from masksam_deploy.scan_path.segmenter import Segmenter
from tests.cli.infer.calls import digest, done, invoke, refused, report_in, statuses, write_series
from tests.engines.small_bundle import write_ball_scans


def test_every_scan_of_a_folder_gets_the_very_bytes_that_it_gets_alone(
    scans: Path, bundle: Path, out: Path, tmp_path: Path
) -> None:
    text = done(scans, "-b", bundle, "-o", out, "--overlays")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            "ledger.jsonl",
            "report.json",
            *(f"scan_{number}{suffix}" for number in range(3) for suffix in (".nii.gz", ".png")),
        ]
    )
    report = report_in(out)
    assert report["finished"] is True
    assert report["totals"] == {"pending": 0, "done": 3, "skipped": 0, "failed": 0}
    for number, entry in enumerate(report["scans"]):
        alone, picture = tmp_path / f"alone_{number}.nii.gz", tmp_path / f"alone_{number}.png"
        done(scans / f"scan_{number}.nii.gz", "-b", bundle, "-o", alone, "--overlay", picture)
        assert (out / f"scan_{number}.nii.gz").read_bytes() == alone.read_bytes()
        assert (out / f"scan_{number}.png").read_bytes() == picture.read_bytes()
        assert entry["outputs"]["labels"]["sha256"] == digest(alone)
        assert entry["inputs"][0]["sha256"] == digest(scans / f"scan_{number}.nii.gz")
        assert f"{number + 1}/3 scan_{number}: done" in text
    assert "3 done, 0 skipped, 0 failed" in text


def test_each_scan_has_the_report_of_a_single_one(
    scans: Path, bundle: Path, out: Path, finished: Path, tmp_path: Path
) -> None:
    single = json.loads(
        done(
            scans / "scan_1.nii.gz",
            "-b",
            bundle,
            "-o",
            tmp_path / "one.nii.gz",
            "--report",
            tmp_path / "r.json",
            "--json",
        )
    )
    entry = report_in(out)["scans"][1]["report"]
    assert single.keys() - entry.keys() == {"files"}  # beside the report, as inputs and outputs
    for key in ("bundle", "scan", "settings", "labels", "versions", "schema_version"):
        assert entry[key] == single[key]
    assert {"read", "preprocess", "network", "write"} <= entry["timings_s"].keys()


def test_json_prints_the_report_alone(scans: Path, bundle: Path, out: Path) -> None:
    printed = json.loads(done(scans, "-b", bundle, "-o", out, "--json", "--suffix", ".mha"))
    assert printed["scans"] == report_in(out)["scans"]
    assert (out / "scan_2.mha").is_file()


def test_files_dicom_folders_and_folders_of_them_may_be_mixed(scans: Path, bundle: Path, out: Path) -> None:
    patients = scans.parent / "patients"
    for name in ("p1", "p2.mr"):
        write_series(patients / name)
    (scans / "scan_2.nii.gz").rename(scans.parent / "other_0000.NII.GZ")
    (scans / "notes.txt").write_text("not a scan")
    done(scans, patients, scans.parent / "other_0000.NII.GZ", "-b", bundle, "-o", out)
    assert statuses(out) == dict.fromkeys(["scan_0", "scan_1", "p1", "p2.mr", "other"], "done")
    assert (out / "p2.mr.nii.gz").read_bytes() == (out / "p1.nii.gz").read_bytes()


def test_one_dicom_folder_and_one_file_may_go_into_a_folder(scans: Path, bundle: Path, out: Path) -> None:
    done(write_series(scans / "series"), "-b", bundle, "-o", out)
    assert statuses(out) == {"series": "done"}
    out.with_name("made").mkdir()
    done(scans / "scan_0.nii.gz", "-b", bundle, "-o", out.with_name("made"))
    assert statuses(out.with_name("made")) == {"scan_0": "done"}


def test_a_scan_that_fails_does_not_stop_the_others_and_is_listed_at_the_end(
    scans: Path, bundle: Path, out: Path
) -> None:
    whole = (scans / "scan_1.nii.gz").read_bytes()
    (scans / "scan_1.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "scan_0.nii.gz").write_bytes(b"")
    result = invoke(scans, "-b", bundle, "-o", out)
    assert isinstance(result.exception, ScansFailedError)
    assert result.exception.exit_code == 4
    assert "2 of 3 scans failed" in str(result.exception)
    assert statuses(out) == {"scan_0": "failed", "scan_1": "failed", "scan_2": "done"}
    error = report_in(out)["scans"][0]["error"]
    assert (error["type"], error["traceback"]) == ("ScanError", None)
    assert "empty file" in error["message"]
    end = result.output[result.output.index("failed:") :]
    assert "scan_0: " in end
    assert "scan_1: " in end
    (scans / "scan_0.nii.gz").write_bytes(whole)
    (scans / "scan_1.nii.gz").write_bytes(whole)
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_0": "done", "scan_1": "done", "scan_2": "skipped"}


def test_a_bug_in_one_scan_is_reported_as_one_and_does_not_stop_the_others(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(paths: Any, **limits: Any) -> Any:
        if paths[0].name == "scan_1.nii.gz":
            raise IndexError("of a kind that nobody foresaw")
        return read_volume(paths, **limits)

    monkeypatch.setattr(batch, "read_volume", broken)
    assert isinstance(invoke(scans, "-b", bundle, "-o", out).exception, ScansFailedError)
    assert statuses(out) == {"scan_0": "done", "scan_1": "failed", "scan_2": "done"}
    error = report_in(out)["scans"][1]["error"]
    assert "this is a bug" in error["message"]
    assert "nobody foresaw" in error["traceback"]


def test_a_name_that_is_no_text_fails_its_scan_alone(scans: Path, bundle: Path, out: Path) -> None:
    try:
        (scans / "scan_1.nii.gz").rename(os.fsdecode(os.fsencode(scans) + b"/scan_\xff.nii.gz"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert isinstance(invoke(scans, "-b", bundle, "-o", out).exception, ScansFailedError)
    assert statuses(out) == {"scan_0": "done", "scan_2": "done", r"scan_\udcff": "failed"}
    assert "not UTF-8" in report_in(out)["scans"][2]["error"]["message"]
    assert isinstance(invoke(scans, "-b", bundle, "-o", out, "--resume").exception, ScansFailedError)


def test_a_scan_that_vanishes_is_told_as_such_and_not_as_a_bug(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(paths: Sequence[Path]) -> Any:
        (scans / "scan_1.nii.gz").unlink(missing_ok=True)
        return described_scan(paths)

    monkeypatch.setattr(batch, "described_scan", late)
    assert isinstance(invoke(scans, "-b", bundle, "-o", out).exception, ScansFailedError)
    assert statuses(out) == {"scan_0": "done", "scan_1": "failed", "scan_2": "done"}
    error = report_in(out)["scans"][1]["error"]
    assert error["type"] == "ScanError" and "scan_1.nii.gz" in error["message"] and error["traceback"] is None


def test_a_label_map_that_cannot_be_written_fails_its_scan_alone(scans: Path, bundle: Path, out: Path) -> None:
    (out / "scan_0.nii.gz").mkdir(parents=True)
    result = invoke(scans, "-b", bundle, "-o", out, "--force")
    assert isinstance(result.exception, ScansFailedError)
    assert statuses(out) == {"scan_0": "failed", "scan_1": "done", "scan_2": "done"}


def test_a_full_disk_stops_the_run_and_the_report_says_how_far_it_came(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*arguments: Any) -> None:
        if arguments[2].labels.name == "scan_1.nii.gz":
            raise DiskFullError("scan_1.nii.gz: cannot be written: the disk is full; free some space")
        write_results(*arguments)

    monkeypatch.setattr(batch, "write_results", full)
    result = invoke(scans, "-b", bundle, "-o", out)
    assert isinstance(result.exception, DiskFullError)
    assert "stopped after 1 of 3 scans" in result.output
    assert statuses(out) == {"scan_0": "done", "scan_1": "failed", "scan_2": "pending"}
    assert report_in(out)["finished"] is False
    monkeypatch.undo()
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_0": "skipped", "scan_1": "done", "scan_2": "done"}


def test_scans_that_would_get_the_same_name_are_both_named_before_anything_runs(
    scans: Path, bundle: Path, out: Path
) -> None:
    more = write_ball_scans(scans.parent / "more", range(2, 3))
    (more / "scan_2.nii.gz").rename(more / "SCAN_2_0000.nii.gz")
    message = refused(scans, more, "-b", bundle, "-o", out)
    assert str(scans / "scan_2.nii.gz") in message
    assert str(more / "SCAN_2_0000.nii.gz") in message
    assert not out.exists()
    assert "two scans" in refused(scans / "scan_0.nii.gz", scans / "scan_0.nii.gz", "-b", bundle, "-o", out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{scans}", "-o", "{scans}"], "is a folder of scans itself"),
        (["{scans}", "-o", "{bundle}/results"], "inside the bundle"),
        (["{scans}", "-o", "{scans}/../out.nii.gz"], "give --output a folder"),
        (["{scans}/scan_0.nii.gz", "{scans}/scan_1.nii.gz", "-o", "out.nii.gz"], "expected a folder"),
        (["{scans}/scan_0.nii.gz", "-o", "nowhere"], "make that folder first"),
        (["{scans}/scan_0.nii.gz", "-o", "{scans}"], "is one of the scans"),
        (["{scans}", "nothing", "-o", "{out}"], "nothing: found nothing there"),
        (["nothing", "-o", "{out}"], "nothing: found nothing there"),
        (["{scans}", "-o", "{bundle}/../../readme.txt/out"], "cannot be made"),
        (["{scans}", "-o", "{out}", "--overlay", "a.png"], "--overlays"),
        (["{scans}", "{scans}", "-o", "{out}", "--report", "a.json"], "report.json is always written"),
        (["{scans}", "{scans}", "-o", "{out}", "--channel", "t2.nii.gz"], "CASE_0001"),
        (["{scans}", "-o", "{out}", "--resume", "--force"], "one of them"),
        (["{scans}/scan_0.nii.gz", "-o", "{out}.nii.gz", "--resume"], "for many scans"),
        (["{scans}/scan_0.nii.gz", "-o", "{out}.nii.gz", "--overlays"], "for many scans"),
        (["-o", "{out}"], "Missing argument"),
    ],
)
def test_mixed_up_calls_are_refused_before_anything_is_written(
    scans: Path, bundle: Path, out: Path, arguments: list[str], expected: str
) -> None:
    filled = [argument.format(scans=scans, bundle=bundle, out=out) for argument in arguments]
    before = sorted((path, path.stat().st_mtime_ns) for path in scans.iterdir())
    assert expected in refused(*filled, "-b", bundle).replace("\n", " ")
    assert sorted((path, path.stat().st_mtime_ns) for path in scans.iterdir()) == before
    assert not out.exists() or not list(out.iterdir())


def test_an_output_folder_among_the_scans_is_not_taken_for_one(bundle: Path, tmp_path: Path) -> None:
    for name in ("p1", "p2"):
        write_series(tmp_path / "all" / name)
    out = tmp_path / "all" / "out"
    done(tmp_path / "all", "-b", bundle, "-o", out)
    done(tmp_path / "all", "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"p1": "skipped", "p2": "skipped"}


def test_reading_ahead_happens_where_memory_allows_it_and_not_where_it_does_not(
    scans: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []

    def watched(paths: Any, **limits: Any) -> Any:
        volume = read_volume(paths, **limits)
        readers.append(threading.current_thread().name.split("_")[0])
        return volume

    monkeypatch.setattr(batch, "read_volume", watched)
    done(scans, "-b", bundle, "-o", tmp_path / "plenty", "--max-ram", "8G", "--threads", 1)
    assert readers == ["MainThread", "read-ahead", "read-ahead"]
    readers.clear()
    message = refused(
        scans / "scan_0.nii.gz", "-b", bundle, "-o", tmp_path / "x.nii", "--max-ram", "120M", "--threads", 1
    )
    needed = float(message.split("needs about ")[1].split(" MiB")[0])
    # What one scan takes, and less than a further one: 0.3 MiB for reading it.
    done(scans, "-b", bundle, "-o", tmp_path / "scarce", "--max-ram", f"{needed + 0.1:.1f}M", "--threads", 1)
    assert readers == ["MainThread"] * 3
    for number in range(3):
        name = f"scan_{number}.nii.gz"
        assert digest(tmp_path / "plenty" / name) == digest(tmp_path / "scarce" / name)


def test_a_scan_that_is_too_large_for_the_memory_fails_alone(scans: Path, bundle: Path, out: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).normal(size=(9, 400, 400)).astype(np.float32))
    SimpleITK.WriteImage(image, str(scans / "scan_1.nii.gz"))
    result = invoke(scans, "-b", bundle, "-o", out, "--max-ram", "145M", "--threads", 1)
    assert isinstance(result.exception, ScansFailedError), result.output
    assert statuses(out) == {"scan_0": "done", "scan_1": "failed", "scan_2": "done"}
    assert report_in(out)["scans"][1]["error"]["type"] == "MemoryLimitError"


def test_running_a_folder_is_documented_with_its_exit_codes() -> None:
    text = invoke("--help").output
    for expected in ("SCAN...", "--resume", "4 some of many scans failed"):
        assert expected in " ".join(text.split())


def test_the_exit_code_reaches_the_shell(scans: Path, bundle: Path, out: Path) -> None:
    (scans / "scan_1.nii.gz").write_bytes(b"")
    result = subprocess.run(
        [sys.executable, "-m", "masksam_deploy", "infer", str(scans), "-b", str(bundle), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4
    assert result.stderr.startswith("error: 1 of 3 scans failed")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_does_not_end_the_work(scans: Path, bundle: Path, out: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "masksam_deploy", "infer", str(scans), "-b", str(bundle), "-o", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert set(statuses(out).values()) == {"done"}


def test_a_device_and_a_backend_that_contradict_are_refused(scans: Path, bundle: Path, out: Path) -> None:
    assert "runs on a GPU" in refused(scans, "-b", bundle, "-o", out, "--device", "cpu", "--backend", "rtx")


def test_a_scan_that_is_moved_away_while_the_network_runs_still_gets_its_label_map_and_its_hash(
    scans: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, report = scans / "scan_0.nii.gz", tmp_path / "report.json"
    before, original = digest(scan), Segmenter.__call__

    def moved(self: Segmenter, *arguments: Any) -> Any:
        scan.rename(scan.with_suffix(".moved"))
        return original(self, *arguments)

    monkeypatch.setattr(Segmenter, "__call__", moved)
    done(scan, "-b", bundle, "-o", tmp_path / "labels.nii.gz", "--report", report)
    assert json.loads(report.read_text())["files"]["inputs"][0]["sha256"] == before
