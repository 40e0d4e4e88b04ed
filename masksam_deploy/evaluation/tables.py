"""An evaluation for people: the tables of `masksam-deploy evaluate`."""

from __future__ import annotations

from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from masksam_deploy.base.text import one_line
from masksam_deploy.evaluation.evaluation import Evaluation
from masksam_deploy.evaluation.metrics import ClassMetrics
from masksam_deploy.evaluation.summary import ClassSummary

_PIPE_WIDTH = 120
_MOST_ROWS = 40
_WORST_ROWS = 10
_UNDEFINED = "–"  # noqa: RUF001


def print_tables(evaluation: Evaluation, file: IO[str]) -> None:
    """Print every case if these are few, the worst otherwise, and the summary; colours only on a terminal."""
    # Everything printed below is Text, never markup: names come from files.
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    rows = [(case.pair.case, entry) for case in evaluation.cases for entry in case.classes]
    if len(rows) <= _MOST_ROWS:
        console.print(_case_table("Cases", rows))
    else:
        counted = [row for row in rows if row[1].dice is not None]
        worst = sorted(counted, key=lambda row: row[1].dice or 0.0)[:_WORST_ROWS]
        console.print(_case_table(f"The {len(worst)} worst of {len(rows)} by Dice", worst))
    console.print(_summary_table(evaluation))
    for number, what in (
        (len(evaluation.only_predictions), "predictions without a reference"),
        (len(evaluation.only_references), "references without a prediction"),
    ):
        if number:
            console.print(Text(f"left out: {number} {what}", style="yellow"))


def _case_table(title: str, rows: list[tuple[str, ClassMetrics]]) -> Table:
    table = _table(
        title, ("case", "class"), ("Dice", "IoU", "HD95 mm", "ASD mm", "pred. ml", "ref. ml", "diff. ml"), ("",)
    )
    several = len({entry.value for _, entry in rows}) > 1
    for number, (case, entry) in enumerate(rows):
        repeated = number > 0 and rows[number - 1][0] == case
        last = number + 1 == len(rows) or rows[number + 1][0] != case
        table.add_row(
            Text("" if repeated else one_line(case)),
            Text(one_line(entry.name)),
            _figure(entry.dice, 4),
            _figure(entry.iou, 4),
            _figure(entry.hd95_mm, 2),
            _figure(entry.asd_mm, 2),
            _figure(entry.volume_prediction_ml, 2),
            _figure(entry.volume_reference_ml, 2),
            _figure(entry.volume_difference_ml, 2, "+"),
            Text("" if entry.status == "both present" else entry.status, style="yellow"),
            end_section=last and several,
        )
    return table


def _summary_table(evaluation: Evaluation) -> Table:
    table = _table(
        f"Summary of {len(evaluation.cases)} case(s)",
        ("class",),
        ("Dice mean", "median", "least", "HD95 mm", "ASD mm", "|diff.| ml", "counted", "empty", "missed", "false p."),
        (),
    )
    for row in evaluation.summary:
        table.add_row(
            Text(one_line(row.name)),
            _figure(row.mean_dice, 4),
            _figure(row.median_dice, 4),
            _figure(row.min_dice, 4),
            _distance(row.mean_hd95_mm, row),
            _distance(row.mean_asd_mm, row),
            _figure(row.mean_absolute_volume_difference_ml, 2),
            *(Text(str(count)) for count in (row.counted, row.both_empty, row.missed, row.false_positive)),
        )
    table.caption = Text(
        "Means are over the counted cases: all but those empty on both sides. Missed ones and false positives (false "
        "p.) count with a Dice of 0 and have no distances; (n) says over how many cases a distance is then."
    )
    table.caption_justify = "left"
    return table


def _distance(value: float | None, row: ClassSummary) -> Text:
    note = f" ({row.with_distances})" if value is not None and row.with_distances < row.counted else ""
    return _figure(value, 2) + Text(note)


def _figure(value: float | None, digits: int, sign: str = "") -> Text:
    return Text(_UNDEFINED if value is None else f"{value:{sign}.{digits}f}")


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...], rest: tuple[str, ...]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in rest:
        table.add_column(column, no_wrap=True)
    return table
