"""From a case of a dataset to what the network trains on, by the code that prepares scans for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError, ScanError
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.nnunet import Preprocessing, recipe_of
from masksam_deploy.bundle.recipe import Resampling
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.resample import resampler
from masksam_export.families.masksam.training.dataset import Case, Dataset, load_case

LabelArray: TypeAlias = NDArray[np.int8] | NDArray[np.int16]

# nnU-Net's resampling_fn_seg_kwargs.
LABEL_RESAMPLING = Resampling(order=1, order_z=0, force_separate_z=None)
_SLAB_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the network's grid.

    Attributes:
        name: the case's name.
        image: float32 `[C, *frame.network_shape]`, normalised, not padded to the patch.
        labels: `[*frame.network_shape]`, values 0 to K-1; int8, or int16 beyond 128 classes.
        reference: the labels as read, `[Z, Y, X]`; only for cases to validate on.
        frame: the way back to the scan's grid.
    """

    name: str
    image: NDArray[np.float32]
    labels: LabelArray
    reference: Volume | None
    frame: ScanFrame


def prepare_case(case: Case, dataset: Dataset, preprocessing: Preprocessing, *, keep_reference: bool) -> PreparedCase:
    """Read one case and bring it to the network's grid.

    Two details differ from nnU-Net's training side, so that training sees what inference will: a z-score over the
    nonzero mask leaves labelled voxels outside that mask out, and the voxels outside are background (nnU-Net
    carries them as -1 up to its augmentation, which makes them 0).

    Args:
        case: the case.
        dataset: its dataset.
        preprocessing: of the plan.
        keep_reference: also keep the labels as read.

    Raises:
        DatasetError: the case cannot be used; see `load_case`, and `masksam_deploy.scan_path.prepare.prepare`.
        MemoryLimitError: it does not fit into memory.
    """
    scan, reference = load_case(case, dataset)
    try:
        prepared = prepare(scan, recipe_of(preprocessing))
    except ScanError as error:
        raise DatasetError(f"case '{case.name}': {error}") from error
    return PreparedCase(
        name=case.name,
        image=prepared.data,
        labels=network_labels(reference, prepared.frame, len(dataset.label_names)),
        reference=reference if keep_reference else None,
        frame=prepared.frame,
    )


def network_labels(labels: Volume, frame: ScanFrame, classes: int) -> LabelArray:
    """A label map `[Z, Y, X]` on the network's grid, by nnU-Net v2.5.1's rule for segmentations.

    Each label's 0/1 map is resampled linearly (nearest across the slices where they are resampled apart), and a
    voxel takes the label where that is at least one half; where two labels are, the higher wins.
    """
    dtype = np.int8 if classes <= 128 else np.int16
    array = np.asarray(labels.array).transpose(frame.transpose)[frame.slices].astype(dtype)
    plan = resampler(
        frame.cropped_shape, frame.network_shape, frame.scan_spacing, frame.network_spacing, LABEL_RESAMPLING
    )
    if plan.is_identity:
        return np.ascontiguousarray(array)
    out = np.zeros(frame.network_shape, dtype)
    # Background need not be painted: it comes first, and what no label takes stays 0 anyway.
    present = [int(value) for value in np.unique(array) if value > 0]
    for start, stop in plan.slabs(array.shape, _SLAB_BYTES):
        source = array[plan.maps[0].used(start, stop)]
        for value in present:
            one = (source == value).astype(np.float64)
            out[start:stop][plan.planes(one, start, stop, None, np.float64) >= 0.5] = value
    return out


def split_cases(names: Sequence[str], *, fold: int, folds: int = 5, seed: int = 12345) -> tuple[list[str], list[str]]:
    """Cases to train and to validate on, as nnU-Net splits them.

    The same as `sklearn.model_selection.KFold(folds, shuffle=True, random_state=seed)` on the sorted names. With fewer
    cases than folds each case is a fold of its own.

    Returns:
        The names to train on and those to validate on, both sorted.

    Raises:
        DatasetError: fewer than two cases, the same name twice, or no such fold.
    """
    ordered = sorted(names)
    if len(ordered) < 2 or len(set(ordered)) != len(ordered):
        raise DatasetError(
            f"found {len(ordered)} cases with {len(set(ordered))} different names, expected at least 2 with a name of "
            "their own; add or rename cases"
        )
    count = min(folds, len(ordered))
    if not 0 <= fold < count:
        raise DatasetError(
            f"found fold {fold}, expected 0 to {count - 1} ({len(ordered)} cases in {count} folds); choose one of these"
        )
    indices = np.arange(len(ordered))
    np.random.RandomState(seed).shuffle(indices)
    held: set[int] = {int(index) for index in np.array_split(indices, count)[fold]}
    train = [name for index, name in enumerate(ordered) if index not in held]
    return train, [ordered[index] for index in sorted(held)]
