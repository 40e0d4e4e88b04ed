"""Step size, mirroring and precision in one named choice, and what each was measured to cost.

The figures are package data, written by `benchmarks/profiles.py` together with the definitions that they were measured
with: a changed definition needs new figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from masksam_deploy.base.records import Record
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.spec import Precision

ProfileName: TypeAlias = Literal["fast", "balanced", "accurate"]

FIGURES = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Profile:
    """A named choice.

    Attributes:
        step: distance of windows as a share of the patch.
        tta: average over mirrored windows where the bundle allows it.
        precision: `fp32` for the bundle's own graphs; None for the fastest engine that passed the Dice gate.
        without: precisions that this engine must not have.
    """

    step: float = 0.5
    tta: bool = True
    precision: Precision | None = None
    without: tuple[Precision, ...] = ()


PROFILES: Mapping[ProfileName, Profile] = {
    "fast": Profile(step=0.75, tta=False),
    "balanced": Profile(tta=False, without=("int8",)),
    "accurate": Profile(precision="fp32"),
}


@dataclass(frozen=True)
class Chosen:
    """What runs, after a profile and what was typed besides it.

    Attributes:
        step, tta, precision, without: as in `Profile`.
        judged: whether only engines that passed the Dice gate may run, whatever backend is asked for.
        profile: its name; None if none was asked for.
        typed: the options that won over it.
    """

    step: float
    tta: bool
    precision: Precision | None
    without: tuple[Precision, ...] = ()
    judged: bool = False
    profile: ProfileName | None = None
    typed: tuple[str, ...] = field(default=())


def choose(
    name: ProfileName | None,
    step: float | None = None,
    tta: bool | None = None,
    precision: Precision | None = None,
) -> Chosen:
    """A profile, where nothing else was typed: None stands for that.

    Without a profile: step 0.5, mirrored, the fastest engine that is valid.
    """
    profile = PROFILES[name] if name else Profile()
    given = {"--step": step, "--tta/--no-tta": tta, "--precision": precision}
    return Chosen(
        step=profile.step if step is None else step,
        tta=profile.tta if tta is None else tta,
        precision=precision or profile.precision,
        without=() if precision else profile.without,
        judged=name is not None and precision is None,
        profile=name,
        typed=tuple(option for option, value in given.items() if name and value is not None),
    )


class Cost(Record):
    """What one way to run cost on the held-out scans, against the profile `accurate`.

    Attributes:
        step: of the windows.
        precision: of all graphs.
        mean_dice: over the scans.
        mean_cost: Dice lost, over the scans; negative for a gain.
        worst_cost: in the scan that lost most.
        runs_per_scan: of the network, on average.
    """

    step: float
    precision: Precision
    mean_dice: float
    mean_cost: float
    worst_cost: float
    runs_per_scan: float


class Figures(Record):
    """The package data.

    Attributes:
        model: that was measured.
        scans: how many, none of them seen in training.
        where: what ran it.
        mirror_axes: that it allows; if none, what mirroring gives was not measured.
        commit, date: of the measurement.
        profiles: the definitions that were measured.
        costs: without mirroring, in the float32 accumulator.
    """

    model: str
    scans: int
    where: str
    mirror_axes: list[int]
    commit: str
    date: str
    profiles: dict[str, dict[str, Any]]
    costs: list[Cost]


@cache
def figures() -> Figures:
    """What was measured."""
    return Figures.model_validate_json(FIGURES.read_bytes())


def definitions() -> dict[str, dict[str, Any]]:
    """All profiles as JSON has them."""
    return {name: {**asdict(profile), "without": list(profile.without)} for name, profile in PROFILES.items()}


def cost_of(settings: Mapping[str, Any], precisions: Mapping[str, str]) -> Cost | None:
    """What was measured for the way in which a network runs; None if that was not.

    Args:
        settings: of the segmenter, as in reports.
        precisions: of each graph, as the network says.
    """
    if settings["mirror_axes"] or settings["accumulator"] != "float32" or len(set(precisions.values())) != 1:
        return None
    ran = (settings["step"], next(iter(precisions.values())))
    return next((cost for cost in figures().costs if (cost.step, cost.precision) == ran), None)


def facts(chosen: Chosen, settings: Mapping[str, Any], precisions: Mapping[str, str]) -> dict[str, Any]:
    """For the report's settings: the profile and what it was measured to cost; empty without a profile."""
    if chosen.profile is None:
        return {}
    cost = cost_of(settings, precisions)
    measured = figures()
    return {
        "profile": {
            "name": chosen.profile,
            "typed_besides": list(chosen.typed),
            "measured": cost
            and {"model": measured.model, "scans": measured.scans, "where": measured.where, **cost.model_dump()},
        }
    }


def in_words(chosen: Chosen, settings: Mapping[str, Any], mirror_axes: tuple[int, ...]) -> str:
    """What a profile really ran and what that was measured to cost, in one line.

    Args:
        chosen: with a profile.
        settings: of the run, with `facts`.
        mirror_axes: that the bundle allows.
    """
    mirrored = f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"
    typed = f" with {', '.join(chosen.typed)} as typed" if chosen.typed else ""
    ran = f"profile {chosen.profile}{typed}: step {settings['step']:g}, {mirrored}, {one_line(settings['precision'])}"
    if chosen.profile == "accurate" and not chosen.typed and settings["accumulator"] == "float32":
        return f"{ran}; the others' cost is measured against this"
    cost = settings["profile"]["measured"]
    if cost is None:
        return f"{ran}; what this costs in Dice was not measured"
    unmeasured = "; that model is never mirrored, so what mirroring gives yours is not in these figures"
    return (
        f"{ran}; on {cost['model']} ({cost['scans']} held-out scans, {cost['where']}) this cost "
        f"{_dice(cost['mean_cost'])} on average, {_dice(cost['worst_cost'])} in the worst scan"
        + (unmeasured if mirror_axes and not figures().mirror_axes else "")
        + "; your model may differ"
    )


def _dice(cost: float) -> str:
    return "no Dice" if cost < 0.00005 else f"{cost:.4f} of Dice"
