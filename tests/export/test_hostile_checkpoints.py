"""Hostile checkpoints: refused in one line, in bounded time and memory, whatever they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from masksam_deploy.base.errors import CheckpointError
from masksam_export.families.masksam.checkpoint import load_checkpoint
from masksam_export.torch_files.torch_archive import read_contents
from tests.fuzz.bombs import BOMBS
from tests.fuzz.checkpoints import CHANGES, mutations
from tests.fuzz.torch_files import BASE, archive, name

MIB = 2**20
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def bombed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What became of every bomb, by its name; all in one process, which has little memory."""
    folder = tmp_path_factory.mktemp("bombs")
    for number, make in enumerate(BOMBS.values()):
        (folder / f"{number:03}.pth").write_bytes(make())
    command = [sys.executable, "-m", "tests.fuzz.load_all", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    return {name: found[f"{number:03}.pth"] for number, name in enumerate(BOMBS)}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_is_refused_in_one_short_line(bombed: Results, name: str) -> None:
    said = bombed[name]["said"]
    assert said.startswith("refused: "), said
    assert said.isprintable()
    assert len(said) < 2000
    assert said.encode()


def test_bombs_take_little_time_and_memory(bombed: Results) -> None:
    slow = {name: result["seconds"] for name, result in bombed.items() if result["seconds"] > 15}
    assert not slow
    # torch itself takes 300 MiB; a file of 32 MiB may take some hundreds while it is read.
    assert max(result["peak"] for result in bombed.values()) < 1536 * MIB


def test_changed_checkpoints_are_refused_or_unharmed(tmp_path: Path) -> None:
    """Damaged ones give the original's values if any; forged ones may be other checkpoints, but nothing worse."""
    original = load_checkpoint(BASE)
    weights = original.model.state_dict()
    outcomes: dict[str, set[bool]] = {kind: set() for kind in CHANGES}
    path = tmp_path / "changed.pth"
    for name_, data in islice(mutations(seed=2026), 160):
        path.write_bytes(data)
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            assert str(error).isprintable(), name_
            assert len(str(error)) < 2000, name_
            outcomes[name_.rsplit("-", 2)[0]].add(False)
            continue
        outcomes[name_.rsplit("-", 2)[0]].add(True)
        if name_.startswith("damaged-"):
            assert all(torch.equal(value, weights[key]) for key, value in found.model.state_dict().items()), name_
            assert (found.preprocessing, found.labels) == (original.preprocessing, original.labels), name_
    assert all(False in seen for seen in outcomes.values())  # every kind of change can be noticed


def test_mutations_repeat_by_their_seed_and_differ() -> None:
    first, again, other = (list(islice(mutations(seed), 40)) for seed in (3, 3, 4))
    assert first == again
    assert len({data for _, data in first + other}) > 70


def test_names_of_code_are_listed_but_not_without_end(tmp_path: Path) -> None:
    path = tmp_path / "code.pth"
    path.write_bytes(archive(b"(" + b"".join(name("evil", f"function_{index:03}") for index in range(100)) + b"t"))
    with pytest.raises(CheckpointError, match=r"evil\.function_000, .*evil\.function_007 and 92 more;"):
        load_checkpoint(path)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe, loop, folder = tmp_path / "pipe.pth", tmp_path / "loop.pth", tmp_path / "folder.pth"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    folder.mkdir()
    for path in (pipe, loop, folder, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(CheckpointError, match="is not a file"):
            load_checkpoint(path)


def test_a_file_with_a_hole_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "hole.pth"
    with path.open("wb") as file:
        file.write(b"PK\3\4")
        try:
            file.truncate(2**40)
        except OSError:
            pytest.skip("this disk has no files of a terabyte")
    with pytest.raises(CheckpointError, match="1,099,511,627,776 bytes"):
        load_checkpoint(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "changed.pth"
    path.write_bytes(BASE.read_bytes())

    def read_and_touch(file: Any) -> Any:
        found = read_contents(file)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr("masksam_export.torch_files.safe_load.read_contents", read_and_touch)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_checkpoint(path)
