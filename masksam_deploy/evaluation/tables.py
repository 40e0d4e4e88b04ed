"""The tables of `masksam-deploy evaluate`."""

from __future__ import annotations

from typing import IO

from rich.table import Table
from rich.text import Text

from masksam_deploy.base.tables import Cell, add_row, figure, figures, marks, open_console, table, words
from masksam_deploy.evaluation.evaluation import Evaluation
from masksam_deploy.evaluation.metrics import ClassMetrics
from masksam_deploy.evaluation.summary import ClassSummary

_MOST_ROWS = 40
_WORST_ROWS = 10


def print_tables(evaluation: Evaluation, file: IO[str]) -> None:
    """Print the cases, only the worst of them if there are many, and the summary.

    Args:
        evaluation: finished.
        file: where to print; colours are used only on a terminal.
    """
    console = open_console(file)
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
    columns = ("Dice", "IoU", "HD95 mm", "ASD mm", "pred. ml", "ref. ml", "diff. ml")
    made = table(title, (*words("case", "class"), *figures(*columns), *marks("")))
    several = len({entry.value for _, entry in rows}) > 1
    for number, (case, entry) in enumerate(rows):
        repeated = number > 0 and rows[number - 1][0] == case
        last = number + 1 == len(rows) or rows[number + 1][0] != case
        add_row(made, ["" if repeated else case, *_case_cells(entry)], end_section=last and several)
    return made


def _case_cells(entry: ClassMetrics) -> tuple[Cell, ...]:
    """The cells of a row after the name of the case."""
    return (
        entry.name,
        figure(entry.dice, 4),
        figure(entry.iou, 4),
        figure(entry.hd95_mm, 2),
        figure(entry.asd_mm, 2),
        figure(entry.volume_prediction_ml, 2),
        figure(entry.volume_reference_ml, 2),
        figure(entry.volume_difference_ml, 2, "+"),
        Text("" if entry.status == "both present" else entry.status, style="yellow"),
    )


def _summary_table(evaluation: Evaluation) -> Table:
    columns = (
        "Dice mean",
        "median",
        "least",
        "HD95 mm",
        "ASD mm",
        "|diff.| ml",
        "counted",
        "empty",
        "missed",
        "false p.",
    )
    return table(
        f"Summary of {len(evaluation.cases)} case(s)",
        (*words("class"), *figures(*columns)),
        map(_summary_cells, evaluation.summary),
        caption="Means are over the counted cases: all but those empty on both sides. Missed cases and false positives "
        "(false p.) count with a Dice of 0 and have no distances; (n) is the number of cases with distances.",
    )


def _summary_cells(row: ClassSummary) -> tuple[Cell, ...]:
    return (
        row.name,
        figure(row.mean_dice, 4),
        figure(row.median_dice, 4),
        figure(row.min_dice, 4),
        _distance(row.mean_hd95_mm, row),
        _distance(row.mean_asd_mm, row),
        figure(row.mean_absolute_volume_difference_ml, 2),
        *map(str, (row.counted, row.both_empty, row.missed, row.false_positive)),
    )


def _distance(value: float | None, row: ClassSummary) -> str:
    note = f" ({row.with_distances})" if value is not None and row.with_distances < row.counted else ""
    return figure(value, 2) + note
