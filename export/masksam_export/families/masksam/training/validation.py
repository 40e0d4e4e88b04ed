"""Dice of whole validation cases on their own grid, through the very code that inference uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.nnunet import Preprocessing, recipe_of
from masksam_deploy.metrics.overlap import dice_per_class
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.windows import stream_scores
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.training.cases import PreparedCase


def validate(
    model: MaskSAM,
    cases: Sequence[PreparedCase],
    preprocessing: Preprocessing,
    labels: Labels,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, ...]:
    """Dice of every foreground class, mean over the cases that hold it or where it was predicted.

    Without mirroring, which costs up to eight times as much and changes all epochs alike. A class that is nowhere
    has NaN.
    """
    figures = []
    for index, case in enumerate(cases):
        figures.append(_case_dice(segment(model, case, preprocessing, labels, device), case, labels))
        if progress:
            progress(index + 1, len(cases))
    with np.errstate(invalid="ignore"):
        held = ~np.isnan(figures)
        return tuple((np.nansum(figures, axis=0) / held.sum(axis=0)).tolist())


def segment(
    model: MaskSAM, case: PreparedCase, preprocessing: Preprocessing, labels: Labels, device: torch.device
) -> NDArray[np.generic]:
    """The label map `[Z, Y, X]` of one case on its scan's grid."""

    def predict(window: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
            scores = model(torch.from_numpy(np.ascontiguousarray(window)).to(device))
        array: NDArray[np.float32] = scores.float().cpu().numpy()
        return array

    recipe = recipe_of(preprocessing)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        scores = stream_scores(
            case.image,
            (model.config.frames, model.config.patch_side, model.config.patch_side),
            predict,
            recipe,
            mirror_axes=(),
            accumulator="float32",
            classes=model.config.classes,
        )
        array = labels_from_scores(scores, case.frame, recipe.scores, labels)
    model.train(was_training)
    return array


def _case_dice(found: NDArray[np.generic], case: PreparedCase, labels: Labels) -> list[float]:
    if case.reference is None:
        raise ValueError(f"case '{case.name}' was prepared without its reference")
    dice = dice_per_class(found, case.reference.array, [label.value for label in labels.classes])
    return [np.nan if value is None else value for value in dice.values()]
