"""The Dice gate: what a smaller precision costs on validation scans, and whether that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Array, Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.io import read_volume
from masksam_deploy.io.cases import ScanFiles, digest, without_suffix
from masksam_deploy.io.itk import SCAN_SUFFIXES
from masksam_deploy.metrics.label_maps import PackedLabels, check_same_grid, read_label_map
from masksam_deploy.metrics.overlap import dice_per_class, overlap
from masksam_deploy.runtimes import Network
from masksam_deploy.runtimes.spec import Precision
from masksam_deploy.scan_path.report import label_names
from masksam_deploy.scan_path.segmenter import Segmenter

Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limits:
    """How much Dice may be lost.

    Attributes:
        mean: over all cases and classes.
        worst_class: the mean over cases of the class that loses most.
    """

    mean: float
    worst_class: float


LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(0.001, 0.003),
    "fp16": Limits(0.001, 0.003),
    "bf16": Limits(0.001, 0.003),
    "int8": Limits(0.005, 0.010),
}


DRIFT = 0.05
"""Dice by which an engine may differ from float32 where a reference says that it is no worse."""


@dataclass(frozen=True)
class Case:
    """One validation scan.

    Attributes:
        scan: its files.
        reference: a label map on its grid, if there is one.
    """

    scan: ScanFiles
    reference: Path | None = None


@dataclass(frozen=True)
class CaseResult:
    """What became of one case.

    Attributes:
        case: its name.
        agreement: share of voxels with the same label as in float32.
        between: Dice of each class between the two precisions; None where both are empty.
        float32: Dice of float32 against the reference, if there is one.
        engine: Dice of the smaller precision against the reference.
    """

    case: str
    agreement: float
    between: dict[str, float | None]
    float32: dict[str, float | None] | None = None
    engine: dict[str, float | None] | None = None

    def losses(self) -> dict[str, float]:
        """Dice lost per class that occurs: against the reference, else against float32. A gain counts as 0.

        With a reference, what differs from float32 by more than `DRIFT` is lost all the same: a reference may be empty
        or may not fit, and then it would let everything pass.
        """
        if self.float32 is None or self.engine is None:
            return {name: 1.0 - dice for name, dice in self.between.items() if dice is not None}
        lost: dict[str, float] = {}
        for name, between in self.between.items():
            before, after = self.float32[name], self.engine[name]
            drift = 0.0 if between is None else max(0.0, 1.0 - between - DRIFT)
            if before is not None or after is not None:
                lost[name] = max(drift, (before or 0.0) - (after or 0.0))
        return lost


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        limits: what was allowed.
        cases: one result a scan.
        unjudged: classes that no case shows.
    """

    limits: Limits
    cases: tuple[CaseResult, ...]
    unjudged: tuple[str, ...] = field(default=())

    @property
    def class_losses(self) -> dict[str, float]:
        """Mean loss per class over the cases that show it."""
        per_class: dict[str, list[float]] = {}
        for case in self.cases:
            for name, loss in case.losses().items():
                per_class.setdefault(name, []).append(loss)
        return {name: fmean(losses) for name, losses in per_class.items()}

    @property
    def mean_loss(self) -> float:
        """Over all cases and classes."""
        return fmean(loss for case in self.cases for loss in case.losses().values())

    @property
    def worst_class(self) -> tuple[str, float]:
        """The class that loses most, and how much."""
        return max(self.class_losses.items(), key=lambda item: item[1])

    @property
    def worst_case(self) -> tuple[str, str, float]:
        """The case and class that lose most, and how much."""
        found = [(case.case, name, loss) for case in self.cases for name, loss in case.losses().items()]
        return max(found, key=lambda item: item[2])

    @property
    def passed(self) -> bool:
        """Whether the losses are within the limits."""
        return self.mean_loss <= self.limits.mean and self.worst_class[1] <= self.limits.worst_class

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "passed": self.passed,
            "limits": {"mean_dice_loss": self.limits.mean, "worst_class_dice_loss": self.limits.worst_class},
            "mean_dice_loss": self.mean_loss,
            "class_dice_loss": self.class_losses,
            "worst_case": dict(zip(("case", "class", "dice_loss"), self.worst_case, strict=True)),
            "lowest_agreement": min(case.agreement for case in self.cases),
            "classes_in_no_case": list(self.unjudged),
            "cases": [
                {
                    "case": case.case,
                    "agreement": case.agreement,
                    "dice_with_float32": case.between,
                    "dice_float32_with_reference": case.float32,
                    "dice_with_reference": case.engine,
                }
                for case in self.cases
            ],
        }


class Gate:
    """Judges networks against the float32 graphs on the same scans; the float32 label maps are made once.

    Mirroring is off: averaging over mirrored windows would hide some of what is lost.

    Args:
        bundle: with the float32 graphs.
        cases: validation scans, at least one.
        threads: for the network; by default all cores.
        progress: told about every network run.

    Raises:
        EngineError: no cases.
        ScanError: a scan or reference cannot be read or does not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        cases: Sequence[Case],
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not cases:
            raise EngineError(
                "found no validation scans, expected at least one: name some with --validation (with references if you "
                "have them), export the bundle with --validation, or type --no-gate"
            )
        self.bundle = bundle
        self.cases = tuple(cases)
        self.hashes: dict[str, str] = {}
        """SHA-256 of every case's voxels and grid, by name."""
        self._names = label_names(bundle.manifest.labels)
        self._threads = threads
        self._progress = progress
        with Segmenter(bundle, tta=False, threads=threads) as segmenter:
            self._float32 = [PackedLabels.of(self._labels(segmenter, case, "float32")) for case in self.cases]

    def judge(self, network: Network, limits: Limits, title: str) -> Verdict:
        """Segment every case with a network, which is closed, and compare.

        Args:
            network: takes and gives what the bundle's graphs do.
            limits: what may be lost.
            title: of the network, for the progress.

        Raises:
            EngineError: no case shows any class.
            BackendError: the network failed.
        """
        results = []
        with Segmenter(self.bundle, network=network, tta=False) as segmenter:
            for case, packed in zip(self.cases, self._float32, strict=True):
                labels = self._labels(segmenter, case, title)
                results.append(self._compared(case, packed.array, labels))
        seen = {name for result in results for name in result.losses()}
        if not seen:
            raise EngineError(
                "found none of the bundle's classes in any validation scan, expected scans that show what it segments; "
                "name others"
            )
        unjudged = [name for value, name in self._names.items() if value != 0 and name not in seen]
        return Verdict(limits, tuple(results), tuple(unjudged))

    def _labels(self, segmenter: Segmenter, case: Case, title: str) -> Volume:
        what = f"gate: {title} on {case.scan.name}"
        scan = read_volume(case.scan.paths)
        self.hashes[case.scan.name] = digest(scan)
        return segmenter(scan, partial(self._progress, what) if self._progress else None).labels

    def _compared(self, case: Case, float32: Array, labels: Volume) -> CaseResult:
        found = overlap(float32, labels.array, self._names, labels.geometry.voxel_volume_ml)
        result = CaseResult(
            case=case.scan.name,
            agreement=found.agreement,
            between={entry.name: entry.dice for entry in found.classes},
        )
        if case.reference is None:
            return result
        reference = read_label_map(case.reference, self._names)
        check_same_grid(reference.geometry, labels.geometry, shown(case.reference), "its scan")
        return CaseResult(
            result.case,
            result.agreement,
            result.between,
            float32=self._dice(float32, reference.array),
            engine=self._dice(labels.array, reference.array),
        )

    def _dice(self, labels: Array, reference: Array) -> dict[str, float | None]:
        dice = dice_per_class(labels, reference, self._names)
        return {self._names[value]: value_dice for value, value_dice in dice.items()}


def validation_cases(bundle: Bundle) -> list[Case]:
    """The cases that a bundle carries."""
    return [
        Case(
            ScanFiles(case.name, tuple(bundle.path / name for name in case.scans)),
            bundle.path / case.reference if case.reference else None,
        )
        for case in bundle.manifest.validation
    ]


def with_references(scans: Sequence[ScanFiles], references: Path | None) -> list[Case]:
    """Pair scans with reference label maps of the same name.

    Args:
        scans: from `find_scans`.
        references: a label map for a single scan, or a folder with `NAME.nii.gz` per scan; None for no references.

    Raises:
        EngineError: a scan has no reference there.
    """
    if references is None:
        return [Case(scan) for scan in scans]
    if references.is_file() and len(scans) == 1:
        return [Case(scans[0], references)]
    cases = []
    for scan in scans:
        case = without_suffix(scan.name).removesuffix("_0000")
        found = [path for path in (references / f"{case}{suffix}" for suffix in SCAN_SUFFIXES) if path.is_file()]
        if len(found) != 1:
            raise EngineError(
                f"{shown(references)}: found {len(found) or 'no'} reference(s) for {shown(scan.name)}, expected one, "
                f"{case}.nii.gz; add it, or leave the references out"
            )
        cases.append(Case(scan, found[0]))
    return cases


def limits_of(
    precisions: Mapping[str, Precision], mean: float | None = None, worst_class: float | None = None
) -> Limits:
    """What the smallest precision among the graphs is allowed to lose; numbers that are given win."""
    default = max((LIMITS[precision] for precision in precisions.values()), key=lambda limits: limits.mean)
    return Limits(default.mean if mean is None else mean, default.worst_class if worst_class is None else worst_class)
