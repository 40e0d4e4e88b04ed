"""Recipes whose fields contradict each other, or that this version does not know, are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from masksam_deploy.base.errors import BundleError
from masksam_deploy.bundle.manifest import SCHEMA_VERSION, Manifest
from masksam_deploy.bundle.rules import parse_manifest
from tests.bundle.test_manifest_rules import COMPLETE, REMOVED, changed

NOW: dict[str, Any] = json.loads(
    parse_manifest(json.dumps(COMPLETE).encode(), "x")
    .model_copy(update={"schema_version": SCHEMA_VERSION})
    .model_dump_json()
)
ROOT = Path(__file__).parents[2]
CHANNEL, GRID, WINDOWS, SCORES = "recipe/channels/0", "recipe/grid", "recipe/windows", "recipe/scores"
MA_SAM = {
    "advance": [{"kind": "voxels", "voxels": 1}, {"kind": "share", "share": 1.0}, {"kind": "share", "share": 1.0}],
    "overhang": [2, 0, 0],
    "edge": "repeat",
    "weight": "uniform",
    "mirror_axes": [],
}


def parsed(content: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps(content).encode(), "x.masksam")


def test_a_manifest_of_today_says_the_same_as_the_one_of_schema_1() -> None:
    old, new = parsed(COMPLETE), parsed(NOW)
    assert new == old.model_copy(update={"schema_version": SCHEMA_VERSION})
    assert [step.kind for step in new.recipe.channels[0].before] == ["clip", "scale"]
    assert new.recipe.windows.mirror_axes == new.mirror_axes == (1, 2)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (WINDOWS, MA_SAM),
        (f"{CHANNEL}/on_window", [{"kind": "min-max", "over": "window", "guard": "added", "epsilon": 1e-8}]),
        (f"{CHANNEL}/after", [{"kind": "quantise", "highest": 255}]),
        (f"{GRID}/flip", [1, 2]),
        (f"{GRID}/size", [{"kind": "keep"}, {"kind": "count", "voxels": 32}, {"kind": "longest", "voxels": 64}]),
        (f"{GRID}/resampling", {"order": 3, "order_z": 3, "force_separate_z": None, "coordinates": "corners"}),
        (f"{SCORES}/before_sum", "softmax"),
        (SCORES, {"before_sum": "none", "bring_back": "labels", "resampling": {"order": 0, "order_z": 0}}),
    ],
)
def test_what_other_families_need_has_its_place(place: str, value: object) -> None:
    parsed(changed(place, value, NOW))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"{CHANNEL}/before/0/kind", "sharpen", r"field 'recipe\.channels\.0.*sharpen"),
        (f"{CHANNEL}/before/0/gamma", 2.0, r"gamma"),
        (f"{WINDOWS}/dilation", 2, r"dilation"),
        (f"{GRID}/size/0/kind", "voxels", r"voxels"),
        ("contract", "prompted", r"contract.*'prompted'"),
        ("recipe", REMOVED, r"'recipe'"),
        (f"{GRID}/transpose", [0, 0, 2], r"recipe\.grid\.transpose.*each of 0, 1 and 2 once"),
        (f"{GRID}/flip", [1, 1], r"recipe\.grid\.flip.*at most once"),
        (f"{WINDOWS}/mirror_axes", [1, 1], r"mirror_axes.*at most once"),
        (f"{CHANNEL}/before/0/upper", -100.0, r"lower below upper"),
        (f"{CHANNEL}/before/1/divide", 0.0, r"divide 0, expected more than 0"),
        (f"{CHANNEL}/on_window", [{"kind": "z-score"}], r"on_window\.0'.*'before'"),
        (f"{CHANNEL}/before", [{"kind": "min-max", "over": "window"}], r"before\.0'.*'on_window' and nowhere else"),
        (f"{CHANNEL}/on_window", [{"kind": "min-max", "over": "scan"}], r"'on_window' and nowhere else"),
        (f"{WINDOWS}/overhang", [4, 0, 0], r"overhang\.0'.*0 to 3"),
        (f"{WINDOWS}/overhang", [-1, 0, 0], r"overhang\.0'"),
        (f"{WINDOWS}/advance/1", {"kind": "voxels", "voxels": 17}, r"advance\.1'.*1 to 16"),
        (f"{WINDOWS}/advance/1", {"kind": "share", "share": 1.5}, r"advance"),
        (f"{WINDOWS}/advance/1", {"kind": "share", "share": 1e-9}, r"advance.*greater than or equal to 0\.05"),
        (f"{WINDOWS}/advance/2", {"kind": "voxels", "voxels": 1}, r"advance\.2'.*2 to 32"),
        (f"{GRID}/size/0", {"kind": "count", "voxels": 10**9}, r"size.*less than or equal to 16384"),
        (f"{GRID}/size/0", {"kind": "longest", "voxels": 10**9}, r"size.*less than or equal to 16384"),
        (f"{SCORES}/bring_back", "labels", r"order 0 for labels"),
        (f"{GRID}/resampling/coordinates", "corners", r"where corners are aligned"),
    ],
)
def test_contradictions_and_unknown_kinds_are_refused(place: str, value: object, expected: str) -> None:
    with pytest.raises(BundleError) as caught:
        parsed(changed(place, value, NOW))
    message = str(caught.value)
    assert re.search(expected, message), message
    assert "\n" not in message
    assert len(message) < 500


def test_figures_of_another_network_are_refused() -> None:
    figures = json.loads((ROOT / "models" / "masksam-tiny-lv" / "measured.json").read_text())
    with pytest.raises(BundleError, match=r"measured\.source_sha256.*of the checkpoint"):
        parsed(NOW | {"measured": figures})
    own = figures | {"source_sha256": NOW["provenance"]["source_sha256"]}
    assert parsed(NOW | {"measured": own}).measured is not None


def test_regions_are_not_decided_from_a_softmax() -> None:
    content = changed("labels/decision", "regions", changed(f"{SCORES}/before_sum", "softmax", NOW))
    with pytest.raises(BundleError, match="overlapping regions"):
        parsed(content)
