"""The picture of an evaluation: box plots of every class, and the contours of the worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.optional import OptionalPackage
from masksam_deploy.base.text import one_line
from masksam_deploy.evaluation.evaluation import CaseMetrics, Evaluation
from masksam_deploy.evaluation.metrics import ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = 40
_WORST = 3
_WIDTH, _ROW, _HEAD, _PANEL = 12.0, 0.42, 1.3, 4.6
"""Inches: the figure, one class, title and axis of the box plots, and the row of worst cases."""
_DPI = 130
_NAME = 24
_MATPLOTLIB = OptionalPackage("matplotlib.figure", "matplotlib", "evaluate", "drawing a figure")
_INK, _BOX, _ALARM = "#202020", "#b9d3e6", "#c0392b"


def require_matplotlib() -> None:
    """Check before long work that a figure can be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        BackendError: matplotlib is installed but cannot be imported.
    """
    _MATPLOTLIB.load()


def draw_figure(evaluation: Evaluation, path: str | Path) -> None:
    """Draw an evaluation into a PNG file.

    The upper part shows Dice and HD95 of every class (of more than 40 classes, the worst 40): a point per case, a box
    with quartiles and median, and whiskers to the last point within 1.5 box lengths. The lower part shows the three
    worst cases by Dice: the worst class of each, on the slice where most voxels differ, drawn on the scan if the case
    has one (see `figure_panel.py`).

    Args:
        evaluation: finished; the files of the worst cases are read again.
        path: the PNG file to write; an existing one is replaced.

    Raises:
        ScanError, EvaluationError: a file of a worst case can no longer be read.
        OutputError: the file cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from masksam_deploy.evaluation.figure_panel import draw_legend, draw_panel

    shown = _shown_classes(evaluation)
    worst = worst_cases(evaluation)
    heights = [_HEAD + _ROW * len(shown), _PANEL if worst else 0.01]
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasAgg(figure)  # the figure keeps it
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    dice, hd95 = parts[0].subplots(1, 2, sharey=True)
    _draw_boxes(dice, evaluation, shown, "dice")
    _draw_boxes(hd95, evaluation, shown, "hd95_mm")
    if worst:
        for axes, (case, entry) in zip(parts[1].subplots(1, _WORST), worst, strict=False):
            draw_panel(axes, case.pair, entry)
        for axes in parts[1].axes[len(worst) :]:
            axes.set_axis_off()
        draw_legend(parts[1], "The worst case by Dice" if len(worst) == 1 else f"The {len(worst)} worst cases by Dice")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def worst_cases(evaluation: Evaluation) -> list[tuple[CaseMetrics, ClassMetrics]]:
    """Choose the three cases with the lowest Dice of any class.

    Args:
        evaluation: finished.

    Returns:
        Up to three cases and the worst class of each, ascending by Dice; cases without a Dice are left out.
    """
    candidates = []
    for case in evaluation.cases:
        counted = [entry for entry in case.classes if entry.dice is not None]
        if counted:
            candidates.append((case, min(counted, key=_dice)))
    return sorted(candidates, key=lambda candidate: _dice(candidate[1]))[:_WORST]


def _dice(entry: ClassMetrics) -> float:
    return 1.0 if entry.dice is None else entry.dice


def _shown_classes(evaluation: Evaluation) -> list[int]:
    """Indices of the classes to plot: all of them, or the worst by mean Dice if they are too many."""
    every = range(len(evaluation.summary))

    def mean_dice(index: int) -> float:
        mean = evaluation.summary[index].mean_dice
        return 2.0 if mean is None else mean

    return sorted(sorted(every, key=mean_dice)[:_MOST_CLASSES])


def _draw_boxes(axes: Axes, evaluation: Evaluation, shown: Sequence[int], measure: str) -> None:
    left_out = len(evaluation.summary) - len(shown)
    for row, index in enumerate(shown):
        entries = [case.classes[index] for case in evaluation.cases]
        values = [value for entry in entries if (value := getattr(entry, measure)) is not None]
        alarms = [entry.status in ("missed", "false positive") for entry in entries if _has(entry, measure)]
        if values:
            _draw_box(axes, row, values, alarms)
        count = evaluation.summary[index].counted if measure == "dice" else evaluation.summary[index].with_distances
        # Outside the right edge, in the height of its row.
        axes.annotate(
            f"n={count}", (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#707070"
        )
    names = [plain(evaluation.summary[index].name, _NAME) for index in shown]
    axes.set_yticks(range(len(shown)), labels=names, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if measure == "dice":
        axes.set_xlim(-0.02, 1.02)
        note = f"  ({left_out} better classes not shown)" if left_out else ""
        axes.set_title(f"Dice{note}", loc="left", color=_INK)
        if any(row.missed or row.false_positive for row in evaluation.summary):
            axes.set_xlabel("crosses: missed, or false positive", fontsize=9, color=_ALARM, loc="left")
    else:
        distances = [entry.hd95_mm or 0.0 for case in evaluation.cases for entry in case.classes]
        longest = max(distances) or 1.0
        axes.set_xlim(-0.02 * longest, 1.04 * longest)
        axes.set_title("95 % Hausdorff distance, mm", loc="left", color=_INK)


def _has(entry: ClassMetrics, measure: str) -> bool:
    return getattr(entry, measure) is not None


def _draw_box(axes: Axes, row: int, values: Sequence[float], alarms: Sequence[bool]) -> None:
    # Drawn here: matplotlib renamed the argument for horizontal boxes between the versions that we support.
    from matplotlib.cbook import boxplot_stats

    stats = boxplot_stats(values)[0]
    axes.barh(row, stats["q3"] - stats["q1"], left=stats["q1"], height=0.55, color=_BOX, edgecolor=_INK, linewidth=0.8)
    for inner, outer in ((stats["q1"], stats["whislo"]), (stats["q3"], stats["whishi"])):
        axes.plot([inner, outer], [row, row], color=_INK, linewidth=0.8)
    axes.plot([stats["med"]] * 2, [row - 0.275, row + 0.275], color=_INK, linewidth=2)
    # Spread evenly and not at random, so that the same evaluation gives the same picture.
    heights = row + 0.36 * (np.arange(len(values)) * 0.618 % 1 - 0.5)
    marked = np.asarray(alarms)
    points = np.asarray(values)
    axes.plot(points[~marked], heights[~marked], "o", color=_INK, markersize=3, alpha=0.55)
    axes.plot(points[marked], heights[marked], "x", color=_ALARM, markersize=5)


def plain(text: str, limit: int) -> str:
    """Replace letters that the font of matplotlib lacks, which would cause warnings, and shorten the text.

    Args:
        text: any text.
        limit: most characters.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties())).get_charmap()
    return "".join(char if ord(char) in letters else "?" for char in one_line(text, limit))
