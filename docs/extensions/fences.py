"""The fenced blocks of code in Markdown pages, and what their info strings say about running them.

tests/docs/test_commands.py runs every block of `bash` and `python`. Two marks change that, each with a reason in
quotes: `no-run="needs an NVIDIA GPU"` and `slow="trains for minutes"` (run with `pytest --slow`). A block of
`text output` states what the block before it prints.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

RUNNABLE = ("bash", "python")
MARKS = ("no-run", "slow")


@dataclass(frozen=True)
class Fence:
    """One fenced block.

    Attributes:
        page: the file that holds it.
        line: of its first line of code, counted from 1.
        language: the first word of the info string.
        code: what is inside.
        marks: why it is not run, or not always: mark -> reason.
        is_output: whether it states what the block before it prints.
    """

    page: Path
    line: int
    language: str
    code: str
    marks: dict[str, str]
    is_output: bool

    @property
    def runnable(self) -> bool:
        """Whether it holds commands or Python."""
        return self.language in RUNNABLE


def fences_of(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: an info string holds a word that is not known here, or a mark without a reason.
    """
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "fence" and token.map and not token.info.startswith("{"):
            language, *words = shlex.split(token.info) or [""]
            where = f"{page}:{token.map[0] + 1}"
            marks = dict(_mark(word, where) for word in words if word != "output")
            yield Fence(page, token.map[0] + 2, language, token.content, marks, "output" in words)


def _mark(word: str, where: str) -> tuple[str, str]:
    name, _, reason = word.partition("=")
    if name not in MARKS or not reason:
        raise ValueError(f'{where}: found the mark {word!r}, expected no-run="reason" or slow="reason"')
    return name, reason


def pages_of(root: Path) -> list[Path]:
    """Every page of the repository that is written for readers, in a fixed order.

    Args:
        root: of the repository.
    """
    built = root / "docs" / "_build"
    pages = [path for path in sorted((root / "docs").rglob("*.md")) if built not in path.parents]
    return [*(root / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *pages]
