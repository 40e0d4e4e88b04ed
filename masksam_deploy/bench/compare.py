"""Two results of the same benchmark: what became slower by more than their noise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from masksam_deploy.bench.results import BenchError, BenchResult, Run
from masksam_deploy.bench.timing import Timing, pooled
from masksam_deploy.errors import MaskSamError
from masksam_deploy.text import one_line

NOISE_FACTOR = 3.0
"""Spreads by which medians must differ."""
SMALLEST_CHANGE = 0.03
"""Share of the old median by which they must differ as well: steady clocks measure what nobody would notice."""
SMALLEST_STAGE = 0.01
"""Share of the whole scan below which a stage is not judged."""

_SAME_MACHINE = ("processor", "cores", "gpu", "jetson")
_SAME_SETTINGS = ("threads", "scan", "windows")

Verdict: TypeAlias = Literal["slower", "faster", "same"]


class RegressionError(MaskSamError):
    """The comparison worked, and something became slower."""

    exit_code = 3


@dataclass(frozen=True)
class Change:
    """One duration in both results.

    Attributes:
        run: the contender.
        what: window, scan, or a part of one.
        old, new: medians in seconds.
        noise: pooled spread of one sample in seconds.
    """

    run: str
    what: str
    old: float
    new: float
    noise: float

    @property
    def verdict(self) -> Verdict:
        """Beyond the noise and large enough to matter, or not."""
        difference = self.new - self.old
        if abs(difference) <= max(NOISE_FACTOR * self.noise, SMALLEST_CHANGE * self.old):
            return "same"
        return "slower" if difference > 0 else "faster"


@dataclass(frozen=True)
class ResultComparison:
    """All durations that both results have.

    Attributes:
        changes: in the order of the old result.
        lost: contenders that the old result timed and the new one does not -> why.
    """

    changes: tuple[Change, ...]
    lost: dict[str, str]

    @property
    def slower(self) -> list[Change]:
        """The regressions."""
        return [change for change in self.changes if change.verdict == "slower"]


def compare_results(old: BenchResult, new: BenchResult) -> ResultComparison:
    """Compare medians, contender by contender.

    Raises:
        BenchError: another machine, scan or setting, so that times do not compare.
    """
    for what, before, after in _conditions(old, new):
        if before != after:
            raise BenchError(
                f"found {what} {one_line(str(after))} in the new result, expected {one_line(str(before))} as in the "
                "old one; compare results of the same scan, settings and machine"
            )
    known = {run.name: run for run in new.runs}
    changes: list[Change] = []
    lost: dict[str, str] = {}
    for run in old.runs:
        if run.windows is None:
            continue
        later = known.get(run.name)
        if later is None:
            lost[run.name] = "it was not measured"
        elif later.windows is None:
            lost[run.name] = later.check.problem or "it was not timed"
        else:
            durations = dict(_durations(later))
            changes += [
                Change(run.name, what, timing.p50, durations[what].p50, pooled(timing.spread, durations[what].spread))
                for what, timing in _durations(run)
                if what in durations
            ]
    if not changes and not lost:
        raise BenchError("found no times in the old result, expected some; measure it again")
    return ResultComparison(tuple(changes), lost)


def check_regressions(comparison: ResultComparison) -> None:
    """Refuse a comparison in which anything became slower, or is not timed any more.

    Raises:
        RegressionError: names all of it.
    """
    found = [f"{c.run}, {c.what}: {c.old * 1e3:.4g} ms became {c.new * 1e3:.4g} ms" for c in comparison.slower]
    found += [f"{one_line(name)} is no longer timed: {why}" for name, why in comparison.lost.items()]
    if found:
        raise RegressionError(
            f"found {'; '.join(found)}; expected nothing slower by more than {NOISE_FACTOR:g} spreads and "
            f"{SMALLEST_CHANGE:.0%}; measure again on a quiet machine, then look at what changed between the commits"
        )


def _conditions(old: BenchResult, new: BenchResult) -> Iterator[tuple[str, object, object]]:
    for name in _SAME_MACHINE:
        yield f"machine's {name}", old.machine.get(name), new.machine.get(name)
    yield "scan", old.input.get("sha256"), new.input.get("sha256")
    for name in _SAME_SETTINGS:
        yield f"setting '{name}'", old.settings.get(name), new.settings.get(name)


def _durations(run: Run) -> Iterator[tuple[str, Timing]]:
    assert run.windows is not None  # only contenders with times come here
    yield "window", run.windows.whole
    for graph, timing in run.windows.graphs.items():
        yield f"window: {graph}", timing
    if run.scan is None:
        return
    yield "scan", run.scan.whole
    for stage, timing in run.scan.stages.items():
        if timing.p50 >= SMALLEST_STAGE * run.scan.whole.p50:
            yield f"scan: {stage}", timing
