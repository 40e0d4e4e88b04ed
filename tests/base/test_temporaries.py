"""What a killed process left is removed by the next one, and nothing else is."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksam_deploy.base import temporaries
from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import BundleError, OutputError, ScanError
from masksam_deploy.base.temporaries import Temporary, clean, settle, speaking_of
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.archive import pack, unpack
from masksam_deploy.bundle.directory import Bundle, move_into_place, staging_directory
from masksam_deploy.io import write_labels
from tests.example_bundle import make_bundle

fcntl = pytest.importorskip("fcntl", reason="locks that end with their process exist on Unix only")


def die(body: str, *arguments: object) -> None:
    """Run some code that kills its own process."""
    script = "import os, pathlib, signal, sys\ndef die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
    command = [sys.executable, "-c", script + textwrap.dedent(body), *map(str, arguments)]
    died = subprocess.run(command, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr


def age(folder: Path) -> list[str]:
    """Let two minutes pass for all hidden files and folders, as for a process that starts then; gives their names."""
    temporaries._cleaned.clear()
    hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
    for path in sorted(hidden, key=lambda path: path.lstat().st_ctime_ns):  # which this sets anew
        os.utime(path, (time.time() - 120,) * 2, follow_symlinks=False)
        time.sleep(0.01)
    return sorted(path.name for path in hidden)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


_WRITE_AND_DIE = """
    from masksam_deploy.base.atomic import atomic_path
    with atomic_path(sys.argv[1]) as temporary:
        temporary.write_text("half")
        die()
"""


def test_a_killed_writers_file_is_removed_by_the_next_writer_in_the_folder(tmp_path: Path) -> None:
    die(_WRITE_AND_DIE, tmp_path / "labels.nii.gz")
    assert len(age(tmp_path)) == 1
    with atomic_path(tmp_path / "another.json"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["another.json"]


def test_what_a_process_of_ours_left_need_not_grow_old(tmp_path: Path) -> None:
    die(_WRITE_AND_DIE, tmp_path / "labels.nii.gz")
    temporaries._cleaned.clear()
    clean(tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("changed", [{"space": "00c0ffee"}, {"space": "0" * 8}])
def test_what_a_process_of_another_container_left_must_be_a_minute_old(tmp_path: Path, changed: dict[str, str]) -> None:
    path = tmp_path / f".masksam-{_dead_name(**changed)}.json"
    path.touch()
    temporaries._cleaned.clear()
    clean(tmp_path)
    assert path.exists()
    age(tmp_path)
    clean(tmp_path)
    assert not path.exists()


def test_a_killed_pack_is_cleaned_up_by_the_next_one(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "heart.masksam")
    die(
        "from masksam_deploy.bundle import archive; archive._add_file = die; archive.pack(*sys.argv[1:])",
        bundle.path,
        tmp_path / "heart.zip",
    )
    assert [name.endswith(".zip") for name in age(tmp_path)] == [True]
    pack(bundle.path, tmp_path / "heart.zip")
    assert left(tmp_path) == []


def test_a_killed_unpack_is_cleaned_up_by_the_next_one(tmp_path: Path) -> None:
    packed = pack(make_bundle(tmp_path / "heart.masksam").path, tmp_path / "heart.zip")
    die(
        "from masksam_deploy.bundle import archive; archive._extract = die; archive.unpack(*sys.argv[1:])",
        packed,
        tmp_path / "new.masksam",
    )
    assert [name.startswith(".new.masksam.staging-") for name in age(tmp_path)] == [True]
    unpack(packed, tmp_path / "new.masksam")
    assert left(tmp_path) == []


_REPLACE_AND_DIE = """
    from masksam_deploy.bundle import archive
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda self, target: die() if ".staging-" in self.name else rename(self, target)
    archive.unpack(*sys.argv[1:], force=True)
"""


@pytest.fixture
def set_aside(tmp_path: Path) -> tuple[Path, Bundle]:
    """A packed bundle, and an old one that made way for it when the process was killed."""
    packed = pack(make_bundle(tmp_path / "heart.masksam").path, tmp_path / "heart.zip")
    old = make_bundle(tmp_path / "old.masksam", {"old.bin": b"old"})
    die(_REPLACE_AND_DIE, packed, old.path)
    assert not old.path.exists()
    assert [re.sub("-.*", "", name) for name in age(tmp_path)] == [".old.masksam.replaced", ".old.masksam.staging"]
    return packed, old


def test_a_bundle_that_made_way_for_a_killed_run_goes_once_the_new_one_is_there(
    set_aside: tuple[Path, Bundle],
) -> None:
    packed, old = set_aside
    with pytest.raises(OutputError, match="--force"):  # it counts as there: nothing is replaced unasked
        unpack(packed, old.path)
    assert Bundle.load(old.path) == old
    assert (
        unpack(packed, old.path, force=True).manifest.files.keys()
        == Bundle.load(packed.with_suffix(".masksam")).manifest.files.keys()
    )
    assert left(old.path.parent) == []


def test_a_bundle_that_made_way_for_a_killed_run_comes_back_if_the_next_one_fails(
    set_aside: tuple[Path, Bundle],
) -> None:
    _, old = set_aside
    with pytest.raises(RuntimeError), staging_directory(old.path):
        raise RuntimeError
    assert Bundle.load(old.path) == old
    assert left(old.path.parent) == []


def test_a_bundle_that_made_way_is_not_touched_by_work_on_another(set_aside: tuple[Path, Bundle]) -> None:
    packed, old = set_aside
    unpack(packed, old.path.with_name("other.masksam"))
    assert [re.sub("-.*", "", name) for name in left(old.path.parent)] == [".old.masksam.replaced"]


def test_of_several_that_made_way_the_last_one_comes_back(tmp_path: Path) -> None:
    for content in ("first", "second"):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / content).touch()
        die(
            """
            from masksam_deploy.base.temporaries import Temporary
            target = pathlib.Path(sys.argv[1])
            Temporary(target.parent, f".{target.name}.replaced-").take_over(target)
            die()
            """,
            tmp_path / "data",
        )
    assert len(age(tmp_path)) == 2
    settle(tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["second"]
    assert left(tmp_path) == []


def test_a_data_set_that_made_way_into_a_staging_folder_comes_back(tmp_path: Path) -> None:
    target = tmp_path / "sample"
    target.mkdir()
    (target / "dataset.json").write_text("the only one")
    die(
        """
        from masksam_deploy.bundle.directory import staging_directory
        target = pathlib.Path(sys.argv[1])
        with staging_directory(target) as aside:
            target.rename(aside / "replaced")
            die()
        """,
        target,
    )
    age(tmp_path)
    clean(tmp_path)  # for another file in the folder
    assert len(left(tmp_path)) == 1
    with staging_directory(target):
        pass
    assert (target / "dataset.json").read_text() == "the only one"
    assert left(tmp_path) == []


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[Path]:
    """A file that another process is still writing, for two minutes now."""
    body = _WRITE_AND_DIE.replace("die()", "print(temporary.name, flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", "import sys\n" + textwrap.dedent(body), str(tmp_path / "labels.nii")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert age(tmp_path) == [name]
        yield tmp_path / name
        process.communicate("")
    assert process.returncode == 0
    assert (tmp_path / "labels.nii").read_text() == "half"


@pytest.mark.parametrize("sign", ["lock and number", "lock alone", "number alone"])
def test_a_living_owners_file_stays(alive: Path, monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    if sign == "lock alone":  # its number means another process in a container
        monkeypatch.setattr(temporaries, "_is_running", lambda pid: False)
    elif sign == "number alone":  # a library renamed another file to the name
        monkeypatch.setattr(temporaries, "lock", lambda descriptor: True)
    clean(alive.parent)
    assert alive.exists()


def test_this_processes_own_files_and_folders_stay(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.json"), staging_directory(tmp_path / "b") as staging:
        assert len(age(tmp_path)) == 2
        clean(tmp_path)
        assert staging.is_dir()
    assert (tmp_path / "a.json").is_file()


def test_an_old_bundle_that_makes_way_right_now_stays_although_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_bundle(tmp_path / "old.masksam").path
    os.utime(target, (1, 1))
    rename = Path.rename
    seen: list[bool] = []

    def watched(self: Path, to: Path) -> Path:
        if ".staging-" in self.name:
            age(tmp_path)
            settle(target)
            seen.append(any(".replaced-" in name for name in left(tmp_path)))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", watched)
    with staging_directory(target) as staging:
        move_into_place(staging, target, force=True)
    assert seen == [True]
    assert left(tmp_path) == []


def _dead_name(**changed: str) -> str:
    own = {"host": temporaries._host(), "boot": temporaries._boot(), "space": temporaries._space()}
    return "{host}-{boot}-{space}-{pid}-{token}".format(**(own | {"pid": "4194399", "token": "00c0ffee"} | changed))


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize(
    "name",
    [
        ".masksam-{0}.json.",
        ".masksam-{0}.a.b.c",
        ".masksam-{0}x",
        "masksam-{0}.json",
        ".masksam-unlocked-0123456789abcdef.json",
        ".masksam-0123456789abcdef.json",
        ".0123456789abcdef.json",
        ".mine.staging",
        ".mine.staging-",
        ".mine.staging-0123456789ab",
        ".mine.staging-unlocked-0123456789abcdef",
        ".staging-{0}",
        ".building-of-mine",
    ],
)
def test_what_only_looks_similar_stays(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name.format(_dead_name())
    path.write_text("mine") if kind == "file" else path.mkdir()
    age(tmp_path)
    clean(tmp_path)
    settle(tmp_path / "mine")
    assert path.exists()


@pytest.mark.parametrize(
    ("changed", "removed"),
    [
        ({}, True),
        ({"boot": "00c0ffee"}, True),  # the machine was started again since
        ({"host": "00c0ffee"}, True),  # another container on the same kernel
        ({"host": "00c0ffee", "boot": "00c0ffee"}, False),  # another machine that shares the folder
        ({"host": "0" * 8, "boot": "0" * 8}, False),
        ({"pid": "1"}, False),
    ],
)
def test_only_what_was_written_on_this_machine_can_be_known_to_be_dead(
    tmp_path: Path, changed: dict[str, str], removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporaries, "_host", lambda: "aaaaaaaa")
    monkeypatch.setattr(temporaries, "_boot", lambda: "bbbbbbbb")
    path = tmp_path / f".masksam-{_dead_name(**changed)}.json"
    path.touch()
    age(tmp_path)
    clean(tmp_path)
    assert path.exists() is not removed


def test_links_and_things_of_the_wrong_kind_stay_and_are_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("thesis")
    names = [f".masksam-{_dead_name(token=f'0000000{number}')}.json" for number in range(4)]
    (tmp_path / names[0]).symlink_to(mine / "thesis.txt")
    (tmp_path / names[1]).symlink_to(mine)
    (tmp_path / names[2]).mkdir()
    os.mkfifo(tmp_path / names[3])
    (tmp_path / f".x.staging-{_dead_name()}").symlink_to(mine)
    (tmp_path / f".y.staging-{_dead_name()}").write_text("a file")
    (tmp_path / f".z.replaced-{_dead_name()}").symlink_to(mine)
    found = age(tmp_path)
    clean(tmp_path)
    settle(tmp_path / "z")
    assert left(tmp_path) == found
    inside = tmp_path / f".w.staging-{_dead_name()}"
    inside.mkdir()
    (inside / "link").symlink_to(mine)
    age(tmp_path)
    clean(tmp_path)
    assert not inside.exists()
    assert (mine / "thesis.txt").read_text() == "thesis"


def test_a_folder_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    scandir = os.scandir

    def counted(folder: Any) -> Any:
        looked.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    for number in range(5):
        with atomic_path(tmp_path / f"{number}.json"):
            pass
    assert len(looked) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_locks_do_not_work_the_name_says_so_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        with atomic_path(tmp_path / "a.nii.gz") as temporary, staging_directory(tmp_path / "b") as staging:
            names = age(tmp_path)
            assert all("unlocked-" in name for name in names)
            assert {temporary.name, staging.name} == set(names)
            assert temporary.name.endswith(".nii.gz")
            patched.undo()
            clean(tmp_path)
            assert left(tmp_path) == names
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def test_without_the_module_for_locks_all_works_and_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = tmp_path / f".masksam-{_dead_name()}.json"
    dead.touch()
    age(tmp_path)
    monkeypatch.setattr(temporaries, "fcntl", None)
    bundle = make_bundle(tmp_path / "old.masksam")
    with atomic_path(tmp_path / "a.json"), staging_directory(bundle.path) as staging:
        move_into_place(staging, bundle.path, force=True)
    assert (tmp_path / "a.json").exists()
    assert left(tmp_path) == [dead.name]


def test_where_a_locked_file_cannot_be_written_by_others_it_is_not_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SMB shares locks are mandatory: ITK, which opens the path itself, would be refused."""
    original = Path.open

    def mandatory(self: Path, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode == "r+b" and "unlocked" not in self.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, mode, *arguments, **more)

    monkeypatch.setattr(temporaries, "_shares", {})
    monkeypatch.setattr(Path, "open", mandatory)
    with atomic_path(tmp_path / "a.json") as temporary:
        assert "unlocked" in temporary.name
        temporary.write_text("whole")
    assert (tmp_path / "a.json").read_text() == "whole"


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    temporary = Temporary(tmp_path, ".masksam-")
    temporary.create_file()
    assert temporary._descriptor is not None
    assert not os.get_inheritable(temporary._descriptor)
    temporary.remove()
    assert left(tmp_path) == []


def _labels() -> Volume:
    array = np.zeros((3, 4, 5), np.uint8)
    return Volume(array, Geometry((5, 4, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_itk_writes_to_the_file_that_is_locked(tmp_path: Path, suffix: str) -> None:
    with atomic_path(tmp_path / f"seg{suffix}") as temporary:
        before = temporary.stat().st_ino
        write_labels(_labels(), temporary)
        assert temporary.stat().st_ino == before
        assert temporary.stat().st_size > 0


def test_pictures_and_archives_are_written_to_the_file_that_is_locked(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    writers: dict[str, Callable[[Path], object]] = {
        "a.png": lambda path: image.new("RGB", (8, 8)).save(path, format="PNG"),
        "a.zip": lambda path: zipfile.ZipFile(path, "w").close(),
    }
    for name, write in writers.items():
        with atomic_path(tmp_path / name) as temporary:
            before = temporary.stat().st_ino
            write(temporary)
            assert temporary.stat().st_ino == before


def test_an_inner_write_to_a_temporary_names_what_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "seg.json"
    with pytest.raises(OutputError) as caught, atomic_path(target) as outer, atomic_path(outer) as inner:
        assert inner == outer
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(caught.value) == f"{tmp_path / 'seg.json'}: cannot be written: the disk is full; free some space"
    assert list(tmp_path.iterdir()) == []


def test_an_inner_write_that_failed_leaves_no_half_file_to_the_outer_one(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "seg.json") as outer:
        with pytest.raises(ValueError, match="half"), atomic_path(outer) as inner:
            inner.write_text("half")
            raise ValueError("half")
        assert outer.read_bytes() == b""
        outer.write_text("whole")
    assert (tmp_path / "seg.json").read_text() == "whole"


def test_errors_that_name_a_temporary_name_the_target_instead() -> None:
    temporary, target = Path("/a/.masksam-x.nii"), Path("/a/seg.nii")
    for kind in (OutputError, ScanError, BundleError):
        with pytest.raises(kind, match=r"^/a/seg.nii/b: found nothing$"), speaking_of(temporary, target):
            raise kind(f"{temporary}/b: found nothing")
    with pytest.raises(OSError, match="full") as caught, speaking_of(temporary, target):
        raise OSError(errno.ENOSPC, "full", str(temporary))
    assert caught.value.filename == str(target)
    with pytest.raises(OSError, match=r"^\[Errno 28\] full$"), speaking_of(temporary, target):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OutputError, match=r"^/store/typed: full$"), speaking_of(Path("/store/.x"), Path("/store")):
        raise OutputError("/store/.x/typed: full")
    with pytest.raises(OutputError, match=r"^/a/seg.nii: full$"), speaking_of(Path(".masksam-x.nii"), Path("seg.nii")):
        raise OutputError("/a/.masksam-x.nii: full")
    with pytest.raises(ValueError, match="masksam"), speaking_of(temporary, target):
        raise ValueError(str(temporary))  # a bug, which is told as it is
