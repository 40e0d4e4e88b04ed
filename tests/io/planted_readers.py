"""The real server and worker, with a reader that does to the worker what a library might; the file's name says what."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from masksam_deploy.io import opening
from masksam_deploy.io.channel import Channel
from masksam_deploy.io.isolation import limits, server, worker
from masksam_deploy.volume import Array, Geometry

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_GRID = Geometry((4, 3, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), _IDENTITY)
_real = opening.open_channel


def _crash() -> None:
    ctypes.string_at(0)


def _loop() -> None:
    while True:
        pass


def _sleep() -> None:
    time.sleep(60)


def _take_memory() -> None:
    bytearray(2**34)


def _leave() -> None:
    os._exit(0)


def _fail() -> None:
    raise KeyError("x" * 5_000_000)


def _say_nonsense() -> None:
    for number in range(3, 64):  # whichever of them is the connection
        try:
            os.write(number, b"\xff" * 4096)
        except OSError:
            continue
    os._exit(0)


def _leave_litter() -> None:
    tempfile.mkdtemp()
    _crash()


_DEEDS: dict[str, Callable[[], None]] = {
    "crash": _crash,
    "loop": _loop,
    "sleep": _sleep,
    "memory": _take_memory,
    "leave": _leave,
    "fail": _fail,
    "litter": _leave_litter,
    "nonsense": _say_nonsense,
}


def open_channel(path: Path) -> Channel:
    """`open-NAME.nii` misbehaves on opening, `read-NAME.nii` on reading the voxels; others are read."""
    when, _, deed = path.stem.partition("-")
    if deed not in _DEEDS:
        return _real(path)
    if when == "open":
        _DEEDS[deed]()

    def read_into(_: Array) -> None:
        _DEEDS[deed]()

    return Channel(str(path), _GRID, read_into)


def main() -> None:
    """Serve as the real server does, or the real worker where there is none."""
    opening.open_channel = open_channel
    limits._CPU_SECONDS = 1
    limits._WALL_SECONDS = 2
    server.main()


def main_of_worker() -> None:
    """As `main`, for one scan."""
    opening.open_channel = open_channel
    limits._CPU_SECONDS = 1
    limits._WALL_SECONDS = 2
    worker.main()


def main_without_workers() -> None:
    """The real server where the system starts no more processes."""

    def fork() -> int:
        raise BlockingIOError

    os.fork = fork
    server.main()


def main_that_ends() -> None:
    """A server that finds no memory for its libraries."""
    sys.exit(1)
