"""`masksam-deploy train` as a person calls it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from click.testing import CliRunner

from masksam_export.cli_train import train
from tests.conftest import INTERRUPTIBLE
from tests.training.raw_dataset import description, write_dataset
from tests.training.test_run import disc


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", {f"case_{n}": disc(n) for n in range(3)}, description(("MRI",), 2))
    options = ["--patch", "2,32,32", "--epochs", "60", "--iterations", "1", "--fold", "all", "--threads", "1"]
    arguments = [*INTERRUPTIBLE, "train", str(dataset), "-o", str(tmp_path / "run"), *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        # Again ten epochs later, should Python have dropped the first.
        if line.startswith("epoch ") and int(line.split()[1]) % 10 == 2:
            process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, "".join(lines)
    assert "of 60 epochs are saved: go on with --resume" in "".join(lines)
    assert (tmp_path / "run" / "checkpoint_latest.pth").is_file()
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_resumed_run_takes_no_other_settings(tmp_path: Path) -> None:
    result = CliRunner().invoke(train, [str(tmp_path), "-o", str(tmp_path / "run"), "--resume", "--batch", "3"])
    assert result.exit_code == 2
    assert "leave out --batch" in result.output


def test_axes_and_sizes_that_make_no_sense_are_wrong_calls(tmp_path: Path) -> None:
    for options in (["--mirror-axes", "1,2,3"], ["--mirror-axes", "0,0"], ["--patch", "4,4"], ["--spacing", "1,-1,1"]):
        result = CliRunner().invoke(train, [str(tmp_path), "-o", str(tmp_path / "run"), *options])
        assert result.exit_code == 2, options
