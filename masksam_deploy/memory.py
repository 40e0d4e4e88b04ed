"""How much memory the work may take."""

from __future__ import annotations

import os
import re

from masksam_deploy.errors import MemoryLimitError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """'8G', '512MiB', '1.5g' -> bytes, in powers of 1024.

    Raises:
        ValueError: not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ValueError(f"'{text}' is not a size like 8G or 512M")
    return size


def physical_memory() -> int | None:
    """Bytes of memory in this machine, or None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def require(needed: int, limit: int | None, what: str) -> None:
    """Refuse work that needs more than the limit.

    Raises:
        MemoryLimitError: says how much is needed and how to go on.
    """
    if limit is not None and needed > limit:
        raise MemoryLimitError(
            f"{what} needs about {needed / 2**30:.1f} GiB besides the network, allowed are {limit / 2**30:.1f} GiB; "
            "crop the scan, or raise --max-ram on a machine that has more"
        )
