"""`masksam-deploy infer --resume`: what counts as done, and what an earlier run's report cannot do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK

from masksam_deploy.base.errors import ScansFailedError
from masksam_deploy.batch import pipeline as batch
from masksam_deploy.batch import report as batch_report
from tests.cli.infer.calls import digest, done, invoke, refused, report_in, statuses, write_series
from tests.conftest import INTERRUPTIBLE
from tests.engines.small_bundle import ball_scan, make_bundle, write_ball_scans


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


def edit_entries(folder: Path, left: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what a run wrote down: in its ledger, or in a report without one, as version 0.1 left it."""
    if left == "ledger":
        path = folder / "ledger.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in [lines[0], *map(edit, lines[1:])]))
        return
    (folder / "ledger.jsonl").unlink()
    report = report_in(folder)
    report["scans"] = list(map(edit, report["scans"]))
    (folder / "report.json").write_text(json.dumps(report))


def interrupted(paths: Any, **limits: Any) -> Any:
    raise SystemExit(130)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_another_scan, "the scan is not the one that was segmented"),
        (_changed_labels, "scan_1.nii.gz was changed; kept as scan_1.kept-1.nii.gz"),
        (_missing_labels, "scan_1.nii.gz is missing"),
        (_linked_labels, "scan_1.nii.gz was changed; kept as scan_1.kept-1.nii.gz"),
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


def test_resume_never_replaces_a_label_map_that_somebody_corrected(
    scans: Path, bundle: Path, out: Path, finished: Path
) -> None:
    (out / "scan_1.nii.gz").write_bytes(b"corrected by hand")
    (out / "scan_1.kept-1.nii.gz").write_bytes(b"an older correction")
    (out / "scan_2.png").write_bytes(b"a screenshot")
    done(scans, "-b", bundle, "-o", out, "--resume", "--step", 0.75, "--overlays")
    assert (out / "scan_1.kept-1.nii.gz").read_bytes() == b"an older correction"
    assert (out / "scan_1.kept-2.nii.gz").read_bytes() == b"corrected by hand"
    assert (out / "scan_2.kept-1.png").read_bytes() == b"a screenshot"
    assert set(statuses(out).values()) == {"done"}
    assert report_in(out)["scans"][1]["note"].endswith("kept as scan_1.kept-2.nii.gz")


@pytest.mark.parametrize("left", ["ledger", "report"])
def test_resume_never_replaces_what_appeared_where_an_interrupted_run_had_not_come_to(
    scans: Path, bundle: Path, out: Path, finished: Path, left: str
) -> None:
    edit_entries(out, left, lambda entry: entry if entry["name"] != "scan_1" else {"name": "scan_1"})
    (out / "scan_1.nii.gz").write_bytes(b"contoured by hand")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert (out / "scan_1.kept-1.nii.gz").read_bytes() == b"contoured by hand"


@pytest.mark.parametrize("left", ["ledger", "report"])
@pytest.mark.parametrize("package", ["masksam-deploy", "onnxruntime", "numpy", "SimpleITK"])
def test_resume_does_again_what_another_version_made(
    scans: Path, bundle: Path, out: Path, finished: Path, package: str, left: str
) -> None:
    edit_entries(out, left, lambda entry: {**entry, "recipe": {**entry.get("recipe", {}), package: "0.0.1"}})
    assert f"{package} was 0.0.1, is" in done(scans, "-b", bundle, "-o", out, "--resume")


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_failure_says_that_the_label_map_of_an_earlier_run_is_still_there(
    scans: Path, bundle: Path, out: Path, finished: Path, option: str
) -> None:
    (scans / "scan_1.nii.gz").write_bytes(b"damaged since")
    result = invoke(scans, "-b", bundle, "-o", out, option)
    assert isinstance(result.exception, ScansFailedError)
    assert result.output.count("STILL THERE from an earlier run: scan_1.nii.gz") == 2
    assert report_in(out)["scans"][1]["left_over"] == ["scan_1.nii.gz"]
    assert report_in(out)["scans"][1]["outputs"] == {}
    shutil.copy(scans / "scan_2.nii.gz", scans / "scan_1.nii.gz")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert not list(out.glob("*.kept-*"))  # it was ours


def test_an_interrupted_run_that_does_all_again_still_knows_its_own_files(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "read_volume", interrupted)
    assert invoke(scans, "-b", bundle, "-o", out, "--force").exit_code == 130
    monkeypatch.undo()
    assert set(statuses(out).values()) == {"pending"}
    (out / "scan_1.nii.gz").write_bytes(b"corrected by hand")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert [path.name for path in out.glob("*.kept-*")] == ["scan_1.kept-1.nii.gz"]


def test_other_scans_of_earlier_runs_stay_in_the_report(scans: Path, bundle: Path, out: Path, finished: Path) -> None:
    first = scans / "scan_1.nii.gz"
    done(first, "-b", bundle, "-o", out, "--resume")
    report = report_in(out)
    assert (statuses(out), report["totals"]["skipped"], report["finished"]) == ({"scan_1": "skipped"}, 1, True)
    assert [(entry["name"], entry["status"]) for entry in report["others"]] == [("scan_0", "done"), ("scan_2", "done")]
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}
    assert report_in(out)["others"] == []
    done(first, "-b", bundle, "-o", out, "--force")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_no_picture_of_another_label_map_stays_beside_a_new_one(
    scans: Path, bundle: Path, out: Path, option: str
) -> None:
    done(scans, "-b", bundle, "-o", out, "--overlays")
    picture = digest(out / "scan_1.png")
    text = done(scans, "-b", bundle, "-o", out, option, "--step", 0.75, "--suffix", ".mha")
    assert "kept as scan_1.kept-1.nii.gz, scan_1.kept-1.png" in text
    assert digest(out / "scan_1.kept-1.png") == picture
    assert not (out / "scan_1.png").exists()
    assert not (out / "scan_1.nii.gz").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_earlier_label_map_that_cannot_be_read_is_no_bug(
    scans: Path, bundle: Path, out: Path, finished: Path
) -> None:
    (out / "scan_1.nii.gz").chmod(0)
    result = invoke(scans, "-b", bundle, "-o", out, "--resume")
    assert isinstance(result.exception, ScansFailedError)
    assert "found a file of an earlier run that cannot be read" in result.output
    assert "bug" not in result.output


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
def test_a_report_without_ledger_that_is_none_is_refused(
    scans: Path, bundle: Path, out: Path, finished: Path, damage: Callable[[Path], object]
) -> None:
    (out / "ledger.jsonl").unlink()
    damage(out / "report.json")
    message = refused(scans, "-b", bundle, "-o", out, "--resume")
    assert "report.json" in message
    assert "--force" in message


def test_a_report_without_ledger_that_is_too_large_is_refused_unread(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_report, "READ_LIMIT", 1000)
    done(scans, "-b", bundle, "-o", out, "--resume")  # from the ledger, which has no limit
    (out / "ledger.jsonl").unlink()
    assert "at most 1000 bytes" in refused(scans, "-b", bundle, "-o", out, "--resume")


@pytest.mark.parametrize("left", ["ledger", "report"])
def test_a_report_cannot_point_to_files_elsewhere(
    scans: Path, bundle: Path, out: Path, finished: Path, tmp_path: Path, left: str
) -> None:
    secret = tmp_path / "secret.nii.gz"
    (out / "scan_0.nii.gz").rename(secret)

    def escape(entry: dict[str, Any]) -> dict[str, Any]:
        if entry["name"] == "scan_0" and entry.get("outputs"):
            entry["outputs"]["labels"]["path"] = "../secret.nii.gz"
        return {**entry, "name": "../secret"} if entry["name"] == "scan_1" else entry

    edit_entries(out, left, escape)
    (out / "scan_1.nii.gz").unlink()
    before = digest(secret)
    text = done(scans, "-b", bundle, "-o", out, "--resume")
    assert "scan_0.nii.gz is missing" in text
    assert statuses(out) == {"scan_0": "done", "scan_1": "done", "scan_2": "skipped"}
    assert [entry["name"] for entry in report_in(out)["others"]] == ["../secret"]
    assert digest(secret) == before


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
        assert {path.name for path in out.iterdir()} == {
            "ledger.jsonl",
            "report.json",
            *(f"{name}.nii.gz" for name in found),
        }
    assert len({digest(out / f"{name}.nii.gz") for name in found}) == 1
    few = [scans / f"{name}.nii.gz" for name in sorted(found)[:2]]
    text = done(*few, scans / "scan_99.nii.gz", "-b", bundle, "-o", out, "--resume")
    assert f"{len(few)} skipped" in text
    assert len(report_in(out)["others"]) == 150 - len(report_in(out)["scans"])
