"""The data of a run: which cases to train on, all of them on the network's grid, and where patches come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.nnunet import Preprocessing
from masksam_deploy.bundle.recipe import Windows
from masksam_deploy.scan_path.tiles import window_count
from masksam_export.families.masksam.training.cases import PreparedCase, prepare_case, split_cases
from masksam_export.families.masksam.training.dataset import Dataset
from masksam_export.families.masksam.training.patches import Source
from masksam_export.families.masksam.training.planning import Fingerprint, TargetGrid
from masksam_export.families.masksam.training.settings import Settings
from masksam_export.families.masksam.training.storage import CaseStore, check_space
from masksam_export.families.masksam.training.trainer_form import CONFIGURATION
from masksam_export.plans import Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how much of it is done and to do."""


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by.

    Attributes:
        train: where training patches come from.
        validation: where validation patches come from.
        held_out: the validation cases, with their references.
        preprocessing, labels: of the plan.
        plans, dataset_json: as they are written into checkpoints.
    """

    train: list[Source]
    validation: list[Source]
    held_out: list[PreparedCase]
    preprocessing: Preprocessing
    labels: Labels
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Background first."""
        return tuple(label.name for label in self.labels.classes)

    def validation_windows(self, patch: tuple[int, int, int]) -> int:
        """Network runs that one validation takes."""
        return sum(window_count(case.frame.network_shape, patch, Windows()) for case in self.held_out)


def prepare_data(
    dataset: Dataset, plans: Mapping[str, Any], settings: Settings, folder: Path, progress: Progress
) -> Data:
    """Bring every case to the network's grid, in a file without a name below `folder`.

    Raises:
        DatasetError: a case cannot be prepared.
        OutputError: the disk is full.
    """
    plan = Plan(plans, dataset.json, CONFIGURATION)
    preprocessing = plan.preprocessing()
    names = [case.name for case in dataset.cases]
    training, validation = (names, []) if settings.fold is None else split_cases(names, fold=settings.fold)
    with CaseStore(folder) as store:
        for done, case in enumerate(dataset.cases, 1):
            store.add(prepare_case(case, dataset, preprocessing, keep_reference=case.name in validation))
            progress("preparing", done, len(names))
        prepared = {case.name: case for case in store.cases()}
    sources = {}
    for done, (name, ready) in enumerate(prepared.items(), 1):
        sources[name] = Source.of(ready)
        progress("locating classes", done, len(names))
    return Data(
        train=[sources[name] for name in training],
        validation=[sources[name] for name in validation],
        held_out=[prepared[name] for name in validation],
        preprocessing=preprocessing,
        labels=plan.labels(),
        plans=plans,
        dataset_json=dataset.json,
    )


def check_disk(fingerprint: Fingerprint, grid: TargetGrid, channels: int, classes: int, folder: Path) -> int:
    """Bytes that the prepared cases will take; refused where the disk has less.

    Raises:
        OutputError: names both.
    """
    bytes_per_voxel = 4 * channels + (1 if classes <= 128 else 2)
    needed = 0
    for spacing, shape in zip(fingerprint.spacings_zyx, fingerprint.shapes_zyx, strict=True):
        order = grid.transpose_forward
        voxels = prod(spacing[old] / new * shape[old] for old, new in zip(order, grid.spacing, strict=True))
        # The reference of a held-out case is at most uint16 on the scan's own grid.
        needed += int(bytes_per_voxel * voxels + 2 * prod(shape))
    check_space(needed, folder)
    return needed
