"""Step size, mirroring and precision in one named choice, and what each was measured to cost for a bundle's network.

The figures travel in the bundle (`Manifest.measured`): where nothing was measured, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.manifest import Cost, Measured
from masksam_deploy.runtimes.spec import Precision

ProfileName: TypeAlias = Literal["fast", "balanced", "accurate"]


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
class InferenceSettings:
    """Step, mirroring and precision of a run, after the profile and the options typed besides it.

    Attributes:
        step, tta, precision, without: as in `Profile`; without a step, windows lie as the bundle says.
        judged: whether only engines that passed the Dice gate may run, whatever backend is asked for.
        profile: its name; None if none was asked for.
        typed: the options that override the profile.
    """

    step: float | None
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
) -> InferenceSettings:
    """Combine a profile with the options typed besides it, which override the profile.

    Args:
        name: of the profile; None for the bundle's own step, mirroring, and the fastest valid engine.
        step, tta, precision: as typed; None if they were not.
    """
    profile = PROFILES[name] if name else Profile()
    given = {"--step": step, "--tta/--no-tta": tta, "--precision": precision}
    return InferenceSettings(
        step=step if step is not None or name is None else profile.step,
        tta=profile.tta if tta is None else tta,
        precision=precision or profile.precision,
        without=() if precision else profile.without,
        judged=name is not None and precision is None,
        profile=name,
        typed=tuple(option for option, value in given.items() if name and value is not None),
    )


def definitions() -> dict[str, dict[str, Any]]:
    """All profiles as plain values for JSON."""
    return {name: {**asdict(profile), "without": list(profile.without)} for name, profile in PROFILES.items()}


def cost_of(measured: Measured | None, settings: Mapping[str, Any], precisions: Mapping[str, str]) -> Cost | None:
    """The measured cost of the way in which a network runs; None if it was not measured.

    Args:
        measured: the bundle's figures.
        settings: of the segmenter, as in reports.
        precisions: of each graph, as the network reports them.
    """
    if (
        measured is None
        or settings["mirror_axes"]
        or settings["accumulator"] != "float32"
        or len(set(precisions.values())) != 1
    ):
        return None
    ran = (settings["step"], next(iter(precisions.values())))
    return next((cost for cost in measured.costs if (cost.step, cost.precision) == ran), None)


def facts(
    chosen: InferenceSettings, measured: Measured | None, settings: Mapping[str, Any], precisions: Mapping[str, str]
) -> dict[str, Any]:
    """Entries for the settings in the report: the profile and its measured cost; empty without a profile."""
    if chosen.profile is None:
        return {}
    cost = cost_of(measured, settings, precisions)
    found = None
    if cost is not None and measured is not None:
        found = {"scans": measured.scans, "where": measured.where, **cost.model_dump()}
    return {
        "profile": {
            "name": chosen.profile,
            "typed_besides": list(chosen.typed),
            "measured": found,
        }
    }


def profile_summary(chosen: InferenceSettings, settings: Mapping[str, Any]) -> str:
    """One line: what the profile ran, and the measured cost of that.

    Args:
        chosen: with a profile.
        settings: of the run, with `facts`.
    """
    mirrored = f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"
    typed = f" with {', '.join(chosen.typed)} as typed" if chosen.typed else ""
    step = "windows as the bundle says" if settings["step"] is None else f"step {settings['step']:g}"
    ran = f"profile {chosen.profile}{typed}: {step}, {mirrored}, {one_line(settings['precision'])}"
    if chosen.profile == "accurate" and not chosen.typed and settings["accumulator"] == "float32":
        return f"{ran}; the others' cost is measured against this"
    cost = settings["profile"]["measured"]
    if cost is None:
        return f"{ran}; what this costs in Dice was not measured for this bundle"
    where = f"on {cost['scans']} held-out scans ({one_line(cost['where'])})"
    return (
        f"{ran}; {where} this cost {_dice(cost['mean_cost'])} on average, {_dice(cost['worst_cost'])} in the worst scan"
    )


def _dice(cost: float) -> str:
    return "no Dice" if cost < 0.00005 else f"{cost:.4f} of Dice"
