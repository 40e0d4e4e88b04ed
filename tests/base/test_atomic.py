"""A file appears complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import OutputError


def test_the_temporary_file_lies_beside_the_target_and_has_its_suffixes(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "case.1.NII.GZ") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffixes[-2:] == [".nii", ".gz"]
        assert not (tmp_path / "case.1.NII.GZ").exists()
        temporary.write_text("whole")
    assert [p.name for p in tmp_path.iterdir()] == ["case.1.NII.GZ"]
    assert (tmp_path / "case.1.NII.GZ").read_text() == "whole"


def test_a_long_stem_with_dots_gives_a_short_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / ("1." * 100 + "json")
    with atomic_path(target) as temporary:
        assert len(temporary.name) < 60
        assert temporary.suffix == ".json"


def test_the_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.json"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, OutputError])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("step", ["body", "rename"])
def test_what_the_system_says_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, part: str, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "rename":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OutputError, match=part) as caught, atomic_path(tmp_path / "a.json"):
        if step == "body":
            fail()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_hold_a_file_are_refused_before_the_body_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target, part in (
        (tmp_path / "missing" / "a.json", "the folder does not exist"),
        (tmp_path / "file" / "a.json", "is a file, not a folder"),
        (tmp_path, "found a folder"),
        (Path(os.devnull), "found a device"),
    ):
        with pytest.raises(OutputError, match=part), atomic_path(target):
            raise AssertionError("the body ran")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_too_long_is_refused_and_cleaned_up(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"), atomic_path(tmp_path / ("a" * 300 + ".json")):
        pass
    assert list(tmp_path.iterdir()) == []
