"""What tests share is made once, whole, and anew when its sources change."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from tests import shared_files
from tests.shared_files import KEPT_S, PREFIX, SharedFiles


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "pytest-of-somebody" / "pytest-1" / "popen-gw0"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "fingerprint", lambda: "1")


def test_processes_that_want_the_same_at_once_make_it_once(temporary: Path, tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.2)
        path.mkdir()
        (path / "graph").write_text("x")

    def want(index: int) -> None:
        SharedFiles(temporary).copy("graphs", make, tmp_path / str(index) / "lv.masksam")

    threads = [threading.Thread(target=want, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in made] == ["lv.masksam"]
    assert [(tmp_path / str(index) / "lv.masksam" / "graph").read_text() for index in range(4)] == ["x"] * 4


def test_a_user_who_writes_into_his_copy_changes_no_other(temporary: Path, tmp_path: Path) -> None:
    shared = SharedFiles(temporary)
    first = shared.copy("a", Path.mkdir, tmp_path / "first" / "a")
    (first / "more").write_text("x")
    assert list(shared.copy("a", Path.mkdir, tmp_path / "second" / "a").iterdir()) == []


def test_what_could_not_be_made_whole_is_made_again(temporary: Path, tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x")
        raise KeyboardInterrupt

    shared = SharedFiles(temporary)
    with pytest.raises(KeyboardInterrupt):
        shared.copy("a", fail, tmp_path / "a")
    assert list(shared.copy("a", Path.mkdir, tmp_path / "a").iterdir()) == []


def test_changed_sources_get_files_of_their_own_and_old_ones_go(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SharedFiles(temporary).copy("a", Path.mkdir, tmp_path / "first" / "a")
    monkeypatch.setattr(shared_files, "fingerprint", lambda: "2")
    SharedFiles(temporary).copy("a", lambda path: (path / "new").mkdir(parents=True), tmp_path / "second" / "a")
    assert (tmp_path / "second" / "a" / "new").is_dir()
    old = temporary.parents[1] / f"{PREFIX}1"
    os.utime(old, (0, time.time() - KEPT_S - 60))
    SharedFiles(temporary)
    assert [path.name for path in old.parent.glob(f"{PREFIX}*")] == [f"{PREFIX}2"]


def test_the_fingerprint_is_that_of_the_packages_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the fixture's
    monkeypatch.setattr(shared_files, "ROOT", tmp_path)
    source = tmp_path / "export" / "masksam_export" / "config.py"
    source.parent.mkdir(parents=True)
    found = []
    for content in ("x = 1", "x = 2", "x = 1"):
        source.write_text(content)
        found.append(shared_files.fingerprint())
    assert found[0] == found[2] != found[1]
