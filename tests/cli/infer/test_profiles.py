"""`masksam-deploy infer --profile`: what runs, what wins over it, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from masksam_deploy.cli import app
from masksam_deploy.engines.profiles import PROFILES
from tests.engines.small_bundle import make_bundle, write_ball_scans

FIGURES = Path(__file__).parents[3] / "models" / "masksam-tiny-lv" / "measured.json"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ball_scans(tmp_path_factory.mktemp("profiles") / "scans", range(10, 12))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without engines."""
    return make_bundle(tmp_path_factory.mktemp("profiles") / "balls.masksam", cases=1).path


@pytest.fixture(scope="module")
def bundle(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a judged engine in int8, and with figures as if it were the repository's model."""
    made = make_bundle(tmp_path_factory.mktemp("profiles") / "balls.masksam", cases=1).path
    manifest = made / "manifest.json"
    content = json.loads(manifest.read_text())
    figures = json.loads(FIGURES.read_text()) | {"source_sha256": content["provenance"]["source_sha256"]}
    manifest.write_text(json.dumps(content | {"measured": figures}))
    assert invoke("build-engine", made, "--int8", "--calibration", scans).exit_code == 0
    return made


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ran(scan: Path, bundle: Path, out: Path, *options: object) -> tuple[dict[str, Any], str]:
    """The settings in the report, and what was printed."""
    result = invoke("infer", scan, "-b", bundle, "-o", out / "seg.nii", "--report", out / "report.json", *options)
    assert result.exit_code == 0, (result.output, result.exception)
    settings: dict[str, Any] = json.loads((out / "report.json").read_text())["settings"]
    return settings, result.output


@pytest.mark.parametrize(
    ("options", "step", "precision"),
    [
        (["--profile", "accurate"], 0.5, "float32"),
        (["--profile", "balanced"], 0.5, "float32"),
        (["--profile", "fast"], PROFILES["fast"].step, "int8"),
        (["--profile", "fast", "--precision", "fp32"], PROFILES["fast"].step, "float32"),
        (["--profile", "fast", "--step", "1"], 1.0, "int8"),
        (["--profile", "accurate", "--precision", "int8"], 0.5, "int8"),
    ],
)
def test_a_profile_chooses_and_what_is_typed_wins(
    scans: Path, bundle: Path, tmp_path: Path, options: list[str], step: float, precision: str
) -> None:
    settings, text = ran(scans / "scan_10.nii.gz", bundle, tmp_path, *options)
    assert (settings["step"], settings["precision"]) == (step, precision)
    assert settings["profile"]["name"] == options[1]
    assert settings["profile"]["typed_besides"] == options[2:3]
    line = next(line for line in text.splitlines() if line.startswith(f"profile {options[1]}"))
    assert f"step {step:g}, not mirrored, {precision};" in line
    measured = settings["profile"]["measured"]
    if step == 1:
        assert measured is None
        assert line.endswith("was not measured for this bundle")
    else:
        assert (measured["step"], measured["precision"]) == (step, {"float32": "fp32"}.get(precision, precision))


def test_without_a_profile_nothing_is_said_of_profiles(scans: Path, bundle: Path, tmp_path: Path) -> None:
    settings, text = ran(scans / "scan_10.nii.gz", bundle, tmp_path)
    assert (settings["step"], settings["precision"]) == (0.5, "int8")
    assert "profile" not in settings
    assert not any(line.startswith("profile") for line in text.splitlines())


def test_fast_without_an_engine_runs_float32_and_says_so(scans: Path, plain: Path, tmp_path: Path) -> None:
    settings, text = ran(scans / "scan_10.nii.gz", plain, tmp_path, "--profile", "fast")
    assert settings["engine"] is None
    assert "not mirrored, float32; what this costs in Dice was not measured for this bundle" in text


def test_a_profile_never_takes_an_engine_that_was_not_judged(scans: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "balls.masksam", cases=1).path
    assert invoke("build-engine", bundle, "--int8", "--calibration", scans, "--no-gate").exit_code == 0
    scan = scans / "scan_10.nii.gz"
    settings, text = ran(scan, bundle, tmp_path, "--profile", "fast", "--backend", "onnxruntime")
    assert settings["engine"] is None
    assert "nothing shows that it is right" in text
    typed, _ = ran(scan, bundle, tmp_path, "--profile", "fast", "--precision", "int8")
    assert typed["engine_judged"] is False


def test_a_profile_of_many_scans_is_told_once_and_is_in_the_report(scans: Path, bundle: Path, tmp_path: Path) -> None:
    result = invoke("infer", scans, "-b", bundle, "-o", tmp_path / "out", "--profile", "fast")
    assert result.exit_code == 0, result.output
    assert result.output.count("profile fast: ") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"]["profile"]["name"] == "fast"
    assert report["scans"][0]["report"]["settings"] == report["settings"]
    resumed = invoke("infer", scans, "-b", bundle, "-o", tmp_path / "out", "--resume")
    assert f"step was {PROFILES['fast'].step}, is 0.5" in resumed.output


def test_an_unknown_profile_is_refused_with_those_that_there_are(scans: Path, bundle: Path, tmp_path: Path) -> None:
    result = invoke("infer", scans, "-b", bundle, "-o", tmp_path, "--profile", "quick")
    assert result.exit_code == 2
    assert "'fast', 'balanced', 'accurate'" in result.output
