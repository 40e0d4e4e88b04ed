"""The tables of `masksam-deploy compare`."""

from __future__ import annotations

from typing import IO

from rich.table import Table
from rich.text import Text

from masksam_deploy.base.tables import UNDEFINED, Cell, add_row, figures, open_console, table, words
from masksam_deploy.base.text import shown
from masksam_deploy.comparison.comparison import Comparison
from masksam_deploy.comparison.gates import share
from masksam_deploy.metrics.overlap import ClassOverlap


def print_tables(comparison: Comparison, file: IO[str]) -> None:
    """Print both sides, every scan and the worst results.

    Args:
        comparison: finished.
        file: where to print; colours are used only on a terminal.
    """
    console = open_console(file)
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
    columns = (*words("scan", "class"), *figures("Dice", "A voxels", "B voxels", "disagreeing", "ml"))
    made = table("Scans", columns)
    for scan in comparison.scans:
        total = scan.overlap
        agree = f"agree: {share(total.agreement)}, foreground {_share(total.foreground_agreement)}"
        rows = [(scan.scan.name, agree, "", "", "", f"{total.disagreeing_voxels}", ""), *map(_cells, total.classes)]
        for number, row in enumerate(rows, 1):
            add_row(made, row, end_section=number == len(rows))
    return made


def _cells(entry: ClassOverlap) -> tuple[Cell, ...]:
    counts = map(str, (entry.voxels_a, entry.voxels_b, entry.disagreeing_voxels))
    return ("", entry.name, _dice(entry.dice), *counts, f"{entry.disagreeing_ml:.3f}")


def _worst_table(comparison: Comparison) -> Table:
    return table(
        f"Worst of {len(comparison.scans)} scans",
        (*words("class"), *figures("lowest Dice", "most ml", "counted"), *words("scan of the lowest Dice")),
        (
            (
                row.name,
                _dice(row.lowest_dice),
                f"{row.most_disagreeing_ml:.3f}",
                f"{row.counted}",
                row.lowest_dice_scan.name if row.lowest_dice_scan else "",
            )
            for row in comparison.classes
        ),
    )


def _dice(value: float | None) -> str:
    # Cut, not rounded: only equal masks show 1.
    return UNDEFINED if value is None else f"{int(value * 1e6) / 1e6:.6f}"


def _share(value: float | None) -> str:
    return UNDEFINED if value is None else share(value)
