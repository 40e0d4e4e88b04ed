from __future__ import annotations

from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy.bench.timing import NORMAL, Timing, percentile, spread

durations = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40)


@given(durations, st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


@given(durations)
def test_percentiles_grow_from_the_smallest_to_the_largest(values: list[float]) -> None:
    found = [percentile(values, percent) for percent in (0, 25, 50, 95, 99, 100)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (min(values), max(values))
    assert found[2] == pytest.approx(median(values), rel=1e-12)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_a_percentile_of_nothing_or_beyond_the_ends_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="expected values and 0 to 100"):
        percentile(values, percent)


def test_the_spread_ignores_a_single_outlier() -> None:
    assert spread([10, 11, 12, 13, 1000]) == pytest.approx(NORMAL * 1)
    assert spread([5.0] * 8) == 0


def test_the_spread_of_normal_noise_is_its_standard_deviation() -> None:
    noise = np.random.default_rng(0).normal(100, 3, 20_000)
    assert spread(noise.tolist()) == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize(("values", "expected"), [([4.0], 0), ([4.0, 6.0], 1), ([4.0, 4.0, 4.0, 9.0], 2.5)])
def test_few_samples_have_half_their_range_as_spread(values: list[float], expected: float) -> None:
    assert spread(values) == expected


def test_the_medians_uncertainty_is_its_standard_error() -> None:
    generator = np.random.default_rng(0)
    sets = [Timing(samples=tuple(generator.normal(100, 3, 20).tolist())) for _ in range(2_000)]
    found = float(np.std([timing.p50 for timing in sets]))
    assert median(timing.uncertainty for timing in sets) == pytest.approx(found, rel=0.1)


def test_a_timing_tells_its_statistics_in_json() -> None:
    timing = Timing(samples=(1.0, 2.0, 3.0))
    assert timing.model_dump() == {"samples": (1.0, 2.0, 3.0), "p50": 2.0, "p95": 2.9, "p99": 2.98, "spread": 1.0}
    assert Timing.model_validate_json(timing.model_dump_json(), strict=True) == timing


def test_a_duration_below_zero_is_none() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Timing(samples=(1.0, -1.0))
