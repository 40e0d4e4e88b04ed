"""`OUT/ledger.jsonl`, which `--resume` goes by: what damage, kills, full disks and other runs do to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from masksam_deploy.base.errors import OutputError
from masksam_deploy.batch import ledger
from masksam_deploy.batch import pipeline as batch
from masksam_deploy.batch.ledger_file import LedgerFile
from masksam_deploy.batch.report import BatchReport, Entry
from masksam_deploy.cli.open_segmenter import open_segmenter
from masksam_deploy.io import read_volume
from masksam_deploy.outputs.one_scan import described_scan
from tests.cli.infer.calls import digest, done, invoke, refused, report_in, statuses
from tests.cli.infer.test_resume import interrupted


def lines_in(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()[1:]]


def _line_edited(number: int, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        content = json.loads(lines[number])
        edit(content)
        lines[number] = json.dumps(content)
        path.write_text("\n".join(lines) + "\n")

    return change


def _a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_a_finished_run_leaves_a_line_for_each_scan_and_the_same_in_the_report(out: Path, finished: Path) -> None:
    last = {line["name"]: line for line in lines_in(out)}
    report = BatchReport.model_validate_json((out / "report.json").read_bytes(), strict=True)
    assert list(last) == [entry.name for entry in report.scans]
    for entry in report.scans:
        assert last[entry.name] == json.loads(entry.model_dump_json(exclude_defaults=True))
    # The layout is that of the library, so that nothing distinguishes a report in pieces from one in memory.
    assert (out / "report.json").read_text(encoding="utf-8") == report.model_dump_json(indent=2) + "\n"


def test_skipping_scans_writes_no_lines(scans: Path, bundle: Path, out: Path, finished: Path) -> None:
    before = digest(out / "ledger.jsonl")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}
    assert digest(out / "ledger.jsonl") == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"\xff\xfe{}\n"),
        lambda path: path.write_bytes(b"{"),
        lambda path: path.write_text("[" * 100_000 + "\n"),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"name"', b'"nam', 1)),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n", 2)),
        lambda path: path.write_bytes(path.read_bytes() + bytes(100) + b"\n"),
        lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        lambda path: (path.unlink(), path.mkdir()),
        _a_pipe,
        _line_edited(0, lambda content: content.update(schema_version=2)),
        _line_edited(0, lambda content: content.update(ledger="of something else")),
        _line_edited(5, lambda content: content.update(extra=1)),
        _line_edited(5, lambda content: content["outputs"]["labels"].update(sha256="not a hash")),
        _line_edited(5, lambda content: content.update(status="perfect")),
    ],
)
def test_a_ledger_that_is_none_is_refused_in_one_line(
    scans: Path, bundle: Path, out: Path, finished: Path, damage: Callable[[Path], object]
) -> None:
    damage(out / "ledger.jsonl")
    message = refused(scans, "-b", bundle, "-o", out, "--resume")
    assert "ledger.jsonl: " in message
    assert "--force" in message
    assert "\n" not in message
    assert len(message) < 1000
    if not (out / "ledger.jsonl").is_dir() and (out / "ledger.jsonl").is_file():
        target = out / "real"
        before = digest(target) if target.exists() else None
        done(scans, "-b", bundle, "-o", out, "--force")
        assert not (out / "ledger.jsonl").is_symlink()
        assert before is None or digest(target) == before
        done(scans, "-b", bundle, "-o", out, "--resume")
        assert set(statuses(out).values()) == {"skipped"}


@pytest.mark.parametrize("cut", [1, 20, 500])
def test_half_a_last_line_counts_as_not_written(scans: Path, bundle: Path, out: Path, finished: Path, cut: int) -> None:
    path = out / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    (out / "report.json").unlink()
    text = done(scans, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_0": "skipped", "scan_1": "skipped", "scan_2": "done"}
    assert "kept as scan_2.kept-1.nii.gz" in text  # nobody wrote down that it is ours
    assert [line["name"] for line in lines_in(out)][-1] == "scan_2"
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


def test_an_empty_ledger_is_one_of_a_run_that_was_killed_at_once(scans: Path, bundle: Path, out: Path) -> None:
    out.mkdir()
    (out / "ledger.jsonl").touch()
    assert "--resume" in refused(scans, "-b", bundle, "-o", out)
    done(scans, "-b", bundle, "-o", out, "--resume")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


def test_the_report_of_version_0_1_is_gone_by_once(scans: Path, bundle: Path, out: Path, finished: Path) -> None:
    (out / "ledger.jsonl").unlink()
    first = scans / "scan_1.nii.gz"
    done(first, "-b", bundle, "-o", out, "--resume")
    assert statuses(out) == {"scan_1": "skipped"}
    (out / "report.json").write_text("of no use any more")
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


def test_a_ledger_alone_is_an_earlier_run(scans: Path, bundle: Path, out: Path, finished: Path) -> None:
    (out / "report.json").unlink()
    assert "ledger.jsonl: found the report of an earlier run" in refused(scans, "-b", bundle, "-o", out)


@pytest.mark.parametrize("option", ["", "--resume", "--force"])
def test_a_run_that_began_while_this_one_opened_the_network_keeps_the_folder(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    begun: list[LedgerFile] = []

    def opened_late(*given: Any) -> Any:
        begun.append(LedgerFile.create(out / "ledger.jsonl"))
        return open_segmenter(*given)

    monkeypatch.setattr("masksam_deploy.cli.infer_folder.open_segmenter", opened_late)
    message = refused(scans, "-b", bundle, "-o", out, *filter(None, [option]))
    assert "found another run at work" in message
    begun[0].append([Entry(name="of the other")])
    begun[0].close()
    assert [line["name"] for line in lines_in(out)] == ["of the other"]
    assert [path.name for path in out.iterdir()] == ["ledger.jsonl"]


def test_a_second_run_into_the_folder_is_refused_whatever_it_is_told(
    scans: Path, bundle: Path, out: Path, finished: Path
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="locks exist on Unix only")
    before = digest(out / "ledger.jsonl")
    with (out / "ledger.jsonl").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for option in ("--resume", "--force"):
            assert "found another run at work" in refused(scans, "-b", bundle, "-o", out, option)
    assert digest(out / "ledger.jsonl") == before
    done(scans, "-b", bundle, "-o", out, "--resume")


def test_lines_that_no_longer_count_are_removed_by_a_later_run(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masksam_deploy.batch.ledger_file.COMPACT_ABOVE", 1000)
    for _ in range(2):
        done(scans, "-b", bundle, "-o", out, "--force")
    done(scans / "scan_2.nii.gz", "-b", bundle, "-o", out, "--resume")
    assert [line["name"] for line in lines_in(out)] == ["scan_0", "scan_1", "scan_2"]
    done(scans, "-b", bundle, "-o", out, "--resume")
    assert set(statuses(out).values()) == {"skipped"}


def test_a_long_run_writes_the_report_now_and_then_and_an_interruption_at_once(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "WORK_PER_REPORT", 1e9)
    seen: list[set[str]] = []

    def stopping(paths: Any, **limits: Any) -> Any:
        seen.append(set(statuses(out).values()))
        return interrupted(paths) if paths[0].name == "scan_2.nii.gz" else read_volume(paths, **limits)

    monkeypatch.setattr(batch, "read_volume", stopping)
    assert invoke(scans, "-b", bundle, "-o", out).exit_code == 130
    assert seen[0] == {"pending"}
    assert statuses(out) == {"scan_0": "done", "scan_1": "done", "scan_2": "pending"}
    assert report_in(out)["finished"] is False


def test_an_error_with_endless_words_is_written_down_in_bounds(
    scans: Path, bundle: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(paths: Any, **limits: Any) -> Any:
        raise IndexError("x" * 10_000_000)

    monkeypatch.setattr(batch, "read_volume", broken)
    invoke(scans, "-b", bundle, "-o", out)
    assert set(statuses(out).values()) == {"failed"}
    assert (out / "ledger.jsonl").stat().st_size < 1_000_000
    monkeypatch.undo()
    done(scans, "-b", bundle, "-o", out, "--resume")


_DIE_WHILE_WRITING = """
import os, signal, sys
from masksam_deploy.outputs import one_scan as results
results.draw_overlay = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
from masksam_deploy.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("many", [False, True])
def test_what_a_killed_run_left_is_gone_after_the_next_one(
    scans: Path, bundle: Path, out: Path, tmp_path: Path, many: bool
) -> None:
    pytest.importorskip("fcntl", reason="locks exist on Unix only")
    out.mkdir()
    arguments = [scans, "-o", out, "--overlays", "--resume"]
    if not many:
        arguments = [scans / "scan_0.nii.gz", "-o", out / "labels.nii.gz", "--overlay", out / "picture.png"]
    words = ["infer", *map(str, arguments), "-b", str(bundle), "--step", "1"]
    command = [sys.executable, "-c", _DIE_WHILE_WRITING, *words]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    left = list(out.glob(".masksam-*"))
    assert sorted("".join(path.suffixes[-2:]) for path in left) == [".nii.gz", ".png"]
    for path in left:
        os.utime(path, (time.time() - 120,) * 2)
    done(*arguments, "-b", bundle)
    assert not list(out.glob(".*"))
    assert not many or set(statuses(out).values()) == {"done"}


def _tmpfs(folder: Path, taken: int, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command where `folder` is a disk of 1 MiB, some bytes of which are taken."""
    mount = f'mount -t tmpfs -o size=1m none "$0" && (head -c {taken} /dev/zero > "$0/full" || true) && exec "$@"'
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(folder), *command]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux)")
@pytest.mark.parametrize(
    ("suffix", "taken"), [(".nii", 1_000_000), (".nii.gz", 2_000_000), (".nrrd", 1_000_000), (".mha", 2_000_000)]
)
def test_a_really_full_disk_names_what_was_asked_for(
    bundle: Path, out: Path, tmp_path: Path, suffix: str, taken: int
) -> None:
    out.mkdir()
    if _tmpfs(out, 0, ["true"]).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    noise = np.random.default_rng(0).normal(size=(9, 150, 150)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise), str(tmp_path / "scan.nii.gz"))
    command = [sys.executable, "-m", "masksam_deploy", "infer", str(tmp_path / "scan.nii.gz"), "-b", str(bundle)]
    found = _tmpfs(out, taken, [*command, "-o", str(out / f"labels{suffix}"), "--step", "1"])
    assert found.returncode == 2, found.stderr
    assert f"{out / 'labels'}{suffix}: cannot be written: the disk is full" in found.stderr
    assert ".masksam-" not in found.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux)")
def test_a_really_full_disk_stops_a_run_of_many_scans_and_names_what_was_asked_for(
    scans: Path, bundle: Path, out: Path
) -> None:
    out.mkdir()
    if _tmpfs(out, 0, ["true"]).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    command = [sys.executable, "-m", "masksam_deploy", "infer", str(scans), "-b", str(bundle), "--suffix", ".nii"]
    # Room for the files that are made first, and for one label map of 13 KB.
    found = _tmpfs(out, 2**20 - 10 * 4096, [*command, "-o", str(out), "--step", "1"])
    assert found.returncode == 2, found.stderr
    assert "go on with --resume" in found.stderr
    error = found.stderr.splitlines()[-1]
    assert error.startswith(f"error: {out}/")
    assert ": cannot be written: the disk is full" in error
    assert ".masksam-" not in found.stderr + found.stdout


def test_the_ledger_is_not_left_open_by_a_run_that_is_refused(
    scans: Path, bundle: Path, out: Path, finished: Path
) -> None:
    (out / "other.nii.gz").write_bytes(b"drawn by hand")
    (scans / "scan_0.nii.gz").rename(scans / "other.nii.gz")
    assert "no run of infer wrote here" in refused(scans, "-b", bundle, "-o", out, "--resume")
    (out / "other.nii.gz").unlink()
    done(scans, "-b", bundle, "-o", out, "--resume")


def test_a_ledger_that_is_changed_during_a_run_is_an_error_and_no_bug(
    scans: Path, bundle: Path, out: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def late(paths: Any) -> Any:
        with (out / "ledger.jsonl").open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(bytes(50))
        return described_scan(paths)

    monkeypatch.setattr(batch, "described_scan", late)
    result = invoke(scans, "-b", bundle, "-o", out, "--resume")
    assert isinstance(result.exception, OutputError), result.output
    assert "ledger.jsonl: the line of scan" in str(result.exception)
