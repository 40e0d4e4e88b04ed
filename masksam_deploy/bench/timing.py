"""Samples of one duration, and what is said about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from pydantic import Field, NonNegativeFloat, computed_field

from masksam_deploy.base.records import OpenRecord

NORMAL = 1.4826
"""Times the median absolute deviation is the standard deviation of a normal distribution."""
FEWEST_FOR_MAD = 5
"""Samples below which a median deviation is small by chance: then half the range stands for the spread."""


class Timing(OpenRecord):
    """Durations of the same work in seconds, in the order in which they were measured."""

    samples: tuple[NonNegativeFloat, ...] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50(self) -> float:
        """The median."""
        return percentile(self.samples, 50)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p95(self) -> float:
        """95 % are at most this."""
        return percentile(self.samples, 95)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p99(self) -> float:
        """99 % are at most this; with fewer than a hundred samples, close to the longest."""
        return percentile(self.samples, 99)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spread(self) -> float:
        """Of one sample around the median; see `spread`."""
        return spread(self.samples)

    @property
    def uncertainty(self) -> float:
        """The median's standard error, where the noise is normal: what remains of the spread over all samples."""
        return math.sqrt(math.pi / 2 / len(self.samples)) * self.spread


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values are at most, interpolated linearly between the two nearest.

    Raises:
        ValueError: no values, or not a percentage.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"found {len(values)} values and {percent} percent, expected values and 0 to 100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    share = position - low
    # Written so that equal neighbours give themselves, to the last bit.
    return ordered[low] + (ordered[high] - ordered[low]) * share


def spread(values: Sequence[float]) -> float:
    """How far a sample lies from the median: robust, and a standard deviation where the noise is normal.

    The scaled median absolute deviation; of fewer than five samples, half their range.
    """
    if len(values) < FEWEST_FOR_MAD:
        return (max(values) - min(values)) / 2
    middle = median(values)
    return NORMAL * median(abs(value - middle) for value in values)
