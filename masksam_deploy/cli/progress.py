"""The progress bar of every command of the runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

NamedProgress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of the work, and how many of how many steps of it are done."""


@contextmanager
def progress_bar(first: str) -> Iterator[NamedProgress | None]:
    """Show a progress bar on a terminal; in a pipe, show nothing.

    Args:
        first: name of the work until the first call.

    Yields:
        What advances the bar; None in a pipe.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_dumb_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(first, total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield advance
