"""`masksam-deploy infer` on folders and lists of scans, unattended: nothing lost, nothing wrong, nothing in silence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from click.testing import CliRunner, Result

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy import batch, batch_report
from masksam_deploy.cli import app
from masksam_deploy.errors import DiskFullError, MaskSamError, ScansFailedError
from masksam_deploy.io import read_volume
from masksam_deploy.results import write_results
from tests.conftest import INTERRUPTIBLE
from tests.engines.small_bundle import ball_scan, make_bundle, write_ball_scans


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    (folder.parent / "readme.txt").write_text("a file, no folder")
    return make_bundle(folder / "balls.masksam", cases=1).path


@pytest.fixture(scope="module")
def ran(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans and what a run made of them."""
    folder = tmp_path_factory.mktemp("ran")
    done(write_ball_scans(folder / "scans", range(3)), "-b", bundle, "-o", folder / "out")
    return folder


@pytest.fixture
def finished(ran: Path, scans: Path, out: Path) -> Path:
    """The run's results, to be spoiled."""
    return Path(shutil.copytree(ran / "out", out))


@pytest.fixture
def scans(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran / "scans", tmp_path / "scans"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write_series(folder: Path) -> Path:
    """Two balls as a small DICOM series."""
    folder.mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, plane in enumerate(np.asarray(ball_scan(0)[0].array)):
        image = SimpleITK.GetImageFromArray(plane[None].astype(np.int16))
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.3.{number + 1}",
            "0008|0060": "MR",
            "0010|0020": "patient",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(number + 1),
            "0020|0032": f"0\\0\\{number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        writer.Execute(image)
    return folder


def invoke(*arguments: object) -> Result:
    step = [] if "--step" in arguments else ["--step", 1]  # fewer windows
    return CliRunner().invoke(app, ["infer", *map(str, [*arguments, *step])])


def done(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    if isinstance(result.exception, MaskSamError):
        assert result.exception.exit_code == 2
        return str(result.exception)
    assert result.exit_code == 2, result.output
    return result.output


def report_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def statuses(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in report_in(folder)["scans"]}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_scan_of_a_folder_gets_the_very_bytes_that_it_gets_alone(
    scans: Path, bundle: Path, out: Path, tmp_path: Path
) -> None:
    text = done(scans, "-b", bundle, "-o", out, "--overlays")
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["report.json", *(f"scan_{number}{suffix}" for number in range(3) for suffix in (".nii.gz", ".png"))]
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


def _another_scan(scans: Path, out: Path) -> list[str]:
    write_ball_scans(scans.parent / "more", range(9, 10))
    shutil.copy(scans.parent / "more" / "scan_9.nii.gz", scans / "scan_1.nii.gz")
    return []


def _changed_labels(scans: Path, out: Path) -> list[str]:
    data = bytearray((out / "scan_1.nii.gz").read_bytes())
    data[-1] ^= 1
    (out / "scan_1.nii.gz").write_bytes(data)
    return []


def _missing_labels(scans: Path, out: Path) -> list[str]:
    (out / "scan_1.nii.gz").unlink()
    return []


def _linked_labels(scans: Path, out: Path) -> list[str]:
    (out / "scan_1.nii.gz").rename(out.parent / "elsewhere.nii.gz")
    (out / "scan_1.nii.gz").symlink_to(out.parent / "elsewhere.nii.gz")
    return []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_another_scan, "the scan is not the one that was segmented"),
        (_changed_labels, "scan_1.nii.gz was changed"),
        (_missing_labels, "scan_1.nii.gz is missing"),
        (_linked_labels, "scan_1.nii.gz is missing"),
    ],
)
def test_resume_does_again_only_what_is_not_provably_done_and_says_why(
    scans: Path, bundle: Path, out: Path, finished: Path, change: Callable[[Path, Path], list[str]], reason: str
) -> None:
    before = digest(out / "scan_1.nii.gz")
    change(scans, out)
    text = done(scans, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_0": "skipped", "scan_1": "done", "scan_2": "skipped"}
    assert "scan_1: done" in text
    assert f"(done again: {reason})" in text
    assert report_in(out)["scans"][1]["note"] == reason
    assert (digest(out / "scan_1.nii.gz") == before) is (change is not _another_scan)
    assert not (out / "scan_1.nii.gz").is_symlink()
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--step", 0.75], "step was 1.0, is 0.75"),
        (["--accumulator", "float16"], "accumulator was float32, is float16"),
        (["--overlays"], "found no overlay of the earlier run"),
        (["--suffix", ".nii"], "scan_0.nii is missing"),
    ],
)
def test_resume_does_again_what_was_made_in_another_way(
    scans: Path, bundle: Path, out: Path, finished: Path, options: list[object], reason: str
) -> None:
    text = done(scans, "-b", bundle, "-o", out, "--resume", *options)
    assert reason in text
    assert set(statuses(out).values()) == {"done"}


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_failure_says_that_the_label_map_of_an_earlier_run_is_still_there(
    scans: Path, bundle: Path, out: Path, finished: Path, option: str
) -> None:
    (scans / "scan_1.nii.gz").write_bytes(b"damaged since")
    result = invoke(scans, "-b", bundle, "-o", out, option)
    assert isinstance(result.exception, ScansFailedError)
    assert result.output.count("STILL THERE from an earlier run: scan_1.nii.gz") == 2
    assert report_in(out)["scans"][1]["left_over"] == ["scan_1.nii.gz"]


def test_resume_does_again_what_another_bundle_made(
    scans: Path, bundle: Path, out: Path, finished: Path, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other.masksam", outlier=2.0).path
    assert "bundle_sha256 was" in done(scans, "-b", other, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"done"}


def test_resume_sees_that_the_voxels_beside_a_header_changed(bundle: Path, out: Path, tmp_path: Path) -> None:
    scans = write_ball_scans(tmp_path / "scans", range(1))
    image = SimpleITK.GetImageFromArray(ball_scan(0)[0].array)
    (scans / "scan_0.nii.gz").unlink()
    SimpleITK.WriteImage(image, str(scans / "scan_0.mhd"))
    done(scans, "-b", bundle, "-o", out)
    voxels = bytearray((scans / "scan_0.raw").read_bytes())
    voxels[:4] = np.float32(7).tobytes()
    (scans / "scan_0.raw").write_bytes(voxels)
    assert "the scan is not the one" in done(scans, "-b", bundle, "-o", out, "--resume")


def test_resume_sees_that_one_slice_of_a_series_changed(bundle: Path, out: Path, tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    done(series, "-b", bundle, "-o", out)
    path = sorted(series.iterdir())[1]
    dataset = pydicom.dcmread(path)
    dataset.PatientComments = "another byte"
    dataset.save_as(path)
    assert "the scan is not the one" in done(series, "-b", bundle, "-o", out, "--resume")


def test_a_resumed_run_keeps_what_is_known_of_scans_that_it_has_not_reached(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupted(paths: Any, **limits: Any) -> Any:
        raise SystemExit(130)

    (out / "scan_0.nii.gz").unlink()
    monkeypatch.setattr(batch, "read_volume", interrupted)
    assert invoke(scans, "-b", bundle, "-o", out, "--resume").exit_code == 130
    monkeypatch.undo()
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_0": "done", "scan_1": "skipped", "scan_2": "skipped"}


def test_resume_where_nothing_was_run_runs_all(scans: Path, bundle: Path, out: Path) -> None:
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"done"}


def test_an_earlier_report_is_not_replaced_unasked(scans: Path, bundle: Path, out: Path, finished: Path) -> None:
    before = digest(out / "report.json")
    message = refused(scans, "-b", bundle, "-o", out)
    assert "--resume" in message
    assert "--force" in message
    assert digest(out / "report.json") == before
    done(scans, "-b", bundle, "-o", out, "--force")
    assert set(statuses(out).values()) == {"done"}


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_label_maps_that_no_run_wrote_are_not_replaced_unasked(
    scans: Path, bundle: Path, out: Path, resume: list[str]
) -> None:
    out.mkdir()
    (out / "scan_1.nii.gz").write_bytes(b"drawn by hand, in a week")
    assert "scan_1.nii.gz: found 1 file(s)" in refused(scans, "-b", bundle, "-o", out, *resume)
    assert (out / "scan_1.nii.gz").read_bytes() == b"drawn by hand, in a week"
    assert len(list(out.iterdir())) == 1


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe{}"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("{}"),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
        lambda path: (path.unlink(), path.mkdir()),
        _edited(lambda content: content.update(schema_version=2)),
        _edited(lambda content: content.update(extra=1)),
        _edited(lambda content: content["scans"][0]["outputs"]["labels"].update(sha256="not a hash")),
        _edited(lambda content: content["scans"][0].update(status="perfect")),
    ],
)
def test_a_report_that_is_none_is_refused(
    scans: Path, bundle: Path, out: Path, finished: Path, damage: Callable[[Path], object]
) -> None:
    damage(out / "report.json")
    message = refused(scans, "-b", bundle, "-o", out, "--resume")
    assert "report.json" in message
    assert "--force" in message


def test_a_report_that_is_too_large_is_refused_unread(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_report, "READ_LIMIT", 1000)
    assert "at most 1000 bytes" in refused(scans, "-b", bundle, "-o", out, "--resume")


def test_a_report_cannot_point_to_files_elsewhere(
    scans: Path, bundle: Path, out: Path, finished: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.nii.gz"
    (out / "scan_0.nii.gz").rename(secret)

    def escape(content: dict[str, Any]) -> None:
        content["scans"][0]["outputs"]["labels"]["path"] = "../secret.nii.gz"
        content["scans"][1]["name"] = "../secret"

    _edited(escape)(out / "report.json")
    (out / "scan_1.nii.gz").unlink()
    before = digest(secret)
    text = done(scans, "-b", bundle, "-o", out, "--resume")
    assert "scan_0.nii.gz is missing" in text
    assert statuses(out) == {"scan_0": "done", "scan_1": "done", "scan_2": "skipped"}
    assert digest(secret) == before


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_complete_results_alone_and_resume_goes_on(
    bundle: Path, out: Path, tmp_path: Path, number: signal.Signals
) -> None:
    scans = write_ball_scans(tmp_path / "scans", range(1))
    for copy in range(1, 150):
        os.link(scans / "scan_0.nii.gz", scans / f"scan_{copy}.nii.gz")
    process = subprocess.Popen(
        [*INTERRUPTIBLE, "infer", str(scans), "-b", str(bundle), "-o", str(out), "--step", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not (out / "report.json").exists() or "done" not in statuses(out).values()):
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    found = {name for name, status in statuses(out).items() if status == "done"}
    assert 0 < len(found) < 150
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "go on with --resume" in stderr
        # Every label map that is there is in the report, whole, and nothing half-written.
        assert {path.name for path in out.iterdir()} == {"report.json", *(f"{name}.nii.gz" for name in found)}
    assert len({digest(out / f"{name}.nii.gz") for name in found}) == 1
    few = [scans / f"{name}.nii.gz" for name in sorted(found)[:2]]
    text = done(*few, scans / "scan_99.nii.gz", "-b", bundle, "-o", out, "--resume")
    assert f"{len(few)} skipped" in text
    assert "scan(s) of the earlier report are not among these" in text


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
