"""Paths from users and archives: names no system takes, links that lead nowhere, and things that are no files."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.text import one_line, shown

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def resolved(path: Path, error: type[MaskSamError]) -> Path:
    """The path with all links followed; what is missing at its end may be missing.

    `Path.resolve` reports a link that leads to itself differently in every version of Python, and a name that no
    system takes not as an `OSError` at all.

    Args:
        path: to follow.
        error: what kind of refusal it is: that of a scan, a bundle or an output.

    Raises:
        MaskSamError: as `error` says.
    """
    check_name(path, error)
    try:
        return path.resolve()
    except (OSError, RuntimeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "a symbolic link leads to itself"
        raise error(
            f"{shown(path)}: found a path that cannot be followed ({reason}), expected a file or folder; correct the "
            "path or the link"
        ) from why


def check_name(path: Path, error: type[MaskSamError]) -> None:
    """Refuse a name that no system takes: with a zero byte, or with half of a Unicode pair.

    Raises:
        MaskSamError: as `error` says.
    """
    try:
        usable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise error(
            f"{one_line(str(path))}: found a name with a zero byte or half a character, expected a file name; correct "
            "the path"
        )


def kind_of(mode: int) -> str:
    """What a mode of `stat` says that something is, with its article."""
    return _KINDS.get(stat.S_IFMT(mode), "a file" if stat.S_ISREG(mode) else "something unknown")


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; nothing but a regular file is opened, see `only_regular`.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    return open(path, "rb", opener=only_regular)


def only_regular(path: str, flags: int) -> int:
    """An `opener` for `open` and `FileIO` that opens regular files and nothing else.

    A named pipe would make `open` wait, and a device could be read without end. It is asked before opening, since
    opening a device may do something, and after, since the name may stand for another thing by then.

    Raises:
        OSError: it is something else, or cannot be opened.
    """
    _check_regular(os.stat(path).st_mode, path)  # noqa: PTH116  `opener` is given a text
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(mode: int, path: str) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(mode)}, not a file", path)
