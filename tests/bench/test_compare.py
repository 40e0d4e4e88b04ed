from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy.base.errors import BenchError, RegressionError
from masksam_deploy.bench.compare import (
    NOISE_FACTOR,
    SMALLEST_CHANGE,
    SMALLEST_OF_FEW,
    Change,
    check_regressions,
    compare_results,
)
from tests.bench.example_result import refused, result, run, timing

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
    found = {(change.run, change.what) for change in compare_results(old, new).worse}
    assert found == {("b", "window"), *(("b", f"window: {g}") for g in ("encoder", "prompt_generator", "decoder"))}
    with pytest.raises(RegressionError, match=r"b, window: 1000 ms became 1200 ms") as caught:
        check_regressions(compare_results(old, new))
    assert caught.value.exit_code == 3
    assert next(change.verdict for change in compare_results(new, old).changes if change.run == "b") == "faster"


def test_the_same_change_within_the_noise_is_none() -> None:
    noisy = [0.7, 0.85, 1.0, 1.15, 1.3]
    old, new = result(run("a", noisy)), result(run("a", [1.2 * sample for sample in noisy]))
    assert not compare_results(old, new).worse


def test_stages_are_judged_unless_they_hardly_count() -> None:
    old, new = result(run("a", QUIET, (10.0, 10.0))), result(run("a", QUIET, (20.0, 20.0)))
    found = {change.what for change in compare_results(old, new).worse}
    assert {"scan", "scan: read", "scan: preprocess", "scan: encoder"} <= found
    assert "scan: write" not in found  # half a percent


def test_a_stage_that_comes_to_count_is_judged() -> None:
    old, new = result(run("a", QUIET)), result(run("a", QUIET))
    assert new.runs[0].scan is not None
    stages = new.runs[0].scan.stages | {"write": timing(1.0, 1.1)}
    slow = new.runs[0].model_copy(update={"scan": new.runs[0].scan.model_copy(update={"stages": stages})})
    assert [change.what for change in compare_results(old, result(slow)).worse] == ["scan: write"]


def test_more_samples_show_a_smaller_change() -> None:
    noisy = [0.9, 0.95, 1.0, 1.05, 1.1]
    for repeats, found in ((1, False), (20, True)):
        old, new = result(run("a", noisy * repeats)), result(run("a", [1.08 * sample for sample in noisy * repeats]))
        assert bool(compare_results(old, new).worse) == found


def test_few_samples_need_a_larger_change() -> None:
    for few in ([1.0], [1.0, 1.0, 1.0]):
        for factor in (0.99 + SMALLEST_OF_FEW, 1.01 + SMALLEST_OF_FEW):
            old, new = result(run("a", few)), result(run("a", [factor * sample for sample in few]))
            assert bool(compare_results(old, new).worse) == (factor > 1 + SMALLEST_OF_FEW)


def test_more_memory_is_a_regression() -> None:
    old, new = result(run("a", QUIET)), result(run("a", QUIET))
    assert new.runs[0].cold is not None
    cold = new.runs[0].cold.model_copy(update={"peak_rss_bytes": 2**29})
    new = result(new.runs[0].model_copy(update={"cold": cold}))
    with pytest.raises(RegressionError, match="a, peak memory: 256 MiB became 512 MiB"):
        check_regressions(compare_results(old, new))
    assert [change.verdict for change in compare_results(new, old).changes].count("smaller") == 1


def test_a_part_that_is_no_longer_timed_is_a_regression() -> None:
    old, new = result(run("a", QUIET)), run("a", QUIET)
    with pytest.raises(RegressionError, match="a, scan is no longer timed"):
        check_regressions(compare_results(old, result(new.model_copy(update={"scan": None}))))
    assert new.windows is not None
    graphs = {graph: timing for graph, timing in new.windows.graphs.items() if graph != "decoder"}
    new = new.model_copy(update={"windows": new.windows.model_copy(update={"graphs": graphs})})
    with pytest.raises(RegressionError, match="a, window: decoder is no longer timed"):
        check_regressions(compare_results(old, result(new)))


def test_the_warnings_of_both_results_are_told() -> None:
    old = result(run("a", QUIET))
    new = old.model_copy(update={"warnings": ("the machine was busy",)})
    assert compare_results(old, new).warnings == ("new result: the machine was busy",)
    assert compare_results(new, new).warnings[0] == "old result: the machine was busy"


def test_a_contender_that_is_no_longer_timed_is_a_regression() -> None:
    old = result(run("a", QUIET), run("b", QUIET))
    with pytest.raises(RegressionError, match="b is no longer timed: it was not measured"):
        check_regressions(compare_results(old, result(run("a", QUIET))))
    with pytest.raises(RegressionError, match="b is no longer timed: too wrong"):
        check_regressions(compare_results(old, result(run("a", QUIET), refused("b", "too wrong"))))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bundle", {"name": "another"}, "bundle another"),
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
