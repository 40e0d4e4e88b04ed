"""Pairing predictions with references and scans, by the names of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.dicom import check_kind
from masksam_deploy.io.grid import check_grid
from masksam_deploy.io.isolated_scan import IsolatedScan
from masksam_deploy.io.itk import SCAN_SUFFIXES, scan_suffix
from masksam_deploy.metrics.label_maps import check_same_grid, listed

_FIRST_CHANNEL = "_0000"
"""What nnU-Net appends to the case's name in the name of a scan's first channel."""


@dataclass(frozen=True)
class Pair:
    """The files of one case.

    Attributes:
        case: name of the case.
        prediction, reference: the label maps to compare.
        scan: the scan to draw them on; None for a black background.
    """

    case: str
    prediction: Path
    reference: Path
    scan: Path | None = None


@dataclass(frozen=True)
class Pairing:
    """The cases to compare, and those that are left out.

    Attributes:
        pairs: ascending by the name of the case.
        only_predictions, only_references: names without a counterpart, ascending.
    """

    pairs: tuple[Pair, ...]
    only_predictions: tuple[str, ...] = ()
    only_references: tuple[str, ...] = ()


def pair_cases(predictions: Path, references: Path, *, allow_missing: bool = False) -> Pairing:
    """Pair two files, or the files of two folders.

    In folders, the name of a case is the file's name without its suffix. Hidden files, folders and files of other types
    are ignored. Two files are one case with the name of the reference, whatever the prediction is called.

    Args:
        predictions, references: two folders or two files.
        allow_missing: whether to leave out names that occur on one side only, instead of refusing them.

    Returns:
        At least one pair, and the names that were left out.

    Raises:
        EvaluationError: there is nothing to compare, or the names do not pair up one to one.
    """
    for path in (predictions, references):
        if not path.exists():
            raise EvaluationError(f"{shown(path)}: found no such file or folder, expected label maps; check the path")
    if predictions.is_dir() != references.is_dir():
        folder, file = (predictions, references) if predictions.is_dir() else (references, predictions)
        raise EvaluationError(
            f"found a folder ({shown(folder)}) and a file ({shown(file)}), expected two folders or two files; give "
            "two of the same kind"
        )
    if predictions.samefile(references):
        raise EvaluationError(
            f"{shown(predictions)}: found the same path on both sides, expected predictions and references; "
            "correct one path"
        )
    if not predictions.is_dir():
        return Pairing((Pair(case_name(references), predictions, references),))
    left, right = _volumes(predictions), _volumes(references)
    common = sorted(left.keys() & right.keys())
    alone = (sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys()))
    if not common or (any(alone) and not allow_missing):
        todo = "rename files" if not common else "rename or add files, or use --allow-missing to leave these out"
        raise EvaluationError(
            f"found {_alone(alone[0], 'predictions without a reference')} and "
            f"{_alone(alone[1], 'references without a prediction')}, with {len(common)} in common, expected the same "
            f"names on both sides; {todo}"
        )
    pairs = tuple(Pair(case, left[case], right[case]) for case in common)
    return Pairing(pairs, tuple(alone[0]), tuple(alone[1]))


def with_scans(pairing: Pairing, scans: Path, *, allow_missing: bool = False) -> Pairing:
    """Add its scan to every case: the file with the case's name, or with `_0000` (nnU-Net's first channel) after it.

    Args:
        pairing: the cases.
        scans: a folder of scans; for a single case also its file or its DICOM folder.
        allow_missing: whether cases may stay without a scan.

    Returns:
        The same cases with their scans.

    Raises:
        EvaluationError: there is no such folder, or a case has no scan in it.
    """
    if scans.is_file() and len(pairing.pairs) == 1:
        return replace(pairing, pairs=(replace(pairing.pairs[0], scan=scans),))
    if not scans.is_dir():
        raise EvaluationError(f"{shown(scans)}: found no such folder, expected a folder of scans; check the path")
    files = _volumes(scans, needed=len(pairing.pairs) > 1)
    if not files:
        return replace(pairing, pairs=(replace(pairing.pairs[0], scan=scans),))
    pairs = tuple(replace(pair, scan=_scan_of(pair.case, files)) for pair in pairing.pairs)
    missing = [one_line(pair.case) for pair in pairs if pair.scan is None]
    if missing and not allow_missing:
        raise EvaluationError(
            f"{shown(scans)}: found no scan for {listed(missing)}, expected for every case a file with "
            f"its name, or with {_FIRST_CHANNEL} after it; add the files, or draw on black with --allow-missing"
        )
    return replace(pairing, pairs=pairs)


def check_grids(pairs: Iterable[Pair], tell: Callable[[str], None] | None = None) -> None:
    """Refuse cases whose files lie on different grids. Only headers are read, before any long work.

    Args:
        pairs: the cases.
        tell: called with every warning of a file, with the names of the case and the file before it.

    Raises:
        EvaluationError: the message names the case, what differs, and both values.
        ScanError: a header cannot be read.
    """
    for pair in pairs:
        case = f"case {one_line(pair.case)!r}"
        reference = _grid(pair.reference, f"{case}, the reference", tell)
        prediction = _grid(pair.prediction, f"{case}, the prediction", tell)
        check_same_grid(prediction, reference, f"{case}, the prediction")
        if pair.scan:
            check_same_grid(_grid(pair.scan, f"{case}, the scan", tell), reference, f"{case}, the scan")


def _grid(path: Path, what: str, tell: Callable[[str], None] | None) -> Geometry:
    with IsolatedScan(path) as scan:
        check_grid(scan.geometry, scan.name)
        if tell:
            for warning in scan.warnings:
                tell(f"{what}: {warning}")
        return scan.geometry


def case_name(path: Path) -> str:
    """The name of a file without the suffix of a volume."""
    return path.name[: -len(scan_suffix(path) or "") or None]


def _volumes(folder: Path, *, needed: bool = True) -> Mapping[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or scan_suffix(path) is None:
            continue
        check_kind(path)
        if path.is_dir():
            continue
        case = case_name(path)
        if case in files:
            raise EvaluationError(
                f"{shown(folder)}: found {one_line(files[case].name)} and {one_line(path.name)}, expected one file "
                "for each case; remove one"
            )
        files[case] = path
    if not files and needed:
        raise EvaluationError(
            f"{shown(folder)}: found no volumes, expected files of type {', '.join(SCAN_SUFFIXES)}; check the path"
        )
    return files


def _scan_of(case: str, files: Mapping[str, Path]) -> Path | None:
    return files.get(case) or files.get(case + _FIRST_CHANNEL)


def _alone(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}" + (f" ({listed(map(one_line, names))})" if names else "")
