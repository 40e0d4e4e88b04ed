"""Comparing all cases of two folders, and the summary over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from masksam_deploy.base.errors import DiceTooLowError, EvaluationError
from masksam_deploy.base.text import one_line
from masksam_deploy.evaluation.metrics import ClassMetrics, absent, evaluate_case
from masksam_deploy.evaluation.pairing import Pair, Pairing, check_grids, pair_cases
from masksam_deploy.evaluation.summary import ClassSummary, summarize
from masksam_deploy.metrics.label_maps import label_values, read_label_map

MOST_UNNAMED = 256
"""Most label values without names: with more, a file is probably a scan, and comparing it would take hours."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of cases done, and of all cases."""
Tell: TypeAlias = Callable[[str], None]
"""Called with each warning of a file."""


@dataclass(frozen=True)
class CaseMetrics:
    """The figures of one case.

    Attributes:
        pair: the files of the case.
        classes: one entry per class, in the order of `Evaluation.classes`.
    """

    pair: Pair
    classes: tuple[ClassMetrics, ...]


@dataclass(frozen=True)
class Evaluation:
    """A finished comparison.

    Attributes:
        classes: label value -> name, ascending by value.
        cases: ascending by name.
        summary: one entry per class, in the order of `classes`.
        only_predictions, only_references: names of the cases that were left out because one file is missing.
    """

    classes: Mapping[int, str]
    cases: tuple[CaseMetrics, ...]
    summary: tuple[ClassSummary, ...]
    only_predictions: tuple[str, ...]
    only_references: tuple[str, ...]


def evaluate_folders(
    predictions: str | Path,
    references: str | Path,
    *,
    names: Mapping[int, str] | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Compare the label maps of two folders, paired by name, or of two files.

    Args:
        predictions, references: two folders or two files; see `pairing.pair_cases`.
        names: label value -> name; other values are refused then. Without names, every value that occurs is a class,
            named by its number.
        allow_missing: whether to leave out cases that occur on one side only, instead of refusing them.
        progress: called after every case.
        tell: called with every warning of a file.

    Returns:
        The figures of all cases, and their summary.

    Raises:
        EvaluationError: the files do not pair up, lie on different grids, or hold values that are no labels.
        ScanError: a file cannot be read.
    """
    pairing = pair_cases(Path(predictions), Path(references), allow_missing=allow_missing)
    return evaluate_pairs(pairing, names=names, progress=progress, tell=tell)


def evaluate_pairs(
    pairing: Pairing,
    *,
    names: Mapping[int, str] | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Compare cases that are paired already. One case is in memory at a time.

    Args:
        pairing: from `pairing.pair_cases`.
        names, progress, tell: as for `evaluate_folders`.

    Returns:
        The figures of all cases, and their summary.

    Raises:
        EvaluationError, ScanError: as `evaluate_folders`.
    """
    check_grids(pairing.pairs, tell)
    compared: list[dict[int, ClassMetrics]] = []
    for number, pair in enumerate(pairing.pairs, 1):
        compared.append(_compare(pair, names))
        if progress:
            progress(number, len(pairing.pairs))
    found = sorted(set().union(*compared))
    classes = dict(sorted(names.items())) if names is not None else {value: str(value) for value in found}
    if not classes:
        raise EvaluationError(
            f"found only the value 0 in all {2 * len(pairing.pairs)} files, expected at least one label; check "
            "the paths"
        )
    cases = tuple(
        CaseMetrics(pair, tuple(entries.get(value) or absent(value, name) for value, name in classes.items()))
        for pair, entries in zip(pairing.pairs, compared, strict=True)
    )
    columns = zip(*(case.classes for case in cases), strict=True)
    summary = tuple(summarize(column) for column in columns)
    return Evaluation(classes, cases, summary, pairing.only_predictions, pairing.only_references)


def check_mean_dice(evaluation: Evaluation, least: float) -> None:
    """Demand a mean Dice for every class.

    Classes that occur in no case are not judged. If no class occurs in any case, the demand is not met.

    Args:
        evaluation: finished.
        least: the lowest mean Dice that is accepted, from 0 to 1.

    Raises:
        DiceTooLowError: a mean is lower; the message names the classes and their means.
    """
    judged = [(row, row.mean_dice) for row in evaluation.summary if row.mean_dice is not None]
    if not judged:
        raise DiceTooLowError(
            f"found no case in which any class occurs, expected a mean Dice of at least {least:g}; check the files"
        )
    # All digits: a rounded mean could look like the limit that it misses.
    low = [f"'{row.name}' {mean!r} over {row.counted} cases" for row, mean in judged if mean < least]
    if low:
        raise DiceTooLowError(
            f"found a mean Dice of {'; '.join(low)}, expected at least {least:g} for every class; look at the worst "
            "cases with --plot"
        )


def _compare(pair: Pair, names: Mapping[int, str] | None) -> dict[int, ClassMetrics]:
    """The classes that occur in one case; the classes of all cases are known only after the last case."""
    prediction, reference = (read_label_map(path, names) for path in (pair.prediction, pair.reference))
    values = sorted({*label_values(prediction.array), *label_values(reference.array)})
    if names is None and len(values) > MOST_UNNAMED:
        raise EvaluationError(
            f"case {one_line(pair.case)!r}: found {len(values)} different values, expected a label map; check that "
            "neither file is a scan, or name the labels with --labels if all of them are labels"
        )
    wanted = {value: names[value] if names is not None else str(value) for value in values}
    return {entry.value: entry for entry in evaluate_case(prediction, reference, wanted)}
