"""nnU-Net's own terms for preprocessing, and the recipe that they amount to.

Trainers that build on nnU-Net v2 describe preprocessing so, and bundles of schema 1.x did.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveFloat

from masksam_deploy.base.records import OpenRecord
from masksam_deploy.bundle.recipe import (
    Axis,
    Channel,
    Clip,
    Grid,
    MinMax,
    Recipe,
    Resampling,
    Scale,
    Scores,
    Spacing,
    Step,
    Windows,
    Within,
    ZScore,
)

NormalizationScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]
_AXES: dict[int, Axis] = {0: 0, 1: 1, 2: 2}
SMALLEST_DIVISOR = 1e-8
"""nnU-Net's guard against dividing by a standard deviation of zero."""


class Normalization(OpenRecord):
    """How one input channel is normalised (nnU-Net's scheme names)."""

    scheme: NormalizationScheme
    use_mask: bool = False
    """Z-score only: statistics and change restricted to the nonzero mask."""
    lower: float | None = None
    """CT only: clip bounds and constants, in scan intensities (`percentile_00_5`, `percentile_99_5`)."""
    upper: float | None = None
    mean: float | None = None
    std: float | None = None


class SplineOrders(OpenRecord):
    """Spline orders, in the plane and across it, and nnU-Net's switch for anisotropic data."""

    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3]
    force_separate_z: bool | None = None


class Preprocessing(OpenRecord):
    """What nnU-Net's plans say of preprocessing."""

    channel_names: tuple[str, ...] = Field(min_length=1)
    transpose_forward: tuple[int, int, int]
    """New axis i is old array axis `transpose_forward[i]` (array axes z, y, x)."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Target spacing in mm, in the order of the transposed axes."""
    normalization: tuple[Normalization, ...] = Field(min_length=1)
    resample_data: SplineOrders
    resample_scores: SplineOrders


def recipe_of(preprocessing: Preprocessing, *, mirror_axes: tuple[int, ...] = ()) -> Recipe:
    """nnU-Net v2.5.1's inference as a recipe: DefaultPreprocessor, sliding window with Gaussian weights, and export.

    Args:
        preprocessing: without contradictions, see `preprocessing_problems`.
        mirror_axes: along which the network may be mirrored.

    Raises:
        ValueError: a CT normalisation lacks a constant, or the transposition is none.
    """
    z, y, x = (Spacing(mm=mm) for mm in preprocessing.spacing)
    channels = tuple(
        Channel(name=name, before=_steps(scheme))
        for name, scheme in zip(preprocessing.channel_names, preprocessing.normalization, strict=True)
    )
    return Recipe(
        channels=channels,
        grid=Grid(
            transpose=_axes(preprocessing.transpose_forward),
            size=(z, y, x),
            resampling=_resampling(preprocessing.resample_data),
        ),
        windows=Windows(mirror_axes=tuple(_AXES[axis] for axis in mirror_axes)),
        scores=Scores(resampling=_resampling(preprocessing.resample_scores)),
    )


def preprocessing_problems(preprocessing: Preprocessing) -> Iterator[str]:
    """What the fields contradict each other in, a line each."""
    channels, schemes = len(preprocessing.channel_names), len(preprocessing.normalization)
    if channels != schemes:
        yield f"field 'preprocessing.normalization': found {schemes} entries, expected one a channel ({channels})"
    if sorted(preprocessing.transpose_forward) != [0, 1, 2]:
        yield (
            f"field 'preprocessing.transpose_forward': found {list(preprocessing.transpose_forward)}, "
            "expected each of 0, 1 and 2 once"
        )
    for index, scheme in enumerate(preprocessing.normalization):
        if scheme.scheme != "CTNormalization":
            continue
        field = f"field 'preprocessing.normalization.{index}'"
        lower, upper, std = scheme.lower, scheme.upper, scheme.std
        if lower is None or upper is None or scheme.mean is None or std is None:
            yield f"{field}: found CTNormalization without all of lower, upper, mean and std, expected all four"
        elif lower >= upper or std <= 0:
            yield f"{field}: found lower {lower}, upper {upper}, std {std}, expected lower below upper and std above 0"


def _steps(scheme: Normalization) -> tuple[Step, ...]:
    if scheme.scheme == "ZScoreNormalization":
        return (ZScore(inside_mask=scheme.use_mask),)
    if scheme.scheme == "RescaleTo01Normalization":
        return (MinMax(over="scan", guard="at-least", epsilon=SMALLEST_DIVISOR),)
    if scheme.scheme == "RGBTo01Normalization":
        return (Within(lower=0.0, upper=255.0), Scale(divide=255.0))
    if scheme.scheme == "NoNormalization":
        return ()
    if scheme.lower is None or scheme.upper is None or scheme.mean is None or scheme.std is None:
        raise ValueError("CTNormalization lacks some of lower, upper, mean, std")
    divisor = max(scheme.std, SMALLEST_DIVISOR)
    return (Clip(lower=scheme.lower, upper=scheme.upper), Scale(subtract=scheme.mean, divide=divisor))


def _axes(transpose: tuple[int, int, int]) -> tuple[Axis, Axis, Axis]:
    if sorted(transpose) != [0, 1, 2]:
        raise ValueError(f"{transpose} is no order of the axes 0, 1, 2")
    first, second, third = (_AXES[axis] for axis in transpose)
    return first, second, third


def _resampling(orders: SplineOrders) -> Resampling:
    return Resampling(order=orders.order, order_z=orders.order_z, force_separate_z=orders.force_separate_z)
