"""The real worker, with a reader that does to the worker what a library might; the file's name says what."""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from masksam_deploy.base.isolation import Wire
from masksam_deploy.base.volume import Array, Geometry
from masksam_deploy.io import open_channel as opening
from masksam_deploy.io import scan_limits, scan_worker
from masksam_deploy.io.channel import Channel

PRELOAD = scan_worker.PRELOAD
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


def _leave_heir() -> None:
    if os.fork() == 0:
        os.setsid()
        time.sleep(20)
        os._exit(0)
    os._exit(0)


_DEEDS: dict[str, Callable[[], None]] = {
    "crash": _crash,
    "loop": _loop,
    "sleep": _sleep,
    "memory": _take_memory,
    "leave": _leave,
    "fail": _fail,
    "heir": _leave_heir,
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


def serve(wire: Wire) -> None:
    """See `scan_worker.serve`."""
    opening.open_channel = open_channel
    scan_limits._CPU_SECONDS = 1
    scan_limits._WALL_SECONDS = 2
    scan_worker.serve(wire)
