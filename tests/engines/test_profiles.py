"""Profiles: what is chosen, what wins over it, and that figures are only claimed for what was measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from masksam_deploy.bundle.manifest import Measured
from masksam_deploy.engines.profiles import (
    PROFILES,
    InferenceSettings,
    ProfileName,
    choose,
    cost_of,
    definitions,
    facts,
    profile_summary,
)

FIGURES = Path(__file__).parents[2] / "models" / "masksam-tiny-lv" / "measured.json"
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "profiles.json"
FP32 = {"encoder": "fp32", "decoder": "fp32"}
INT8 = {"encoder": "int8", "decoder": "int8"}


def settings(step: float | None, precision: str = "float32", **more: Any) -> dict[str, Any]:
    return {"step": step, "precision": precision, "mirror_axes": [], "accumulator": "float32", **more}


def figures() -> Measured:
    """Of the repository's model."""
    return Measured.model_validate_json(FIGURES.read_bytes())


def told(chosen: InferenceSettings, ran: dict[str, Any], precisions: dict[str, str], measured: Measured | None) -> str:
    return profile_summary(chosen, ran | facts(chosen, measured, ran, precisions))


def test_the_figures_are_of_the_repositorys_model() -> None:
    assert figures().source_sha256 == hashlib.sha256((FIGURES.parent / "checkpoint_final.pth").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", PROFILES)
def test_whatever_a_profile_may_end_up_running_was_measured(name: ProfileName) -> None:
    profile = PROFILES[name]
    precisions = {profile.precision} if profile.precision else {"fp32", "fp16", "int8"} - {*profile.without}
    measured = {cost.precision for cost in figures().costs if cost.step == profile.step}
    assert precisions <= measured


def test_the_model_comes_with_the_very_figures_of_the_benchmark() -> None:
    content = json.loads(MEASURED.read_text(encoding="utf-8"))
    assert content["profiles"] == definitions(), (
        "a profile was changed without new figures: python -m benchmarks.profiles DATASET"
    )
    assert content["commit"] == figures().commit
    cases = content["accurate"]["dice"]
    assert len(cases) == figures().scans
    for way, cost in zip(content["ways"], figures().costs, strict=True):
        assert {key: way[key] for key in cost.model_dump()} == cost.model_dump()
        lost = [cases[case] - dice for case, dice in way["dice"].items()]
        assert cost.mean_cost == pytest.approx(sum(lost) / len(lost), abs=1e-6)
        assert cost.worst_cost == pytest.approx(max(lost), abs=1e-6)


def test_each_profile_needs_less_work_than_the_next() -> None:
    runs = {cost.step: cost.runs_per_scan for cost in figures().costs if cost.precision == "fp32"}
    assert runs[PROFILES["fast"].step] < runs[PROFILES["balanced"].step]
    assert (PROFILES["balanced"].tta, PROFILES["accurate"].tta) == (False, True)


def test_without_a_profile_nothing_changes() -> None:
    assert choose(None) == InferenceSettings(step=None, tta=True, precision=None)
    assert choose(None, step=1.0, tta=False, precision="int8") == InferenceSettings(
        step=1.0, tta=False, precision="int8"
    )


def test_what_is_typed_wins_over_the_profile() -> None:
    assert choose("fast", tta=True) == InferenceSettings(
        0.75, True, None, judged=True, profile="fast", typed=("--tta/--no-tta",)
    )
    assert choose("balanced", step=0.5, precision="int8") == InferenceSettings(
        0.5, False, "int8", (), judged=False, profile="balanced", typed=("--step", "--precision")
    )
    assert choose("accurate", tta=False).precision == "fp32"


def test_the_cost_of_what_really_ran_is_told() -> None:
    chosen = choose("fast")
    cost = cost_of(figures(), settings(chosen.step, "int8"), INT8)
    assert cost is not None
    line = told(chosen, settings(chosen.step, "int8"), INT8, figures())
    assert line.startswith(f"profile fast: step {chosen.step:g}, not mirrored, int8; on 15 held-out scans (")
    assert "\n" not in line
    float32 = facts(chosen, figures(), settings(chosen.step), FP32)["profile"]["measured"]
    assert (float32["precision"], float32["scans"]) == ("fp32", figures().scans)


def test_a_gain_is_not_told_as_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose("fast")
    ran = settings(chosen.step)
    filled = ran | facts(chosen, figures(), ran, FP32)
    filled["profile"]["measured"] |= {"mean_cost": -0.002, "worst_cost": 0.0123}
    assert "this cost no Dice on average, 0.0123 of Dice in the worst scan" in profile_summary(chosen, filled)


@pytest.mark.parametrize(
    ("ran", "precisions"),
    [
        (settings(0.3), FP32),
        (settings(0.5, mirror_axes=[0, 1]), FP32),
        (settings(0.5, accumulator="float16"), FP32),
        (settings(0.5, "bfloat16"), {"encoder": "bf16", "decoder": "bf16"}),
        (settings(0.5, "encoder int8, decoder float32"), {"encoder": "int8", "decoder": "fp32"}),
    ],
)
def test_what_was_not_measured_is_called_that(ran: dict[str, Any], precisions: dict[str, str]) -> None:
    chosen = choose("balanced", step=ran["step"])
    line = told(chosen, ran, precisions, figures())
    assert line.startswith("profile balanced with --step as typed: ")
    assert line.endswith("what this costs in Dice was not measured for this bundle")


def test_nothing_is_claimed_of_a_bundle_that_was_not_measured() -> None:
    chosen = choose("balanced")
    assert told(chosen, settings(0.5), FP32, None).endswith("what this costs in Dice was not measured for this bundle")
    assert facts(chosen, None, settings(0.5), FP32)["profile"]["measured"] is None


def test_figures_of_a_hostile_bundle_do_not_steer_the_terminal() -> None:
    hostile = figures().model_copy(update={"where": "\x1b[2J\nnowhere " * 1000})
    line = told(choose("balanced"), settings(0.5), FP32, hostile)
    assert line.isprintable()
    assert len(line) < 500


def test_the_accurate_profile_is_what_the_others_are_measured_against() -> None:
    ran = settings(0.5, mirror_axes=[0])
    assert "measured against this" in told(choose("accurate"), ran, FP32, None)
    assert "measured against this" not in told(choose("accurate", tta=False), settings(0.5), FP32, None)
