"""Plans a training as nnU-Net v2.5.1 does: measure the dataset, choose a grid, write it down as `plans.json`.

The rules are those of `DatasetFingerprintExtractor` and `ExperimentPlanner`; patch and batch, which nnU-Net derives
from a U-Net's memory, are the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError, MaskSamError
from masksam_deploy.bundle.nnunet import NormalizationScheme
from masksam_deploy.io.grid import MAX_SPACING_MM, MIN_SPACING_MM, times
from masksam_deploy.scan_path.frame import nonzero_box
from masksam_deploy.scan_path.resample import ANISOTROPY_THRESHOLD, Shape3, Spacing3
from masksam_export.families.masksam.training.dataset import Case, Dataset, load_case
from masksam_export.plans import RESAMPLING_FUNCTION

Progress = Callable[[int, int], None]

# nnU-Net draws ten times as many. This bounds memory (40 MB a channel), and blurs a mean by some 1/3000 of the std.
INTENSITY_SAMPLES = 10_000_000
_SAMPLE_SEED = 1234  # nnU-Net's
_REPORTED = 10
# Below this share of the volume left by cropping, z-scores are taken over the nonzero mask only.
_MASK_BELOW = 3 / 4
_SCHEMES: dict[str, NormalizationScheme] = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}


@dataclass(frozen=True)
class Intensities:
    """One channel's foreground intensities over all cases, each case counting the same."""

    min: float
    max: float
    mean: float
    median: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset measures; tuples over cases are in the order of `names`.

    Attributes:
        names: the cases.
        spacings_zyx: mm, as stored.
        shapes_zyx: voxels, after cropping to nonzero.
        relative_sizes: share of the voxels that cropping left.
        intensities: per channel, of all voxels with a label other than background.
        class_voxels: per class, the voxels over all cases, inside the crop.
        class_cases: per class, the cases that hold it.
    """

    names: tuple[str, ...]
    spacings_zyx: tuple[Spacing3, ...]
    shapes_zyx: tuple[Shape3, ...]
    relative_sizes: tuple[float, ...]
    intensities: tuple[Intensities, ...]
    class_voxels: tuple[int, ...]
    class_cases: tuple[int, ...]


@dataclass(frozen=True)
class TargetGrid:
    """The grid to train on, axes in transposed order.

    Attributes:
        transpose_forward: transposed axis i is array axis `transpose_forward[i]` (axes z, y, x).
        spacing: mm.
        median_size: voxels of the median case at that spacing.
    """

    transpose_forward: tuple[int, int, int]
    spacing: Spacing3
    median_size: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class _Measured:
    """One case: its part of the fingerprint, and `samples` `[C, n]` of its foreground."""

    spacing_zyx: Spacing3
    shape_zyx: Shape3
    relative_size: float
    samples: NDArray[np.float32]
    class_voxels: NDArray[np.int64]


def measure(dataset: Dataset, progress: Progress | None = None) -> Fingerprint:
    """Read and check every case of a dataset, one at a time, and measure it.

    Args:
        dataset: what to measure.
        progress: called with (done, total) cases.

    Raises:
        DatasetError: cases that cannot be used, all in one message; or a class that no case holds.
    """
    total = len(dataset.cases)
    measured: list[_Measured] = []
    problems: list[str] = []
    for done, case in enumerate(dataset.cases, start=1):
        try:
            measured.append(_measure_case(case, dataset, INTENSITY_SAMPLES // total))
        except MaskSamError as error:
            problems.append(str(error))
        if progress:
            progress(done, total)
    if problems:
        more = f" | and {len(problems) - _REPORTED} more" if len(problems) > _REPORTED else ""
        raise DatasetError(
            f"{len(problems)} of {total} cases cannot be trained on, repair or remove them: "
            f"{' | '.join(problems[:_REPORTED])}{more}"
        )
    voxels = np.array([case.class_voxels for case in measured])
    _refuse_absent(voxels, dataset)
    return Fingerprint(
        names=tuple(case.name for case in dataset.cases),
        spacings_zyx=tuple(case.spacing_zyx for case in measured),
        shapes_zyx=tuple(case.shape_zyx for case in measured),
        relative_sizes=tuple(case.relative_size for case in measured),
        intensities=tuple(
            _intensities(np.concatenate([case.samples[channel] for case in measured]))
            for channel in range(len(dataset.channel_names))
        ),
        class_voxels=tuple(int(count) for count in voxels.sum(axis=0)),
        class_cases=tuple(int(count) for count in (voxels > 0).sum(axis=0)),
    )


def _measure_case(case: Case, dataset: Dataset, samples: int) -> _Measured:
    scan, labels = load_case(case, dataset)
    channels = scan.channels_czyx
    box = tuple(slice(*extent) for extent in nonzero_box(channels))
    inside = np.asarray(labels.array, np.uint16)[box]
    every_channel = (slice(None), *box)
    return _Measured(
        spacing_zyx=scan.geometry.spacing_zyx,
        shape_zyx=cast(Shape3, inside.shape),
        relative_size=inside.size / prod(scan.geometry.shape_zyx),
        samples=_foreground(np.asarray(channels, np.float32)[every_channel], inside > 0, samples),
        class_voxels=np.bincount(inside.ravel(), minlength=len(dataset.label_names)),
    )


def _foreground(channels: NDArray[np.float32], mask: NDArray[np.bool_], samples: int) -> NDArray[np.float32]:
    """As many intensities from every case, drawn with replacement, so that large structures do not outweigh."""
    random = np.random.RandomState(_SAMPLE_SEED)
    drawn = []
    for channel in channels:
        values = channel[mask]
        drawn.append(random.choice(values, samples, replace=True) if values.size else values)
    return np.stack(drawn)


def _intensities(values: NDArray[np.float32]) -> Intensities:
    low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
    return Intensities(
        min=float(values.min()),
        max=float(values.max()),
        mean=float(values.mean(dtype=np.float64)),
        median=float(median),
        std=float(values.std(dtype=np.float64)),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _refuse_absent(voxels: NDArray[np.int64], dataset: Dataset) -> None:
    absent = [f"{value} {dataset.label_names[value]}" for value in np.flatnonzero(voxels.sum(axis=0) == 0)]
    if absent:
        raise DatasetError(
            f"{dataset.name}: found no voxel of label {', '.join(absent[:_REPORTED])} in any case, expected every "
            "label of dataset.json: a class without examples cannot be learnt; add cases, or remove it and renumber"
        )


def target_grid(fingerprint: Fingerprint, spacing: Spacing3 | None = None) -> TargetGrid:
    """Choose axes and spacing as nnU-Net's `ExperimentPlanner`.

    The spacing is the median over the cases. If one axis is coarse (more than 3 times the larger of the other two)
    and short (its median size times 3 is below the smaller of the others'), it gets the 10th percentile of its
    spacings instead, but not less than the other axes' (plus 1e-5 mm): thick slices are better interpolated
    than thrown together. The axis of the largest spacing comes first, the others keep their order.

    Args:
        fingerprint: the measured dataset.
        spacing: mm in transposed order, to use in place of the chosen one.

    Raises:
        DatasetError: `spacing` is none that a scan can have.
    """
    if spacing is not None and not all(MIN_SPACING_MM <= edge <= MAX_SPACING_MM for edge in spacing):
        raise DatasetError(
            f"found a target spacing of {times(spacing)} mm, expected {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm "
            "along every axis; choose another"
        )
    chosen = _target_spacing(fingerprint)
    first = int(np.argmax(chosen))
    second, third = (axis for axis in range(3) if axis != first)
    forward = [first, second, third]
    target = np.array(spacing) if spacing is not None else chosen[forward]
    sizes = [
        [round(old / new * size) for old, new, size in zip(spacings[forward], target, shape[forward], strict=True)]
        for spacings, shape in zip(np.array(fingerprint.spacings_zyx), np.array(fingerprint.shapes_zyx), strict=True)
    ]
    return TargetGrid(
        transpose_forward=(first, second, third),
        spacing=_three(target),
        median_size=_three(np.median(sizes, axis=0)),
    )


def _target_spacing(fingerprint: Fingerprint) -> NDArray[np.float64]:
    """`determine_fullres_target_spacing`, in the order of the stored axes."""
    spacings = np.array(fingerprint.spacings_zyx, dtype=np.float64)
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile(np.array(fingerprint.shapes_zyx), 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = target[worst] > ANISOTROPY_THRESHOLD * target[others].max()
    short = size[worst] * ANISOTROPY_THRESHOLD < size[others].min()
    if coarse and short:
        finer = np.percentile(spacings[:, worst], 10)
        floor = target[others].max()
        target[worst] = finer if finer >= floor else floor + 1e-5
    return np.asarray(target)


def suggest_patch(
    median_size: tuple[float, float, float], *, frames: int | None, multiple: int, largest: int
) -> tuple[int, int, int]:
    """A patch `(frames, side, side)` for cases of a median size.

    Args:
        median_size: voxels at the target spacing, transposed order (`TargetGrid.median_size`).
        frames: depth; by default the median case's, at most 8.
        multiple: the side is a multiple of this.
        largest: the side is at most this.

    Raises:
        ValueError: no side fits.
    """
    if not 1 <= multiple <= largest or (frames is not None and frames < 1):
        raise ValueError(
            f"frames {frames}, multiple {multiple}, largest {largest}: expected positive, multiple <= largest"
        )
    depth, height, width = median_size
    side = multiple * min(max(1, ceil(max(height, width) / multiple)), largest // multiple)
    return (frames or max(1, min(int(depth), 8)), side, side)


def make_plans(
    fingerprint: Fingerprint,
    dataset: Dataset,
    *,
    patch: tuple[int, int, int],
    batch_size: int,
    spacing: Spacing3 | None,
    architecture: Mapping[str, Any],
    configuration: str = "3d_fullres",
) -> dict[str, Any]:
    """The dataset's `plans.json`, as nnU-Net v2.5.1 writes it, of plain numbers, strings, lists and dicts.

    Args:
        fingerprint: the measured dataset.
        dataset: its description.
        patch: voxels, transposed order.
        batch_size: patches per step.
        spacing: mm in transposed order; by default as nnU-Net chooses.
        architecture: the configuration's `architecture`, inserted as it is.
        configuration: what to call the one configuration.
    """
    grid = target_grid(fingerprint, spacing)
    forward = list(grid.transpose_forward)
    depth, height, width = patch
    return {
        "dataset_name": dataset.name,
        "plans_name": f"nnUNetPlans_{depth}_{height}_{width}_b{batch_size}",
        "original_median_spacing_after_transp": list(_three(np.median(fingerprint.spacings_zyx, axis=0)[forward])),
        "original_median_shape_after_transp": [
            round(size) for size in _three(np.median(fingerprint.shapes_zyx, axis=0)[forward])
        ],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": forward,
        "transpose_backward": [forward.index(axis) for axis in range(3)],
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": batch_size,
                "patch_size": list(patch),
                "median_image_size_in_voxels": list(grid.median_size),
                "spacing": list(grid.spacing),
                **_normalisation(fingerprint, dataset),
                **_resampling("data", is_seg=False, order=3),
                **_resampling("seg", is_seg=True, order=1),
                **_resampling("probabilities", is_seg=False, order=1),
                "architecture": json.loads(json.dumps(architecture, allow_nan=False)),
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): asdict(intensities) for channel, intensities in enumerate(fingerprint.intensities)
        },
    }


def _normalisation(fingerprint: Fingerprint, dataset: Dataset) -> dict[str, list[Any]]:
    """Channels are normalised by their name; anything but nnU-Net's few known names gets a z-score."""
    schemes = [_SCHEMES.get(name.casefold(), "ZScoreNormalization") for name in dataset.channel_names]
    masked = bool(np.median(fingerprint.relative_sizes) < _MASK_BELOW)
    return {
        "normalization_schemes": schemes,
        "use_mask_for_norm": [masked and scheme == "ZScoreNormalization" for scheme in schemes],
    }


def _resampling(kind: str, *, is_seg: bool, order: int) -> dict[str, Any]:
    return {
        f"resampling_fn_{kind}": RESAMPLING_FUNCTION,
        f"resampling_fn_{kind}_kwargs": {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None},
    }


def _three(values: NDArray[Any]) -> tuple[float, float, float]:
    z, y, x = (float(value) for value in values)
    return (z, y, x)
