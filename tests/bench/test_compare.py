from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy.bench.compare import (
    NOISE_FACTOR,
    SMALLEST_CHANGE,
    Change,
    RegressionError,
    check_regressions,
    compare_results,
)
from masksam_deploy.bench.results import BenchError
from tests.bench.example_result import refused, result, run

medians = st.floats(1e-4, 1e2)
noises = st.floats(0, 10)
QUIET = (1.0, 1.001, 1.002, 0.999, 0.998)


@given(medians, medians, noises)
def test_a_change_is_judged_only_beyond_noise_and_share(old: float, new: float, noise: float) -> None:
    verdict = Change("a", "window", old, new, noise).verdict
    beyond = abs(new - old) > NOISE_FACTOR * noise and abs(new - old) > SMALLEST_CHANGE * old
    assert (verdict != "same") == beyond
    if beyond:
        assert verdict == ("slower" if new > old else "faster")


@given(medians, st.floats(1, 100), noises)
def test_more_noise_never_makes_a_regression(old: float, factor: float, noise: float) -> None:
    def slower(n: float) -> bool:
        return Change("a", "window", old, old * factor, n).verdict == "slower"

    assert slower(noise / 2) or not slower(noise)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_a_result_is_no_regression_of_itself(samples: list[float]) -> None:
    one = result(run("a", samples))
    comparison = compare_results(one, one)
    assert {change.verdict for change in comparison.changes} == {"same"}
    check_regressions(comparison)


def test_a_slower_window_is_found_with_the_graphs_that_made_it_slow() -> None:
    old = result(run("a", QUIET), run("b", QUIET))
    new = result(run("a", QUIET), run("b", [1.2 * sample for sample in QUIET]))
    found = {(change.run, change.what) for change in compare_results(old, new).slower}
    assert found == {("b", "window"), *(("b", f"window: {g}") for g in ("encoder", "prompt_generator", "decoder"))}
    with pytest.raises(RegressionError, match=r"b, window: 1000 ms became 1200 ms") as caught:
        check_regressions(compare_results(old, new))
    assert caught.value.exit_code == 3
    assert next(change.verdict for change in compare_results(new, old).changes if change.run == "b") == "faster"


def test_the_same_change_within_the_noise_is_none() -> None:
    noisy = [0.8, 0.9, 1.0, 1.1, 1.2]
    old, new = result(run("a", noisy)), result(run("a", [1.2 * sample for sample in noisy]))
    assert not compare_results(old, new).slower


def test_stages_are_judged_unless_they_hardly_count() -> None:
    old, new = result(run("a", QUIET, (10.0, 10.0))), result(run("a", QUIET, (20.0, 20.0)))
    found = {change.what for change in compare_results(old, new).slower}
    assert {"scan", "scan: read", "scan: preprocess", "scan: encoder"} <= found
    assert "scan: write" not in found  # half a percent


def test_a_contender_that_is_no_longer_timed_is_a_regression() -> None:
    old = result(run("a", QUIET), run("b", QUIET))
    with pytest.raises(RegressionError, match="b is no longer timed: it was not measured"):
        check_regressions(compare_results(old, result(run("a", QUIET))))
    with pytest.raises(RegressionError, match="b is no longer timed: too wrong"):
        check_regressions(compare_results(old, result(run("a", QUIET), refused("b", "too wrong"))))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("machine", {"processor": "Another CPU", "cores": "2"}, "machine's processor Another CPU"),
        ("input", {"sha256": "ef" * 32}, "scan efef"),
        ("settings", {"threads": 4, "windows": 3, "scan": {"tta": True, "step": 0.5}}, "setting 'threads' 4"),
    ],
)
def test_results_of_other_conditions_are_not_compared(field: str, value: dict[str, object], message: str) -> None:
    old = result(run("a", QUIET))
    with pytest.raises(BenchError, match=message):
        compare_results(old, old.model_copy(update={field: value}))


def test_a_result_without_times_compares_with_nothing() -> None:
    with pytest.raises(BenchError, match="found no times"):
        compare_results(result(refused("a", "wrong")), result(run("a", QUIET)))
