"""How class scores become labels: the one rule that the host, the GPU and every judge of scores apply.

`argmax`: a voxel takes the class with the highest score; of equal scores the lowest class wins.

`regions`: classes overlap. Each takes every voxel where the sigmoid of its score, in float32, exceeds 0.5. The value of
a voxel is that of the last class that takes it, and 0 where none does. A score of 0 is not enough.

Scores come class by class: as a sequence of K arrays of equal shape, or as one array whose first axis is K. Arrays may
be those of any library with NumPy's interface where a function takes its module as `xp`.

Source: nnU-Net v2.5.1, `LabelManager.convert_probabilities_to_segmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.bundle.manifest import Decision, Labels

LabelMap: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Floats: TypeAlias = NDArray[np.floating[Any]]
Classes: TypeAlias = Sequence[Floats] | Floats
"""Scores class by class."""

# float32 softmax can only merge scores closer than a few 2**-24 (nnU-Net decides float16 scores by it).
_SOFTMAX_MERGES = 2e-6
# exp of more overflows in float32; the sigmoid of -80 is far from 0.5 all the same.
_LARGEST_EXPONENT = np.float32(80)


def palette_of(labels: Labels) -> LabelMap:
    """The label value of each class, `[K]`, in the narrowest dtype of a label map."""
    values = [label.value for label in labels.classes]
    if max(values) <= np.iinfo(np.uint8).max:
        return np.array(values, np.uint8)
    return np.array(values, np.uint16)


def decide(
    scores: Any,
    palette: Any,
    decision: Decision,
    *,
    xp: Any = np,
    as_softmax: bool = False,
    probabilities: bool = False,
) -> Any:
    """The label value of each voxel.

    Args:
        scores: class by class; float32, finite.
        palette: the label value of each class, `[K]`, an array of `xp`.
        decision: the bundle's rule.
        xp: the array library, NumPy or CuPy.
        as_softmax: decide `argmax` as the argmax of a float32 softmax does: where the best class leads a lower one by
            so little that their probabilities round to the same number, the lower one wins.
        probabilities: whether scores are probabilities already: `regions` compares them with 0.5 as they are.

    Returns:
        An array of `xp`, of the shape of one class and the dtype of `palette`.
    """
    if decision == "argmax":
        return palette[_winners(scores, xp, as_softmax=as_softmax)]
    painted = xp.zeros(scores[0].shape, palette.dtype)
    for score, value in zip(scores, palette, strict=True):
        painted = xp.where(score > 0.5 if probabilities else _exceeds_half(score, xp), value, painted)
    return painted


def class_masks(scores: Classes, decision: Decision, *, background: bool) -> NDArray[np.bool_]:
    """The voxels that each class takes, `[K or K - 1, ...]`; those of regions overlap.

    Args:
        scores: class by class.
        decision: the bundle's rule.
        background: whether to give the first class of `argmax`, the background, too. Regions have none.
    """
    if decision == "regions":
        return np.stack([_exceeds_half(score, np) for score in scores])
    winners = _winners(scores, np)
    return np.stack([winners == index for index in range(0 if background else 1, len(scores))])


def margins(scores: Classes, decision: Decision) -> Floats:
    """How far each voxel is from another label, in units of the scores, of the shape of one class.

    `argmax`: the best score minus the second best; infinite for a single class. `regions`: the smallest change of one
    score by which another class becomes the last that takes the voxel, or none does.

    Two computations of the same scores may differ by rounding. Where the margin is below what rounding changes, the
    voxel is a tie: neither label is wrong.
    """
    if decision == "argmax":
        best, second = scores[0], np.full_like(scores[0], -np.inf)
        for score in scores[1:]:
            second = np.maximum(second, np.minimum(best, score))
            best = np.maximum(best, score)
        return best - second
    margin = np.full_like(scores[0], np.inf)
    for score in scores:
        # A class that takes the voxel hides what earlier classes do there.
        distance = np.abs(score)
        margin = np.where(_exceeds_half(score, np), distance, np.minimum(margin, distance))
    return margin


def _winners(scores: Any, xp: Any, *, as_softmax: bool = False) -> Any:
    """The index of each voxel's best class, in the narrowest dtype; the lowest class wins a tie."""
    best = scores[0].copy()
    winner = xp.zeros(best.shape, np.min_scalar_type(len(scores) - 1))
    challenger = xp.empty_like(winner)
    better = xp.empty(best.shape, bool)
    close = xp.zeros(best.shape, bool)
    for index, score in enumerate(scores[1:], 1):
        xp.greater(score, best, out=better)
        # The last class to be better is the largest that was: a maximum is faster than a masked copy.
        xp.multiply(better.view(np.uint8), winner.dtype.type(index), out=challenger)
        xp.maximum(winner, challenger, out=winner)
        if as_softmax:
            better &= score - best < _SOFTMAX_MERGES
            close |= better
        xp.maximum(best, score, out=best)
    if as_softmax and close.any():
        winner[close] = _softmax(xp.stack([score[close] for score in scores]), xp).argmax(axis=0)
    return winner


def _softmax(scores: Any, xp: Any) -> Any:
    shares = xp.exp(scores - scores.max(axis=0))
    return xp.asarray(shares / shares.sum(axis=0), np.float32)


def _exceeds_half(score: Any, xp: Any) -> Any:
    """Whether the sigmoid of a float32 score exceeds 0.5; the sigmoid itself decides scores next to 0."""
    return 1 / (1 + xp.exp(xp.minimum(-score, _LARGEST_EXPONENT))) > 0.5
