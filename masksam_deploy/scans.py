"""Which scans a folder or a list of paths holds, and one hash per scan."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksam_deploy.errors import ScanError
from masksam_deploy.text import shown
from masksam_deploy.volume import Volume

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
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


def find_scans(paths: Sequence[Path], channels: int) -> list[ScanFiles]:
    """The scans at some paths.

    A path is a file, a folder with one DICOM series, or a folder of scans: files (nnU-Net's `CASE_0000.nii.gz` names
    where the model has several channels) or folders with one DICOM series each.

    Raises:
        ScanError: nothing is there, or a case lacks a channel.
    """
    scans: list[ScanFiles] = []
    for path in paths:
        try:
            if not path.exists():
                raise ScanError(
                    f"{shown(path)}: found nothing there, expected a scan or a folder of scans; check the path"
                )
            scans.extend(_scans_at(path, channels))
        except OSError as error:
            raise ScanError(
                f"{shown(path)}: cannot be read ({error.strerror}), expected a scan or a folder of scans; check the "
                "permissions"
            ) from error
    if not scans:
        raise ScanError(f"found no scan in {', '.join(shown(path) for path in paths)}, expected at least one")
    return scans


def digest(scan: Volume) -> str:
    """SHA-256 of a scan's voxels and grid, as they were read: whatever the files are called or consist of."""
    total = hashlib.sha256(repr(scan.geometry).encode())
    total.update(np.ascontiguousarray(scan.channels_czyx).data)
    return total.hexdigest()


def without_suffix(name: str) -> str:
    """A file's name without the ending of an image format; other dots belong to the name."""
    suffix = next((ending for ending in SUFFIXES if name.lower().endswith(ending)), "")
    return name[: len(name) - len(suffix)]


def _scans_at(path: Path, channels: int) -> list[ScanFiles]:
    if path.is_file():
        return _grouped([path], channels)
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file() and entry.name.lower().endswith(SUFFIXES)]
    folders = [entry for entry in entries if entry.is_dir()]
    if files:
        return _grouped(files, channels)
    if folders:
        return _grouped(folders, channels)
    return _grouped([path], channels)  # a DICOM series


def _grouped(paths: list[Path], channels: int) -> list[ScanFiles]:
    if channels == 1:
        for path in paths:
            match = _CHANNEL.fullmatch(without_suffix(path.name))
            if match and int(match["channel"]) and len(paths) > 1:
                raise ScanError(
                    f"{shown(path)}: found a second channel, expected scans of one channel, as the model takes; name "
                    "the files of its channel only"
                )
        # A name also for '.' and '..'.
        return [ScanFiles(os.path.basename(os.path.abspath(path)), (path,)) for path in paths]  # noqa: PTH100, PTH119
    cases: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = _CHANNEL.fullmatch(without_suffix(path.name))
        if match is None:
            raise ScanError(
                f"{shown(path)}: found a name without a channel, expected CASE_0000 to CASE_{channels - 1:04d} for the "
                f"model's {channels} input channels"
            )
        cases[match["case"]][int(match["channel"])] = path
    for case, found in cases.items():
        if sorted(found) != list(range(channels)):
            raise ScanError(
                f"case {shown(case)}: found channels {sorted(found)}, expected 0 to {channels - 1}; add what is missing"
            )
    return [ScanFiles(case, tuple(found[c] for c in range(channels))) for case, found in cases.items()]
