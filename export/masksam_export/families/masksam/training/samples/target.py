"""Where a sample data set is written: complete or not at all, and never over anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.directory import reporting_writes, staging_directory

Step = Callable[[str, int, int], None]
"""Told what comes next, and how many of how many cases are done."""
Work: TypeAlias = tuple[str, Callable[[Path], None]]
"""A case's name, and what writes it below a directory."""

SAMPLE_NAMES = ("SunnybrookLV", "HippocampusMSD")
_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "labelsDicom")
_LICENSE_FILE = "LICENSE.txt"
_DATASET_FILE = "dataset.json"


@dataclass(frozen=True)
class Prepared:
    """What was written: the place, and cases per part."""

    path: Path
    training: int
    test: int
    dicom_stacks: int


def write_sample(
    target: Path, work: Sequence[Work], description: Mapping[str, object], license_text: str, *, force: bool, step: Step
) -> None:
    """Run all of `work` in a temporary directory, which becomes `target` at the end.

    Raises:
        OutputError: the target exists, or cannot be written.
    """
    with staging_directory(target) as staging, staging_directory(target) as aside:
        with reporting_writes(target):
            for folder in _FOLDERS:
                (staging / folder).mkdir()
        for done, (name, write) in enumerate(work):
            step(name, done, len(work))
            with _speaking_of(staging, target):
                write(staging)
        with reporting_writes(target):
            for folder in _FOLDERS:
                if not any((staging / folder).iterdir()):
                    (staging / folder).rmdir()
            (staging / _LICENSE_FILE).write_text(license_text, encoding="utf-8")
            content = json.dumps(description, indent=2) + "\n"
            (staging / _DATASET_FILE).write_text(content, encoding="utf-8")
        _move_into_place(staging, target, aside / "replaced", force=force)


@contextmanager
def _speaking_of(staging: Path, target: Path) -> Iterator[None]:
    """Let messages about the temporary directory name what the user knows."""
    try:
        yield
    except OutputError as error:
        raise OutputError(str(error).replace(shown(staging), shown(target))) from error


def check_target(target: Path, *, force: bool) -> None:
    """Refuse a target that is there, unless `force` may replace it.

    Raises:
        OutputError: as said.
    """
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputError(
            f"{shown(target)}: found something there already, expected nothing; choose another name or --force"
        )
    if not _is_sample_data(target):
        raise OutputError(
            f"{shown(target)}: found something else than a sample data set, expected only that to be replaced; "
            "choose another name or remove it yourself"
        )


def _is_sample_data(target: Path) -> bool:
    """Whether nothing but an empty directory or a data set from here is lost when `target` is replaced."""
    if target.is_symlink() or not target.is_dir():
        return False
    names = {path.name for path in target.iterdir()}
    if not names:
        return True
    try:
        content = json.loads((target / _DATASET_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(content, dict) and content.get("name") in SAMPLE_NAMES
    return ours and names <= {*_FOLDERS, _LICENSE_FILE, _DATASET_FILE}


def _move_into_place(staging: Path, target: Path, old: Path, *, force: bool) -> None:
    """Rename the finished data set to `target`; one that is there makes way to `old`, or comes back on an error."""
    check_target(target, force=force)
    with reporting_writes(target):
        try:
            if target.exists():
                target.rename(old)
            staging.rename(target)
        finally:
            if old.exists() and not os.path.lexists(target):
                old.rename(target)
