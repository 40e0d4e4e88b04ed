"""Tables for people: one look for all commands, on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from masksam_deploy.base.text import one_line

PIPE_WIDTH = 120
"""Characters of a line where there is no terminal that says how many it has."""
LONGEST_CELL = 1000
UNDEFINED = "–"  # noqa: RUF001
"""In place of a figure that does not exist."""

Cell: TypeAlias = str | Text
"""Text is shown as it is; a string is shown on one line, and never taken for markup."""


def open_console(file: IO[str]) -> Console:
    """A console that shows names from files as they are, in colour only on a terminal."""
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def words(*names: str) -> tuple[Column, ...]:
    """Columns of text, on the left, which goes on below where it is too long."""
    return tuple(Column(_cell(name), overflow="fold") for name in names)


def figures(*names: str, fold: bool = False) -> tuple[Column, ...]:
    """Columns of figures, on the right; `fold`: they may go on below, where there can be many columns."""
    if fold:
        return tuple(Column(_cell(name), justify="right", overflow="fold") for name in names)
    return tuple(Column(_cell(name), justify="right", no_wrap=True) for name in names)


def marks(*names: str) -> tuple[Column, ...]:
    """Columns of short words that stay on one line."""
    return tuple(Column(_cell(name), no_wrap=True) for name in names)


def table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]] = (), *, caption: str = "") -> Table:
    """A table with a title above it and, if there is one, a caption below.

    Args:
        title: of the table.
        columns: from `words`, `figures` and `marks`; where none has a name, no header is shown.
        rows: as many cells as columns each; more can follow with `add_row`.
        caption: explains what the columns hold.
    """
    made = Table(
        *columns,
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=any(str(column.header) for column in columns),
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    for row in rows:
        add_row(made, row)
    return made


def add_row(to: Table, cells: Sequence[Cell], *, end_section: bool = False) -> None:
    """Add a row; `end_section` draws a line below it."""
    to.add_row(*map(_cell, cells), end_section=end_section)


def figure(value: float | None, digits: int, sign: str = "") -> str:
    """A figure with so many digits behind the point; `sign` "+" shows the sign of positive ones, too."""
    return UNDEFINED if value is None else f"{value:{sign}.{digits}f}"


def _cell(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(one_line(cell, LONGEST_CELL))
