"""What messages quote of a file: cut, so that no file decides how long a message is. Imports no torch."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import Any

from masksam_deploy.base.text import one_line

MOST_NAMED = 8
MAX_LISTED = 500
MAX_REASON = 300


def some(names: Sequence[str], limit: int = MOST_NAMED) -> str:
    """The first names of a list, each cut, at most 500 characters of them, and how many more there are."""
    listed: list[str] = []
    for name in names[:limit]:
        cut = one_line(name, limit=160)
        if listed and len(", ".join([*listed, cut])) > MAX_LISTED:
            break
        listed.append(cut)
    rest = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return ", ".join(listed) + rest


def quoted(value: Any) -> str:
    """What a value looks like, on one line, cut."""
    return one_line(reprlib.repr(value), limit=200)


def reason(error: Exception) -> str:
    """What an exception says, on one line: the first, without C++'s stack, cut."""
    lines = [line.strip() for line in str(error)[:10_000].splitlines()]
    useful = next((line for line in lines if line), "")
    text = re.split(r"\(1\) ", useful)[0]
    return one_line(text.strip().rstrip(".:") or type(error).__name__, limit=MAX_REASON)
