"""Turning paths, header text and ITK's C++ messages into something that fits one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NOISE = (
    re.compile(r"Exception thrown in SimpleITK \w+:"),
    re.compile(r"\S+\.(?:cxx|hxx|h|txx|cpp|cc):\d+:"),
    re.compile(r"(?:itk::|ITK |sitk::)ERROR:"),
    re.compile(r"\w+\(0x[0-9a-fA-F]+\):"),
    re.compile(r"\[nrrd\] \w+:"),
    # ITK appends errno of some earlier, unrelated call.
    re.compile(r"Reason: .*"),
)


NOT_UTF8 = "the path holds bytes that are not UTF-8, expected a name in UTF-8; rename it"


def is_utf8(path: str | Path) -> bool:
    """Whether a name's bytes are UTF-8, whatever the locale: C++ libraries take it as that, and abort on others."""
    try:
        os.fsencode(path).decode("utf-8")
    except UnicodeError:
        return False
    return True


def plain_text(name: str) -> str:
    """A name as text in UTF-8: bytes that are none are written out, so that different names stay different."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str, limit: int = 160) -> str:
    """`text` without control characters, `?` for undecodable bytes, white space collapsed, cut at `limit`."""
    decodable = text.encode("utf-8", "replace").decode("utf-8")
    clean = " ".join("".join(c if c.isprintable() else " " for c in decodable).split())
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def shown(path: str | Path) -> str:
    """A path for a message: on one line, never cut."""
    return one_line(str(path), limit=10_000)


def printable(text: str | Path) -> str:
    """All of a text, with what does not print written as Python does: names must not steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def itk_reason(error: BaseException) -> str:
    """The last thing an ITK error says, without source files, addresses and line breaks."""
    text = str(error)
    for pattern in _NOISE:
        text = pattern.sub("\n", text)
    lines = [line.strip() for line in text.splitlines() if line.strip(" \t:;.")]
    return one_line(lines[-1]) if lines else type(error).__name__
