"""Write to a temporary name beside the target, then rename: a reader never sees half a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from masksam_deploy.base.errors import DiskFullError, OutputError
from masksam_deploy.base.temporaries import FILE, Temporary, clean, speaking_of
from masksam_deploy.base.text import shown

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would exceed the size limit; raise the limit or write elsewhere",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "operation not permitted; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder does not exist; create it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder; correct the path",
    errno.EISDIR: "it is a folder; give a file name",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield an empty file beside `target` to write to; on success it becomes `target`, else it is removed.

    The temporary name ends in `target`'s suffixes in lower case (`SEG.NII.GZ` -> `.nii.gz`), since writers
    choose a format by them. The file has the permissions that the umask gives. An existing target is
    replaced only at the end. What killed processes left in the folder is removed; see `temporaries.py`.
    A `target` that is such a temporary itself, of an `atomic_path` further out, is yielded as it is.

    Raises:
        OutputError: the target is not a place for a file, or the system refused (permissions, missing folder);
            any `OSError` from the body is turned into it as well. `DiskFullError` for want of room. The message
            names the file that was asked for.
    """
    target = Path(target)
    asked = _asked.get(target)
    if asked is None:
        with _in_our_words(target), _beside(target) as temporary:
            yield temporary
    else:
        # A second temporary, renamed to the first one's name, would leave that without its lock.
        with _in_our_words(asked), speaking_of(target, asked), _emptied_on_error(target):
            yield target


def check_writable(target: str | Path) -> None:
    """Refuse a target that cannot be written, before the work for it is done; nothing stays behind.

    Raises:
        OutputError: as `atomic_path`.
    """
    with suppress(_Writable), atomic_path(target):
        raise _Writable


class _Writable(Exception):  # noqa: N818  never seen outside
    """Leaves `atomic_path` before it would replace the target."""


_asked: dict[Path, Path] = {}
"""Temporaries that are being written -> what they are for."""


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """The file itself: created, yielded, renamed."""
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device"
        raise OutputError(f"{shown(target)}: found {kind}, expected a file name to write; give another path")
    clean(target.parent)
    temporary = Temporary(target.parent, FILE, "".join(_suffixes(target)))
    try:
        # Created here, exclusively, so that a bad folder shows up before any work is done.
        temporary.create_file()
        _asked[temporary.path] = target
        with speaking_of(temporary.path, target):
            yield temporary.path
        _flush_to_disk(temporary.path)
        temporary.release()
        temporary.path.replace(target)
    finally:
        # After a success the name is gone; after anything else, Ctrl-C included, nothing may stay behind.
        _asked.pop(temporary.path, None)
        temporary.remove()


@contextmanager
def _emptied_on_error(temporary: Path) -> Iterator[None]:
    """Leave no half file to the `atomic_path` further out, should that go on."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.truncate(temporary, 0)
        raise


@contextmanager
def _in_our_words(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind_of_error = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
        raise kind_of_error(f"{shown(target)}: cannot be written: {_reason(error)}") from error


def _suffixes(path: Path) -> list[str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:]


def _flush_to_disk(path: Path) -> None:
    # Without this a power cut after the rename can leave a file of zeros under the final name.
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _reason(error: OSError) -> str:
    if error.errno in _REASONS:
        return _REASONS[error.errno]
    return f"{error.strerror or type(error).__name__}; check the path and the disk"
