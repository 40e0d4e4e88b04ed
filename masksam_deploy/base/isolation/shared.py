"""An array in memory that a worker process can be given by name."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

if sys.platform == "linux":
    import fcntl


class SharedArray:
    """Zeros, C-contiguous, that another process can map for as long as this object is open.

    On Linux it has no name in any file system and does not depend on the size of `/dev/shm`, which containers keep
    small. Elsewhere it is a private temporary file, removed when the object is closed.

    Args:
        shape: of the array.
        dtype: of the array.

    Raises:
        OSError, ValueError, OverflowError: there is not that much memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
        self.shape = shape
        size = _size(shape, dtype)
        self._fd, self.path = _anonymous_file()
        try:
            os.ftruncate(self._fd, size)
            _keep_size(self._fd, self.path)
            memory = mmap.mmap(self._fd, size)
        except BaseException:
            self.close()
            raise
        # The array keeps the mapping, and with it the memory, after this object is closed.
        self.array: NDArray[Any] = np.frombuffer(memory, dtype, prod(shape)).reshape(shape)

    def close(self) -> None:
        """Let no other process map it any more; `array` stays valid."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not self.path.startswith("/proc/"):
                Path(self.path).unlink(missing_ok=True)

    def __enter__(self) -> SharedArray:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


def map_shared(
    path: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32, *, at_once: bool = False
) -> NDArray[Any]:
    """What `SharedArray` holds, in a worker.

    Args:
        path, shape, dtype: of the array.
        at_once: map all of it now, where the system can, instead of page by page when it is touched.

    Raises:
        OSError, ValueError: it is not there, or of another size.
    """
    with open(path, "r+b") as file:  # noqa: PTH123  a name in /proc, which Path would treat the same
        if at_once and sys.platform == "linux":
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            memory = mmap.mmap(file.fileno(), _size(shape, dtype), flags=flags)
        else:
            memory = mmap.mmap(file.fileno(), _size(shape, dtype))
    return np.frombuffer(memory, dtype, prod(shape)).reshape(shape)


def _size(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes; a mapping has at least one."""
    return max(np.dtype(dtype).itemsize * prod(shape), 1)


def _anonymous_file() -> tuple[int, str]:
    if sys.platform == "linux":
        fd = os.memfd_create("masksam-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        path = f"/proc/{os.getpid()}/fd/{fd}"
        if os.path.exists(path):  # noqa: PTH110  without /proc, the worker could not find it
            return fd, path
        os.close(fd)
    return tempfile.mkstemp(prefix="masksam-shared-")


def _keep_size(fd: int, path: str) -> None:
    """A worker that made it shorter would end this process (SIGBUS) when that reads what is gone."""
    if sys.platform == "linux" and path.startswith("/proc/"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
