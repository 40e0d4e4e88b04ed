"""Running both sides on every scan, and what the scans say together."""

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
"""Called with what is being run, and the network runs done and in all for it."""


@dataclass(frozen=True)
class ScanComparison:
    """One scan and how the two label maps of it overlap."""

    scan: Path
    overlap: Overlap


@dataclass(frozen=True)
class ClassExtremes:
    """The worst of one class over all scans.

    Attributes:
        value, name: of the class.
        counted: scans in which either side found it.
        lowest_dice, lowest_dice_scan: None if it counts nowhere.
        most_disagreeing_ml: 0 if it counts nowhere.
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
        a, b: the sides.
        settings_a, settings_b: what really ran, as in `Report.settings`.
        scans: in the order given, at least one.
        classes: the worst of each class, in ascending order of the values.
    """

    a: Side
    b: Side
    settings_a: Mapping[str, Any]
    settings_b: Mapping[str, Any]
    scans: tuple[ScanComparison, ...]
    classes: tuple[ClassExtremes, ...]

    @property
    def lowest_agreement(self) -> ScanComparison:
        """The scan with the smallest share of voxels of the same label."""
        return min(self.scans, key=lambda scan: scan.overlap.agreement)

    @property
    def lowest_foreground_agreement(self) -> ScanComparison | None:
        """The same over the voxels that either side calls foreground; None if there are none in any scan."""
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
) -> Comparison:
    """Segment every scan with both sides and compare the label maps.

    One network is in memory at a time; what A found waits, compressed, for B.

    Args:
        a, b: bundles of one input channel with the same labels.
        scans: at least one; each is what `read_volume` reads.
        threads: for the network; by default all cores.
        max_ram: bytes that a scan may take besides the network.
        progress: told about every network run.

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
                labels, report = segmenter(volume, partial(progress, what) if progress else None)
                settings[name] = report.settings
                yield path, labels

    if a != b:
        # What B lacks (a GPU, say) must not show up only after all of A's work.
        b.open(threads=threads, max_ram=max_ram).close()
    kept = [PackedLabels.of(labels) for _, labels in run(a, "A")]
    compared = [
        ScanComparison(path, _overlap(first, labels, a.label_names, path))
        for first, (path, labels) in zip(kept, run(b, "B"), strict=True)
    ]
    return Comparison(a, b, settings["A"], settings["B"], tuple(compared), _extremes(compared))


def _check_scans(paths: Sequence[Path]) -> None:
    """Refuse what is plainly wrong before minutes of work on the scans before it."""
    if not paths:
        raise ScanError("found no scans, expected at least one; name some")
    different = {resolved(path, ScanError) for path in paths}
    missing = next((path for path in paths if not path.exists()), None)
    if missing:
        raise ScanError(f"{shown(missing)}: found no such file, expected a scan; check the path")
    if len(different) < len(paths):
        raise ScanError("found one scan given twice, expected different ones; name each once")


def _overlap(first: PackedLabels, labels: Volume, names: Mapping[int, str], path: Path) -> Overlap:
    if labels.geometry != first.geometry:
        raise ScanError(f"{shown(path)}: found another grid than a moment ago, expected the same; compare again")
    return overlap(first.array, labels.array, names, labels.geometry.voxel_volume_ml)


def _extremes(scans: Sequence[ScanComparison]) -> tuple[ClassExtremes, ...]:
    return tuple(
        _extreme([(scan.scan, entry) for scan, entry in zip(scans, entries, strict=True)])
        for entries in zip(*(scan.overlap.classes for scan in scans), strict=True)
    )


def _extreme(found: Sequence[tuple[Path, ClassOverlap]]) -> ClassExtremes:
    """The worst of one class, given with its scans."""
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
