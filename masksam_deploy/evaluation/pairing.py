"""Which prediction belongs to which reference, and to which scan: files pair up by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.io.dicom import check_kind
from masksam_deploy.io.itk import SCAN_SUFFIXES, scan_suffix
from masksam_deploy.io.read import read_geometry
from masksam_deploy.metrics.label_maps import check_same_grid, listed

_FIRST_CHANNEL = "_0000"
"""What nnU-Net appends to the case's name in the name of a scan's first channel."""


@dataclass(frozen=True)
class Pair:
    """One case: the files to compare, and the scan to draw beneath them."""

    case: str
    prediction: Path
    reference: Path
    scan: Path | None = None


@dataclass(frozen=True)
class Pairing:
    """What is compared, and what is not.

    Attributes:
        pairs: by the case's name, ascending.
        only_predictions, only_references: names without a counterpart, ascending.
    """

    pairs: tuple[Pair, ...]
    only_predictions: tuple[str, ...] = ()
    only_references: tuple[str, ...] = ()


def pair_cases(predictions: Path, references: Path, *, allow_missing: bool = False) -> Pairing:
    """Pair two files, or the files of two folders.

    In folders the case's name is the file's without the suffix; hidden files, folders and files of other types
    are passed over. Two files are one case with the reference's name, whatever the prediction's is.

    Args:
        predictions, references: two folders or two files.
        allow_missing: whether to leave out names that occur on one side only, instead of refusing them.

    Raises:
        EvaluationError: there is nothing to compare, or names do not pair up one to one.
    """
    for path in (predictions, references):
        if not path.exists():
            raise EvaluationError(f"{shown(path)}: found no such file or folder, expected label maps; check the path")
    if predictions.is_dir() != references.is_dir():
        folder, file = (predictions, references) if predictions.is_dir() else (references, predictions)
        raise EvaluationError(
            f"found a folder ({shown(folder)}) and a file ({shown(file)}), expected two folders or two files; give two "
            "of a kind"
        )
    if predictions.samefile(references):
        raise EvaluationError(f"{shown(predictions)}: found it on both sides, expected predictions and references")
    if not predictions.is_dir():
        return Pairing((Pair(case_name(references), predictions, references),))
    left, right = _volumes(predictions), _volumes(references)
    common = sorted(left.keys() & right.keys())
    alone = (sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys()))
    if not common or (any(alone) and not allow_missing):
        todo = "rename files" if not common else "rename or add files, or evaluate the common ones with --allow-missing"
        raise EvaluationError(
            f"found {_alone(alone[0], 'predictions without a reference')} and "
            f"{_alone(alone[1], 'references without a prediction')}, with {len(common)} in common, expected the same "
            f"names on both sides; {todo}"
        )
    pairs = tuple(Pair(case, left[case], right[case]) for case in common)
    return Pairing(pairs, tuple(alone[0]), tuple(alone[1]))


def with_scans(pairing: Pairing, scans: Path, *, allow_missing: bool = False) -> Pairing:
    """Give every case its scan: the file of its name, or of its name and `_0000` (nnU-Net's first channel).

    Args:
        pairing: the cases.
        scans: a folder; or, if there is one case only, its file or its DICOM folder.
        allow_missing: whether cases may stay without a scan.

    Raises:
        EvaluationError: there is no such folder, or a case has no scan in it.
    """
    if scans.is_file() and len(pairing.pairs) == 1:
        return replace(pairing, pairs=(replace(pairing.pairs[0], scan=scans),))
    if not scans.is_dir():
        raise EvaluationError(f"{shown(scans)}: found no such folder, expected one with scans; check the path")
    files = _volumes(scans, needed=len(pairing.pairs) > 1)
    if not files:
        return replace(pairing, pairs=(replace(pairing.pairs[0], scan=scans),))
    pairs = tuple(replace(pair, scan=_scan_of(pair.case, files)) for pair in pairing.pairs)
    missing = [one_line(pair.case) for pair in pairs if pair.scan is None]
    if missing and not allow_missing:
        raise EvaluationError(
            f"{shown(scans)}: found no scan for {listed(missing)}, expected a file of that name, or with "
            f"{_FIRST_CHANNEL} behind it, for every case; add it, or draw on black with --allow-missing"
        )
    return replace(pairing, pairs=pairs)


def check_grids(pairs: Iterable[Pair]) -> None:
    """Refuse cases whose files lie on different grids, from the headers alone: before any long work.

    Raises:
        EvaluationError: names the case, what differs, and both values.
        ScanError: a header cannot be read.
    """
    for pair in pairs:
        case = f"case {one_line(pair.case)!r}"
        reference = read_geometry(pair.reference)
        check_same_grid(read_geometry(pair.prediction), reference, f"{case}, the prediction")
        if pair.scan:
            check_same_grid(read_geometry(pair.scan), reference, f"{case}, the scan")


def case_name(path: Path) -> str:
    """The file's name without the suffix of a volume."""
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
