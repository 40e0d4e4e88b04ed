"""Running both sides on every scan, and the worst results over all scans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.comparison.side import Side, check_comparable
from masksam_deploy.io import read_volume
from masksam_deploy.metrics.label_maps import PackedLabels
from masksam_deploy.metrics.overlap import ClassOverlap, Overlap, overlap
from masksam_deploy.scan_path.segmenter import BYTES_PER_VOXEL

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of what is run, and how many of how many network runs of it are done."""
Tell: TypeAlias = Callable[[str], None]
"""Called with each warning of a scan."""


@dataclass(frozen=True)
class ScanComparison:
    """One scan, and how its two label maps overlap."""

    scan: Path
    overlap: Overlap


@dataclass(frozen=True)
class ClassExtremes:
    """The worst of one class over all scans.

    Attributes:
        value, name: the label value and the name of the class.
        counted: number of scans in which either side found the class.
        lowest_dice, lowest_dice_scan: the lowest Dice and its scan; None if the class was found in no scan.
        most_disagreeing_ml: the largest volume in which the sides disagree, in millilitres; 0 if the class was found in
            no scan.
    """

    value: int
    name: str
    counted: int
    lowest_dice: float | None
    lowest_dice_scan: Path | None
    most_disagreeing_ml: float


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        a, b: the two sides.
        settings_a, settings_b: the settings that were really used, as in `Report.settings`.
        scans: one result per scan, in the order given; at least one.
        classes: the worst results of each class, in ascending order of the label values.
    """

    a: Side
    b: Side
    settings_a: Mapping[str, Any]
    settings_b: Mapping[str, Any]
    scans: tuple[ScanComparison, ...]
    classes: tuple[ClassExtremes, ...]

    @property
    def lowest_agreement(self) -> ScanComparison:
        """The scan in which the smallest share of voxels has the same label on both sides."""
        return min(self.scans, key=lambda scan: scan.overlap.agreement)

    @property
    def lowest_foreground_agreement(self) -> ScanComparison | None:
        """The same over voxels that are foreground on either side; None if no scan has foreground."""
        found = [scan for scan in self.scans if scan.overlap.foreground_agreement is not None]
        return min(found, key=lambda scan: scan.overlap.foreground_agreement or 0.0, default=None)


def compare(
    a: Side,
    b: Side,
    scans: Sequence[str | Path],
    *,
    threads: int | None = None,
    max_ram: int | None = None,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Comparison:
    """Segment every scan with both sides and compare the label maps.

    One network is in memory at a time: A segments all scans, and its label maps are kept, compressed, until B has
    segmented the same scans.

    Args:
        a, b: two sides whose bundles have one input channel and the same labels.
        scans: at least one scan; each is a file or folder that `read_volume` reads.
        threads: CPU threads for the network; by default all cores.
        max_ram: bytes of memory that a scan may use besides the network; None for no limit.
        progress: called for every network run.
        tell: called once with every warning of a scan, with the scan's name before it.

    Returns:
        How the label maps of every scan overlap, and the worst of each class.

    Raises:
        BundleError: the sides cannot be compared.
        ScanError: no scans, or one that cannot be read or does not fit the model.
        MemoryLimitError, BackendError, MissingDependencyError: as `Segmenter`.
    """
    check_comparable(a, b)
    paths = [Path(scan) for scan in scans]
    _check_scans(paths)
    settings: dict[str, dict[str, Any]] = {}

    def run(side: Side, name: str) -> Iterator[tuple[Path, Volume]]:
        with side.open(threads=threads, max_ram=max_ram) as segmenter:
            for number, path in enumerate(paths, start=1):
                what = f"{name}, scan {number} of {len(paths)}"
                volume = read_volume(path, max_voxels=max_ram // BYTES_PER_VOXEL if max_ram else None)
                if tell and name == "A":
                    for warning in volume.warnings:
                        tell(f"{path.name}: {warning}")
                labels, report = segmenter(volume, partial(progress, what) if progress else None)
                settings[name] = report.settings
                yield path, labels

    if a != b:
        # If B cannot run here, because of a missing GPU for instance, this must not show only after all of A's work.
        b.open(threads=threads, max_ram=max_ram).close()
    kept = [PackedLabels.of(labels) for _, labels in run(a, "A")]
    compared = [
        ScanComparison(path, _overlap(first, labels, a.label_names, path))
        for first, (path, labels) in zip(kept, run(b, "B"), strict=True)
    ]
    return Comparison(a, b, settings["A"], settings["B"], tuple(compared), _extremes(compared))


def _check_scans(paths: Sequence[Path]) -> None:
    """Refuse missing and repeated scans before minutes of work on others."""
    if not paths:
        raise ScanError("found no scans, expected at least one; name one or more")
    different = {resolved(path, ScanError) for path in paths}
    missing = next((path for path in paths if not path.exists()), None)
    if missing:
        raise ScanError(f"{shown(missing)}: found no such file, expected a scan; check the path")
    if len(different) < len(paths):
        raise ScanError("found one scan given twice, expected different ones; name each once")


def _overlap(first: PackedLabels, labels: Volume, names: Mapping[int, str], path: Path) -> Overlap:
    if labels.geometry != first.geometry:
        raise ScanError(
            f"{shown(path)}: found that the grid of the scan changed between the two runs, expected the same grid; "
            "compare again"
        )
    return overlap(first.array, labels.array, names, labels.geometry.voxel_volume_ml)


def _extremes(scans: Sequence[ScanComparison]) -> tuple[ClassExtremes, ...]:
    return tuple(
        _extreme([(scan.scan, entry) for scan, entry in zip(scans, entries, strict=True)])
        for entries in zip(*(scan.overlap.classes for scan in scans), strict=True)
    )


def _extreme(found: Sequence[tuple[Path, ClassOverlap]]) -> ClassExtremes:
    """The worst results of one class, from its results in every scan."""
    dice = [(entry.dice, scan) for scan, entry in found if entry.dice is not None]
    lowest, where = min(dice, key=lambda pair: pair[0], default=(None, None))
    return ClassExtremes(
        value=found[0][1].value,
        name=found[0][1].name,
        counted=len(dice),
        lowest_dice=lowest,
        lowest_dice_scan=where,
        most_disagreeing_ml=max(entry.disagreeing_ml for _, entry in found),
    )
