"""What a worker may take: memory beyond what it has, seconds of processor time, and seconds in all.

The kernel enforces all of it, so that a library which loops or allocates without end is stopped whatever it does. Where
the system knows no such limits (Windows), only the time that `client.py` waits is bounded.
"""

from __future__ import annotations

import signal
import sys

HEADER_MEMORY = 2**30
"""Bytes for reading headers: thousands of slices take a few hundred megabytes."""
DECODING_MEMORY = 2**29
"""Bytes beside the voxels: buffers of the decoders, which take one slice at a time."""
_CPU_SECONDS = 60
_WALL_SECONDS = 600
# A slow machine decodes 4 MB/s of JPEG 2000, a slow network file system delivers 1 MB/s.
_CPU_BYTES_PER_SECOND = 4e6
_WALL_BYTES_PER_SECOND = 1e6
_FILE_SECONDS = 1.0


def seconds_to_open(files: int) -> tuple[int, int]:
    """Processor time and time in all for the headers of so many files."""
    return _CPU_SECONDS + int(files * _FILE_SECONDS / 10), _WALL_SECONDS + int(files * _FILE_SECONDS)


def seconds_to_decode(size: int) -> tuple[int, int]:
    """Processor time and time in all for so many bytes of voxels."""
    return _CPU_SECONDS + int(size / _CPU_BYTES_PER_SECOND), _WALL_SECONDS + int(size / _WALL_BYTES_PER_SECOND)


def reset_signals() -> None:
    """Undo what this process inherited: a host program may block or ignore the signals that end a worker."""
    if sys.platform == "win32":
        return
    for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def limit_worker(memory: int, seconds: tuple[int, int]) -> None:
    """From now on, take no more than this beyond what was taken so far.

    Args:
        memory: bytes of address space.
        seconds: of processor time, and in all; reaching either ends the process.
    """
    if sys.platform == "win32":
        return
    import resource

    cpu, wall = seconds
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    _lower(resource.RLIMIT_CPU, int(used) + 1 + cpu)
    # A core of a scan would lie about in somebody's folder.
    _lower(resource.RLIMIT_CORE, 0)
    held = _address_space()
    if held is not None:
        _lower(resource.RLIMIT_AS, held + memory)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(wall)


def _lower(what: int, value: int) -> None:
    """Set the soft limit; the hard one stays, so that decoding may be given more than reading headers."""
    import resource

    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space() -> int | None:
    """Bytes that this process has mapped; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  imports nothing
            pages = int(file.read().split()[0])
    except (OSError, ValueError):
        return None
    import resource

    return pages * resource.getpagesize()
