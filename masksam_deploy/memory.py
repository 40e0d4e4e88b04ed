"""How much memory the work may take."""

from __future__ import annotations

import re
from pathlib import Path

from masksam_deploy.errors import MemoryLimitError

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


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None


def peak_memory() -> int | None:
    """Most bytes of memory that this process ever held, or None where the system does not say.

    Not `getrusage`: on Linux its figure survives `exec`, so that a child would start with its parent's.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    except OSError:
        return None


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
