"""A comparison for people: the tables of `masksam-deploy compare`."""

from __future__ import annotations

from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from masksam_deploy.base.text import one_line, shown
from masksam_deploy.comparison.comparison import Comparison
from masksam_deploy.comparison.gates import share

_PIPE_WIDTH = 120
_UNDEFINED = "–"  # noqa: RUF001


def print_tables(comparison: Comparison, file: IO[str]) -> None:
    """Print both sides, every scan, and the worst; colours only on a terminal."""
    # Everything printed below is Text, never markup: names come from files.
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(Text(f"A: {comparison.a.title}"), soft_wrap=True)
    console.print(Text(f"B: {comparison.b.title}"), soft_wrap=True)
    console.print(_scan_table(comparison))
    if len(comparison.scans) > 1:
        console.print(_worst_table(comparison))
    worst, foreground = comparison.lowest_agreement, comparison.lowest_foreground_agreement
    console.print(
        Text(f"lowest agreement: {share(worst.overlap.agreement)} of all voxels ({shown(worst.scan)})"), soft_wrap=True
    )
    if foreground:
        found = _share(foreground.overlap.foreground_agreement)
        console.print(Text(f"  {found} of the foreground of either side ({shown(foreground.scan)})"), soft_wrap=True)


def _scan_table(comparison: Comparison) -> Table:
    table = _table("Scans", ("scan", "class"), ("Dice", "A voxels", "B voxels", "disagreeing", "ml"))
    for scan in comparison.scans:
        total = scan.overlap
        table.add_row(
            Text(one_line(scan.scan.name)),
            Text(f"agree: {share(total.agreement)}, foreground {_share(total.foreground_agreement)}"),
            *map(Text, ("", "", "", f"{total.disagreeing_voxels}", "")),
        )
        for entry in total.classes:
            table.add_row(
                Text(""),
                Text(one_line(entry.name)),
                _dice(entry.dice),
                *map(Text, (f"{entry.voxels_a}", f"{entry.voxels_b}", f"{entry.disagreeing_voxels}")),
                Text(f"{entry.disagreeing_ml:.3f}"),
            )
        table.add_section()
    return table


def _worst_table(comparison: Comparison) -> Table:
    table = _table(f"Worst of {len(comparison.scans)} scans", ("class",), ("lowest Dice", "most ml", "counted"))
    table.add_column("scan of the lowest Dice", overflow="fold")
    for row in comparison.classes:
        table.add_row(
            Text(one_line(row.name)),
            _dice(row.lowest_dice),
            Text(f"{row.most_disagreeing_ml:.3f}"),
            Text(f"{row.counted}"),
            Text(one_line(row.lowest_dice_scan.name) if row.lowest_dice_scan else ""),
        )
    return table


def _dice(value: float | None) -> Text:
    # Cut, not rounded: only equal masks show 1.
    return Text(_UNDEFINED if value is None else f"{int(value * 1e6) / 1e6:.6f}")


def _share(value: float | None) -> str:
    return _UNDEFINED if value is None else share(value)


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table
