"""Paths that lead nowhere, that no system takes, or that are no files: every command says so in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy.bundle.archive import pack
from tests.engines.small_bundle import make_bundle, write_ball_scans

# Runs one command after the other, and prints the exit code of each and what it said on stderr and stdout.
MAIN = """
import contextlib, io, json, sys
from masksam_deploy.cli import main
for line in sys.stdin:
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            main(json.loads(line))
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, errors.getvalue(), output.getvalue()]), flush=True)
"""
LONG = "a" * 5_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good things, and: `loop`, a link to itself; `pipe`, a named pipe; `zero`, a link to a device."""
    folder = tmp_path_factory.mktemp("paths")
    make_bundle(folder / "good.masksam")
    pack(folder / "good.masksam", folder / "good.masksam.zip")
    write_ball_scans(folder / "scans", range(1))
    (folder / "scan.nii.gz").write_bytes((folder / "scans" / "scan_0.nii.gz").read_bytes())
    for suffix in ("", ".nii.gz", ".png", ".json", ".csv", ".zip", ".html"):
        (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.nii.gz")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "zero.nii.gz").symlink_to("/dev/zero")
    return folder


# `BAD` is replaced with every bad path; a suffix that an option asks for follows it.
COMMANDS = [
    "inspect BAD",
    "pack BAD",
    "pack good.masksam -o BAD",
    "pack good.masksam -o BAD/x.zip",
    "unpack BAD",
    "unpack BAD -o new.masksam",
    "unpack good.masksam.zip -o BAD",
    "infer BAD -b good.masksam -o seg.nii.gz",
    "infer BAD.nii.gz -b good.masksam -o seg.nii.gz",
    "infer scan.nii.gz -b BAD -o seg.nii.gz",
    "infer scan.nii.gz -b good.masksam -o BAD.nii.gz",
    "infer scan.nii.gz -b good.masksam -o seg.nii.gz --overlay BAD.png",
    "infer scan.nii.gz -b good.masksam -o seg.nii.gz --report BAD.json",
    "infer scan.nii.gz -b good.masksam -o BAD/seg.nii.gz",
    "compare BAD good.masksam scan.nii.gz",
    "compare good.masksam good.masksam BAD",
    "compare good.masksam good.masksam scan.nii.gz --csv BAD.csv",
    "evaluate BAD.nii.gz scan.nii.gz",
    "evaluate scan.nii.gz BAD.nii.gz",
    "evaluate scans BAD",
    "evaluate scans scans --report BAD.json",
    "sensitivity BAD --calibration scans",
    "sensitivity good.masksam --calibration scans -o BAD.json",
    "bench BAD",
    "bench good.masksam --json BAD.json",
    "doctor BAD",
]
BAD = {"loop": "loop", "inside a loop": "loop/x", "pipe": "pipe", "device": "zero", "too long": LONG}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_path_is_refused_in_one_line(folder: Path, command: str) -> None:
    # A pipe or a device under an output's own name is not there: the suffix makes it a new name.
    bad = [path for kind, path in BAD.items() if "BAD." not in command or kind not in ("pipe", "device")]
    calls = "".join(f"{json.dumps(command.replace('BAD', path).split())}\n" for path in bad)
    result = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=folder, input=calls, capture_output=True, text=True, timeout=60, check=True
    )
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == len(bad)
    for path, (code, errors, _) in zip(bad, answers, strict=True):
        assert code == 2, (path, code, errors)
        assert errors.count("\n") == 1 and errors.startswith("error: "), errors
        assert len(errors) <= 2_010


WRITING = [
    "pack good.masksam -o NAME.zip",
    "unpack good.masksam.zip -o NAME.masksam",
    "inspect NAME.masksam",
    "infer scan.nii.gz -b NAME.masksam -o NAME.nii.gz --overlay NAME.png --report NAME.json",
    "infer scans -b good.masksam -o NAME",
    "evaluate NAME.nii.gz NAME/scan_0.nii.gz --csv NAME.csv --report NAME.report.json",
    "compare good.masksam good.masksam scan.nii.gz --csv NAME.compared.csv",
    "doctor NAME.masksam",
]


def test_names_that_steer_a_terminal_are_written_out(folder: Path) -> None:
    name = "a\x1b[31m\x07\u202eb"
    calls = "".join(f"{json.dumps(command.replace('NAME', name).split())}\n" for command in WRITING)
    result = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=folder, input=calls, capture_output=True, text=True, timeout=60, check=True
    )
    for command, line in zip(WRITING, result.stdout.splitlines(), strict=True):
        code, errors, output = json.loads(line)
        assert code == 0, (command, errors)
        assert all(char.isprintable() or char == "\n" for char in output + errors), (command, output)
    assert (folder / f"{name}.nii.gz").is_file()


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"], ids=["zero byte", "half a character"])
def test_names_that_no_system_takes_are_refused_before_any_work(folder: Path, bad: str) -> None:
    calls = "".join(f"{json.dumps(command.replace('BAD', bad).split(' '))}\n" for command in COMMANDS)
    result = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=folder, input=calls, capture_output=True, text=True, timeout=60, check=True
    )
    for command, line in zip(COMMANDS, result.stdout.splitlines(), strict=True):
        code, errors, _ = json.loads(line)
        assert code == 2, (command, errors)
        assert errors.count("\n") == 1 and errors.startswith("error: "), (command, errors)
