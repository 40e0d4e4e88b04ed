"""Which scans a folder or a list of paths holds, and one hash per scan."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.paths import check_name, resolved
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.io.dicom import check_kind, is_dicom_file, is_junk
from masksam_deploy.io.itk import scan_suffix
from masksam_deploy.io.read import files_of

_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>[0-9]{4})")


@dataclass(frozen=True)
class ScanFiles:
    """One scan: a file (or a folder with a DICOM series) per input channel, in the model's order.

    Attributes:
        name: for people and reports.
        paths: one per channel.
    """

    name: str
    paths: tuple[Path, ...]

    @property
    def case(self) -> str:
        """What its results are called, as in nnU-Net: without the type of the file and the number of the channel."""
        return without_suffix(self.name).removesuffix("_0000")


def find_scans(
    paths: Sequence[Path], channels: int, aside: Collection[Path] = (), tell: Callable[[str], None] | None = None
) -> list[ScanFiles]:
    """The scans at some paths.

    A path is a file, a folder with one DICOM series, or a folder of scans: files (nnU-Net's `CASE_0000.nii.gz` names
    where the model has several channels) or folders with one DICOM series each. Nothing that may be a scan is passed
    over: a folder that holds both is refused, and so is a link that leads nowhere.

    Args:
        paths: where to look.
        channels: that the model takes.
        aside: resolved paths that are no scans, wherever they lie, such as the folder of the results.
        tell: called with a sentence about files that are no scans and are passed over, other than hidden ones and those
            that belong to a scan's header.

    Raises:
        ScanError: nothing is there, a folder holds things of two kinds, or a case lacks a channel or has one too many.
    """
    entries: list[Path] = []
    for path in paths:
        check_name(path, ScanError)
        try:
            if not os.path.lexists(path):
                raise ScanError(
                    f"{shown(path)}: found nothing there, expected a scan or a folder of scans; check the path"
                )
            entries.extend(_entries_at(path, aside, tell))
        except OSError as error:
            raise ScanError(
                f"{shown(error.filename or path)}: cannot be read ({error.strerror}), expected a scan or a folder of "
                "scans; check the permissions"
            ) from error
    if not entries:
        raise ScanError(f"found no scan in {', '.join(shown(path) for path in paths)}, expected at least one")
    return _of_one_channel(entries) if channels == 1 else _of_channels(entries, channels)


def digest(scan: Volume) -> str:
    """SHA-256 of a scan's voxels and grid, as they were read: whatever the files are called or consist of."""
    total = hashlib.sha256(repr(scan.geometry).encode())
    total.update(np.ascontiguousarray(scan.channels_czyx).data)
    return total.hexdigest()


def without_suffix(name: str) -> str:
    """A file's name without the ending of an image format; other dots belong to the name."""
    return name[: len(name) - len(scan_suffix(Path(name)) or "")]


def _entries_at(path: Path, aside: Collection[Path], tell: Callable[[str], None] | None) -> list[Path]:
    """Files, or folders with a DICOM series."""
    check_kind(path)
    if resolved(path, ScanError) in aside:
        return []
    if path.is_file():
        return [path]
    inside = sorted(entry for entry in path.iterdir() if not is_junk(entry.name))
    for entry in inside:
        check_kind(entry)
    files = [entry for entry in inside if entry.is_file()]
    images, others = [file for file in files if scan_suffix(file)], [file for file in files if not scan_suffix(file)]
    folders = [entry for entry in inside if entry.is_dir() and resolved(entry, ScanError) not in aside]
    slices = list(islice(filter(_is_slice, others), 1))  # thousands may follow
    kinds = {"image files": images[:1], "DICOM slices": slices, "folders": folders[:1]}
    found = [f"{kind} (such as {shown(first[0].name)})" for kind, first in kinds.items() if first]
    if len(found) > 1:
        raise ScanError(
            f"{shown(path)}: found {' and '.join(found)}, expected either files, one a scan, or folders with one DICOM "
            "series each, or the slices of one series; name the scans themselves, or move the others away"
        )
    if tell and (images or folders):
        _tell_passed_over(path, images, others, tell)
    return images or folders or [path]


def _tell_passed_over(
    folder: Path, images: Sequence[Path], others: Sequence[Path], tell: Callable[[str], None]
) -> None:
    """Name files that are no scans, so that a scan of an unknown type is not missed."""
    headers = [image for image in images if image.suffix.lower() in (".mhd", ".nhdr")]
    stems = {header.stem for header in headers}
    left = [other for other in others if other.name.split(".")[0] not in stems and other.stem not in stems]
    voxels = {file for header in headers for file in _named_by(header)} if left else set()
    names = [other.name for other in left if other not in voxels]
    if names:
        listed = ", ".join(one_line(name, 80) for name in names[:8]) + (", ..." if len(names) > 8 else "")
        tell(f"{shown(folder)}: {len(names)} file(s) of other types were passed over: {listed}")


def _named_by(header: Path) -> list[Path]:
    """The header and the file with its voxels; none where it cannot be read, which is said when it is segmented."""
    try:
        return files_of(header)
    except (ScanError, OSError):
        return []


def _is_slice(file: Path) -> bool:
    """Whether it is DICOM."""
    return file.suffix.lower() == ".dcm" or is_dicom_file(file)


def _of_one_channel(paths: Sequence[Path]) -> list[ScanFiles]:
    known = {(path.parent, without_suffix(path.name)) for path in paths}
    for path in paths:
        match = _CHANNEL.fullmatch(without_suffix(path.name))
        if match is None or not int(match["channel"]) or path.is_dir():
            continue
        first = f"{match['case']}_0000"
        if (path.parent, first) in known:
            raise ScanError(
                f"{shown(path)}: found a second channel beside {shown(first)}, expected scans of one channel, as the "
                "model takes; name the files of its channel only"
            )
    # A name also for '.' and '..'.
    return [ScanFiles(os.path.basename(os.path.abspath(path)), (path,)) for path in paths]  # noqa: PTH100, PTH119


def _of_channels(paths: Sequence[Path], channels: int) -> list[ScanFiles]:
    cases: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = _CHANNEL.fullmatch(without_suffix(path.name))
        if match is None:
            raise ScanError(
                f"{shown(path)}: found a name without a channel, expected CASE_0000 to CASE_{channels - 1:04d} for the "
                f"model's {channels} input channels"
            )
        case = cases[path.parent, match["case"]]
        other = case.setdefault(int(match["channel"]), path)
        if other != path:
            raise ScanError(
                f"{shown(path)}: found a second file of that channel beside {shown(other.name)}, expected one; remove "
                "one of them"
            )
    for (_, name), case in cases.items():
        if sorted(case) != list(range(channels)):
            raise ScanError(
                f"case {shown(name)}: found channels {sorted(case)}, expected 0 to {channels - 1}; add what is missing"
            )
    return [ScanFiles(name, tuple(case[c] for c in range(channels))) for (_, name), case in cases.items()]
