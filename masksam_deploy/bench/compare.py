"""Two results of the same benchmark: what became slower, or larger, by more than their noise?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from masksam_deploy.base.errors import BenchError, RegressionError
from masksam_deploy.base.text import one_line
from masksam_deploy.bench.results import BenchResult, Run
from masksam_deploy.bench.timing import FEWEST_FOR_MAD, Timing

NOISE_FACTOR = 3.0
"""Standard errors by which medians must differ, those of both results together."""
SMALLEST_CHANGE = 0.05
"""Share of the old median by which they must differ as well: two runs differ by more than their samples tell."""
SMALLEST_OF_FEW = 0.10
"""The same where either side has fewer than five samples, or is measured once, as memory is."""
SMALLEST_STAGE = 0.01
"""Share of the whole scan below which, on both sides, a stage is not judged."""

_SAME_MACHINE = ("processor", "cores", "gpu", "jetson")
_SAME_SETTINGS = ("threads", "scan", "windows")

Verdict: TypeAlias = Literal["slower", "larger", "faster", "smaller", "same"]
Unit: TypeAlias = Literal["ms", "MiB"]
_SCALES: dict[Unit, float] = {"ms": 1e3, "MiB": 2.0**-20}


@dataclass(frozen=True)
class Change:
    """One duration, or the peak memory, in both results.

    Attributes:
        run: the contender.
        what: window, scan, a part of one, or peak memory.
        old, new: medians in seconds, or bytes.
        noise: standard error of their difference.
        least: share of the old one below which nothing is said.
        unit: in which it is told.
    """

    run: str
    what: str
    old: float
    new: float
    noise: float
    least: float = SMALLEST_CHANGE
    unit: Unit = "ms"

    @property
    def verdict(self) -> Verdict:
        """Beyond the noise and large enough to matter, or not."""
        difference = self.new - self.old
        if abs(difference) <= max(NOISE_FACTOR * self.noise, self.least * self.old):
            return "same"
        if self.unit == "MiB":
            return "larger" if difference > 0 else "smaller"
        return "slower" if difference > 0 else "faster"

    def told(self, value: float) -> str:
        """A value of it with its unit."""
        return f"{value * _SCALES[self.unit]:.4g} {self.unit}"


@dataclass(frozen=True)
class ResultComparison:
    """All that both results have.

    Attributes:
        changes: in the order of the old result.
        lost: contenders, or parts of them, that the old result timed and the new one does not -> why.
        warnings: of both results.
    """

    changes: tuple[Change, ...]
    lost: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def worse(self) -> list[Change]:
        """The regressions."""
        return [change for change in self.changes if change.verdict in ("slower", "larger")]


def compare_results(old: BenchResult, new: BenchResult) -> ResultComparison:
    """Compare medians, contender by contender.

    Raises:
        BenchError: another bundle, machine, scan or setting, so that times do not compare.
    """
    for what, before, after in _conditions(old, new):
        if before != after:
            raise BenchError(
                f"found {what} {one_line(str(after))} in the new result, expected {one_line(str(before))} as in the "
                "old one; compare results of the same bundle, scan, settings and machine"
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
            changes += _changes(run, later)
            lost |= {f"{run.name}, {what}": "the new result has no time of it" for what in _missing(run, later)}
    if not changes and not lost:
        raise BenchError("found no times in the old result, expected some; measure it again")
    warnings = [f"{which} result: {text}" for which, one in (("old", old), ("new", new)) for text in one.warnings]
    return ResultComparison(tuple(changes), lost, tuple(warnings))


def check_regressions(comparison: ResultComparison) -> None:
    """Refuse a comparison in which anything became slower or larger, or is not timed any more.

    Raises:
        RegressionError: names all of it.
    """
    found = [f"{c.run}, {c.what}: {c.told(c.old)} became {c.told(c.new)}" for c in comparison.worse]
    found += [f"{one_line(name)} is no longer timed: {why}" for name, why in comparison.lost.items()]
    if found:
        raise RegressionError(
            f"found {'; '.join(found)}; expected nothing slower by more than {NOISE_FACTOR:g} standard errors and "
            f"{SMALLEST_CHANGE:.0%} ({SMALLEST_OF_FEW:.0%} of fewer than {FEWEST_FOR_MAD} samples, and of memory); "
            "measure again on a quiet machine, then look at what changed between the commits"
        )


def _conditions(old: BenchResult, new: BenchResult) -> Iterator[tuple[str, object, object]]:
    yield "bundle", old.bundle.get("name"), new.bundle.get("name")
    for name in _SAME_MACHINE:
        yield f"machine's {name}", old.machine.get(name), new.machine.get(name)
    yield "scan", old.input.get("sha256"), new.input.get("sha256")
    for name in _SAME_SETTINGS:
        yield f"setting '{name}'", old.settings.get(name), new.settings.get(name)


def _changes(old: Run, new: Run) -> Iterator[Change]:
    before, after = _durations(old), _durations(new)
    counts = _judged(old) | _judged(new)
    for what, timing in before.items():
        if what not in after or what not in counts:
            continue
        other = after[what]
        # Variances add up.
        noise = (timing.uncertainty**2 + other.uncertainty**2) ** 0.5
        few = min(len(timing.samples), len(other.samples)) < FEWEST_FOR_MAD
        least = SMALLEST_OF_FEW if few else SMALLEST_CHANGE
        yield Change(old.name, what, timing.p50, other.p50, noise, least)
    memory = [run.cold.peak_rss_bytes if run.cold else None for run in (old, new)]
    if memory[0] is not None and memory[1] is not None:
        yield Change(old.name, "peak memory", memory[0], memory[1], 0.0, SMALLEST_OF_FEW, "MiB")


def _missing(old: Run, new: Run) -> list[str]:
    """What is timed and counts in the old result, and is not timed in the new one; a scan stands for its stages."""
    lost = [what for what in _durations(old) if what in _judged(old) and what not in _durations(new)]
    return ["scan"] if "scan" in lost else lost


def _durations(run: Run) -> dict[str, Timing]:
    assert run.windows is not None  # only contenders with times come here
    found = {"window": run.windows.whole}
    found |= {f"window: {graph}": timing for graph, timing in run.windows.graphs.items()}
    if run.scan:
        found["scan"] = run.scan.whole
        found |= {f"scan: {stage}": timing for stage, timing in run.scan.stages.items()}
    return found


def _judged(run: Run) -> set[str]:
    """All but stages that hardly count."""
    whole = run.scan.whole.p50 if run.scan else 0.0
    return {
        what
        for what, timing in _durations(run).items()
        if not what.startswith("scan: ") or timing.p50 >= SMALLEST_STAGE * whole
    }
