"""How much memory the work may take."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from masksam_deploy.base.errors import MemoryLimitError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """'8G', '512MiB', '1.5g' -> bytes, in powers of 1024.

    Raises:
        ValueError: not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1 <= size < 2**63:
        raise ValueError(f"'{text[:40]}' is not a size like 8G or 512M")
    return int(size)


class _Group(NamedTuple):
    """What a version of Linux's control groups calls its files.

    Attributes:
        mount: below `/sys/fs/cgroup`.
        limit, used: in bytes.
        cache: entry of `memory.stat`: of what is used, the files that are given up first.
    """

    mount: str
    limit: str
    used: str
    cache: str


_GROUPS = {
    "": _Group("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Group("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the name of the controller in `/proc/self/cgroup`: version 2, version 1."""


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping, within the limits of a container; None where the system does not say.

    Args:
        root: of the file system.
    """
    free = list(_free_in_groups(root))
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text("ascii"), re.MULTILINE)
        free += [int(found[1]) * 1024] if found else []
    except OSError:
        pass  # not Linux
    return min(free, default=None)


def _free_in_groups(root: Path) -> Iterator[int]:
    """Bytes left within each limit on the process: its control group's, and those around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, where = line.split(":", 2)
        name = next((name for name in controllers.split(",") if name in _GROUPS), None)
        if name is None:
            continue
        mount = root / "sys/fs/cgroup" / _GROUPS[name].mount
        inner = mount / where.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(mount):
                yield from _free_in(folder, _GROUPS[name])


def _free_in(folder: Path, group: _Group) -> Iterator[int]:
    try:
        limit, used = (int((folder / file).read_text("ascii")) for file in (group.limit, group.used))
        stat = (folder / "memory.stat").read_text("ascii")
    except (OSError, ValueError):
        return  # 'max', or no such group here
    cache = re.search(rf"^{group.cache} (\d+)$", stat, re.MULTILINE)
    yield max(0, limit - used + (int(cache[1]) if cache else 0))


def peak_memory(pid: int | None = None) -> int | None:
    """Most bytes of memory that a process ever held, or None where the system does not say.

    Args:
        pid: of the process; None for this one.

    Not `getrusage`: on Linux its figure survives `exec`, so that a child would start with its parent's.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid or 'self'}/status").read_text("ascii"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None


_STACKS_PER_CORE = 2**24
"""Bytes: of threads, most of which are never touched."""
_headroom: int | None = None


@contextmanager
def bounded_network(max_ram: int | None = None) -> Iterator[None]:
    """While this lasts, a network that is opened on the CPU takes no more memory than is free now.

    A bundle's weights, not its operators, say what it needs: one that makes tensors of terabytes would otherwise take
    what there is, until the system ends this process or another one.

    Args:
        max_ram: bytes that were asked for, where that is more than what is free.
    """
    global _headroom  # noqa: PLW0603  for networks that are opened anywhere within
    free = available_memory() if sys.platform == "linux" else None
    if free is None:
        yield
        return
    from masksam_deploy.base.threads import usable_cores

    before = _headroom
    _headroom = max(free, max_ram or 0) + _free_swap() + _STACKS_PER_CORE * usable_cores()
    try:
        yield
    finally:
        _headroom = before


def network_headroom() -> int | None:
    """Bytes that a network on the CPU may take, see `bounded_network`; None outside of it."""
    return _headroom


def _free_swap() -> int:
    return _kilobytes("proc/meminfo", "SwapFree")


def _kilobytes(file: str, entry: str, root: Path = Path("/")) -> int:
    """Bytes that a line such as `SwapFree:  12 kB` states; 0 if there is none."""
    try:
        found = re.search(rf"^{entry}:\s+(\d+) kB", (root / file).read_text("ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def require(needed: int, limit: int | None, what: str) -> None:
    """Refuse work that needs more than the limit.

    Raises:
        MemoryLimitError: says how much is needed and how to go on.
    """
    if limit is not None and needed > limit:
        raise MemoryLimitError(
            f"{what} needs about {size_text(needed)} besides the network, allowed are {size_text(limit)}; "
            "crop the scan, or raise --max-ram on a machine that has more"
        )


def size_text(size: int) -> str:
    """For people: in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
