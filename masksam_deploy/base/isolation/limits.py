"""What a worker may take: memory beyond what it has, seconds of processor time, and seconds in all.

The kernel enforces all of it, so that a library which loops or allocates without end is stopped whatever it does. Where
the system knows no such limits (Windows), only the time that `client.py` waits is bounded.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress


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
    no_core()
    held = _address_space()
    if held is not None:
        _lower(resource.RLIMIT_AS, held + memory)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(wall)


def no_core() -> None:
    """Leave no memory image of a crash: what a scan holds would lie about in somebody's folder."""
    if sys.platform != "win32":
        import resource

        _lower(resource.RLIMIT_CORE, 0)


def limit_data(headroom: int) -> None:
    """From now on, memory beyond what this process has and `headroom` bytes is refused. On Linux only.

    Called again, it can only lower the limit.
    """
    if sys.platform != "linux":
        return
    import resource

    soft = resource.getrlimit(resource.RLIMIT_DATA)[0]
    used = _data()
    if used and (soft == resource.RLIM_INFINITY or used + headroom < soft):
        _lower(resource.RLIMIT_DATA, used + headroom)


def _data() -> int:
    """Bytes of data that this process has; 0 if the system does not say."""
    with suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        import resource

        return int(file.read().split()[5]) * resource.getpagesize()
    return 0


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
