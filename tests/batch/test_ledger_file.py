"""The ledger's file gives back what was written last, whatever happened in between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import DiskFullError, LedgerInUseError, OutputError
from masksam_deploy.batch import ledger_file
from masksam_deploy.batch.ledger_file import LedgerFile
from masksam_deploy.batch.report import Entry, Status

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
STATUSES: st.SearchStrategy[Status] = st.sampled_from(["pending", "done", "failed"])
ENTRIES = st.builds(
    lambda name, status, note: Entry(name=name, status=status, note=note), NAMES, STATUSES, st.none() | NAMES
)
STEPS: st.SearchStrategy[tuple[str, list[Entry]]] = st.one_of(
    st.tuples(st.just("append"), st.lists(ENTRIES, max_size=4)),
    st.tuples(st.sampled_from(["open again", "compact", "half a line"]), st.just([])),
)


@given(st.lists(STEPS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_it_holds_the_last_entry_of_every_name_in_the_order_of_the_first(steps: list[tuple[str, list[Entry]]]) -> None:
    expected: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_file, "COMPACT_ABOVE", 0)
        path = Path(folder) / "ledger.jsonl"
        ledger = LedgerFile.create(path)
        for step, entries in steps:
            if step == "append":
                ledger.append(entries)
                expected.update({entry.name: entry for entry in entries})
            elif step == "compact":
                ledger.compact()
            else:
                ledger.close()
                if step == "half a line":
                    with path.open("ab") as file:
                        file.write(b'{"name": "of a kil')
                ledger = LedgerFile.open(path)
            assert {name: ledger.entry(name) for name in ledger} == expected
            assert list(ledger) == list(expected)
            assert all(ledger.status(name) == entry.status for name, entry in expected.items())
        ledger.close()


def test_compacting_leaves_one_line_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "COMPACT_ABOVE", 0)
    ledger = LedgerFile.create(tmp_path / "ledger.jsonl")
    for number in range(10):
        ledger.append([Entry(name="a", note=str(number)), Entry(name="b")])
    ledger.compact()
    assert len((tmp_path / "ledger.jsonl").read_bytes().splitlines()) == 3
    assert ledger.entry("a").note == "9"
    with pytest.raises(LedgerInUseError):
        LedgerFile.open(tmp_path / "ledger.jsonl")
    ledger.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_cannot_be_written_leaves_the_file_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ledger = LedgerFile.create(tmp_path / "ledger.jsonl")
    ledger.append([Entry(name="first")])
    before = (tmp_path / "ledger.jsonl").read_bytes()
    write = LedgerFile._write

    def half(self: LedgerFile, offset: int, data: bytes) -> int:
        write(self, offset, data[:10])
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, "_write", half)
        with pytest.raises(DiskFullError if number == errno.ENOSPC else OutputError) as caught:
            ledger.append([Entry(name="second")])
    assert str(caught.value).startswith(f"{tmp_path / 'ledger.jsonl'}: cannot be")
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    ledger.append([Entry(name="third")])
    ledger.close()
    with closing(LedgerFile.open(tmp_path / "ledger.jsonl")) as again:
        assert list(again) == ["first", "third"]


def test_a_disk_that_refuses_late_leaves_the_file_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = LedgerFile.create(tmp_path / "ledger.jsonl")
    ledger.append([Entry(name="first")])
    ledger.sync()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr(ledger, "_next_sync", 0.0)
        with pytest.raises(DiskFullError):
            ledger.append([Entry(name="second")])
    with pytest.raises(OutputError):
        ledger.entry("second")
    ledger.close()
    again = LedgerFile.open(tmp_path / "ledger.jsonl")
    assert list(again) == ["first"]
    again.close()


def test_a_file_that_may_grow_no_more_holds_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits exist on Unix only")
    script = """
        import pathlib, sys
        from masksam_deploy.batch.report import Entry
        from masksam_deploy.base.errors import OutputError
        from masksam_deploy.batch.ledger_file import LedgerFile
        ledger = LedgerFile.create(pathlib.Path(sys.argv[1]))
        try:
            for number in range(1000):
                ledger.append([Entry(name=f"scan_{number}", note="x" * 100)])
        except OutputError:
            print(number)
    """
    path = tmp_path / "ledger.jsonl"
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert int(found.stdout) > 10
    assert path.read_bytes().endswith(b"\n")
    ledger = LedgerFile.open(path)
    assert list(ledger) == [f"scan_{number}" for number in range(int(found.stdout))]
    ledger.close()


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LedgerFile.create(tmp_path / "ledger.jsonl").close()
    with (tmp_path / "ledger.jsonl").open("ab") as file:
        file.write(b"x" * 5000)
    monkeypatch.setattr(ledger_file, "LINE_LIMIT", 1000)
    with pytest.raises(OutputError, match="line 2: found more than 1000 bytes"):
        LedgerFile.open(tmp_path / "ledger.jsonl")
    ledger = LedgerFile.replace(tmp_path / "ledger.jsonl")
    with pytest.raises(OutputError, match=r"found 1[0-9]{3} bytes to write, expected at most 1000"):
        ledger.append([Entry(name="a", note="x" * 1000)])
    ledger.close()


def test_where_locks_do_not_work_the_ledger_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_file, "lock", lambda descriptor: None)
    first = LedgerFile.create(tmp_path / "ledger.jsonl")
    first.append([Entry(name="a")])
    second = LedgerFile.open(tmp_path / "ledger.jsonl")
    assert list(second) == ["a"]
    first.close()
    second.close()


def test_two_that_begin_at_once_cannot_both_have_the_folder(tmp_path: Path) -> None:
    ledger = LedgerFile.create(tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerInUseError):
        LedgerFile.create(tmp_path / "ledger.jsonl")
    ledger.close()


def test_an_empty_list_and_odd_names_are_written(tmp_path: Path) -> None:
    ledger = LedgerFile.create(tmp_path / "ledger.jsonl")
    ledger.append([])
    odd = ["", "\n", "a\u2028b", '"', "\x00", "é"]
    ledger.append([Entry(name=name) for name in odd])
    ledger.close()
    ledger = LedgerFile.open(tmp_path / "ledger.jsonl")
    assert list(ledger) == odd
    assert len(ledger) == len(odd)
    ledger.close()
