"""build-engine, sensitivity, and how infer and doctor see their results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnx", reason="needs the 'engines' extra")

from masksam_deploy.base.errors import GateError, MaskSamError
from masksam_deploy.cli import app
from tests.engines.small_bundle import make_bundle, write_ball_scans


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("cli") / "balls.masksam", cases=1).path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "balls.masksam"))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_ball_scans(tmp_path / "scans", range(10, 12))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert isinstance(result.exception, MaskSamError), result.output
    return str(result.exception)


def test_build_engine_prints_the_gate_and_infer_uses_the_engine_and_says_so(
    bundle: Path, scans: Path, tmp_path: Path
) -> None:
    built = invoke("build-engine", bundle, "--int8", "--calibration", scans, "--threads", 1)
    assert built.exit_code == 0, built.output
    assert "Dice gate" in built.output
    assert "case_0" in built.output
    assert "encoder: int8" in built.output
    ran = invoke("infer", scans / "scan_10.nii.gz", "-b", bundle, "-o", tmp_path / "seg.nii.gz")
    assert ran.exit_code == 0, ran.output
    assert "int8 (engine onnxruntime-int8-" in ran.output
    float32 = invoke(
        "infer", scans / "scan_10.nii.gz", "-b", bundle, "-o", tmp_path / "b.nii.gz", "--precision", "fp32", "--json"
    )
    settings = json.loads(float32.output)["settings"]
    assert (settings["precision"], settings["engine"]) == ("float32", None)


def test_build_engine_reports_for_machines(bundle: Path) -> None:
    content = json.loads(invoke("build-engine", bundle, "--fp16", "--json").output)
    assert content["target"] == "onnxruntime"
    assert content["gate"]["judged"] is True
    assert Path(content["engine"]).is_dir()


def test_the_recorded_command_builds_the_same_engine_again(bundle: Path, scans: Path) -> None:
    first = json.loads(
        invoke("build-engine", bundle, "--int8", "--calibration", scans, "--graph", "decoder=fp16", "--json").output
    )
    words = first["provenance"]["command"].split()
    assert words[:2] == ["masksam-deploy", "build-engine"]
    again = json.loads(invoke(*words[1:]).output)
    assert again["engine"] == first["engine"]
    assert again["files"] == first["files"]


def test_a_gate_that_fails_exits_with_3(bundle: Path, scans: Path) -> None:
    result = invoke(
        "build-engine", bundle, "--int8", "--calibration", scans, "--validation", scans, "--strict",
        "--max-mean-loss", "0",
    )  # fmt: skip
    assert isinstance(result.exception, GateError)
    assert "expected at most 0 and 0.01 for a class" in str(result.exception)
    assert GateError.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say in which precision"),
        (["--fp16", "--no-gate", "--strict"], "--no-gate switches off"),
        (["--fp16", "--references", "x.nii.gz"], "--references belong to scans"),
        (["--fp16", "--graph", "decoder"], "is not like decoder=fp16"),
        (["--fp16", "--graph", "decoder=fp8"], "is not like decoder=fp16"),
        (["--fp16", "--batches", "1,2"], "neither like 2 nor like 1,1,4"),
        (["--fp16", "--workspace", "much"], "much"),
        (["--fp16", "--max-mean-loss", "2"], "not in the range from 0 to 1"),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(bundle: Path, arguments: list[str], message: str) -> None:
    result = invoke("build-engine", bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_what_cannot_be_built_is_refused_in_one_line(bundle: Path, scans: Path, tmp_path: Path) -> None:
    assert "found no calibration scans" in refused("build-engine", bundle, "--int8")
    assert "found nothing there" in refused("build-engine", bundle, "--int8", "--calibration", tmp_path / "none")
    assert "found graph" in refused("build-engine", bundle, "--fp16", "--graph", "neck=fp32")
    assert "cannot be used with target" in refused("build-engine", bundle, "--fp16", "--gpu", "sm89")
    assert "cannot be read" in refused(
        "build-engine", bundle, "--int8", "--calibration", scans, "--exclude", tmp_path / "none.json"
    )
    bare = make_bundle(tmp_path / "bare.masksam").path
    assert "found no validation scans in the bundle" in refused("build-engine", bare, "--fp16")
    unjudged = invoke("build-engine", bare, "--fp16", "--no-gate")
    assert unjudged.exit_code == 0, unjudged.output
    assert "NOT JUDGED" in unjudged.output
    judged = invoke("build-engine", bare, "--fp16", "--validation", scans)
    assert judged.exit_code == 0, judged.output


def test_sensitivity_writes_the_list_that_build_engine_uses(scans: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "outlier.masksam", outlier=3000.0, cases=1).path
    ranked = invoke("sensitivity", bundle, "--calibration", scans, "--json", "--threads", 1)
    assert ranked.exit_code == 0, ranked.output
    content = json.loads(ranked.output)
    assert content["excluded"] == {"encoder": ["make_narrowed"]}
    assert Path(content["exclusions"]) == bundle / "engines" / "exclusions.json"
    engine = invoke("build-engine", bundle, "--int8", "--calibration", scans, "--json", "--strict")
    assert engine.exit_code == 0, engine.output
    graphs = json.loads(engine.output)["provenance"]["graphs"]
    assert graphs["encoder"]["excluded_from_int8"] == ["make_narrowed"]
    assert "most harmful of 4 layers" in invoke("sensitivity", bundle, "--calibration", scans).output


def test_doctor_lists_engines_and_whether_they_are_valid_here(bundle: Path) -> None:
    invoke("build-engine", bundle, "--fp16")
    text = invoke("doctor", bundle)
    assert text.exit_code == 0, text.output
    assert "onnxruntime fp16" in text.output
    (state,) = json.loads(invoke("doctor", bundle, "--json").output)["engines"]
    assert (state["title"], state["judged"], state["problem"]) == ("onnxruntime fp16", True, None)


def test_a_stale_engine_is_not_used_and_infer_says_why(bundle: Path, scans: Path, tmp_path: Path) -> None:
    invoke("build-engine", bundle, "--int8", "--calibration", scans)
    (record,) = bundle.glob("engines/*/engine.json")
    content = json.loads(record.read_text())
    content["machine"]["onnxruntime"] = "0.1"
    record.write_text(json.dumps(content))
    ran = invoke("infer", scans / "scan_10.nii.gz", "-b", bundle, "-o", tmp_path / "seg.nii.gz")
    assert ran.exit_code == 0, ran.output
    assert "is not used: it was built for onnxruntime '0.1'" in ran.stderr
    assert "build it again: masksam-deploy build-engine" in ran.stderr
    assert "float32" in ran.stdout
    message = refused(
        "infer", scans / "scan_10.nii.gz", "-b", bundle, "-o", tmp_path / "x.nii.gz", "--precision", "int8"
    )
    assert "found no int8 engine that is valid here" in message


def test_an_unjudged_engine_says_so_when_it_runs(bundle: Path, scans: Path, tmp_path: Path) -> None:
    invoke("build-engine", bundle, "--fp16", "--no-gate")
    command = ("infer", scans / "scan_10.nii.gz", "-b", bundle, "-o", tmp_path / "seg.nii.gz")
    assert "NOT JUDGED" in invoke(*command, "--precision", "fp16").stdout
    plain = invoke(*command)
    assert "float32" in plain.stdout
    assert "nothing shows that it is right" in plain.stderr
    settings = json.loads(invoke(*command, "--precision", "fp16", "--json").stdout)["settings"]
    assert settings["engine_judged"] is False
    assert len(settings["engine_sha256"]) == 64


def test_sensitivity_writes_over_no_scan_and_into_no_bundle(bundle: Path, scans: Path, tmp_path: Path) -> None:
    scan = scans / "scan_10.nii.gz"
    before = scan.read_bytes()
    assert "expected .json" in refused("sensitivity", bundle, "--calibration", scans, "-o", scan)
    assert scan.read_bytes() == before
    assert "lies inside the bundle" in refused(
        "sensitivity", bundle, "--calibration", scans, "-o", bundle / "list.json"
    )
    refused("sensitivity", bundle, "--calibration", scans, "-o", scan / "list.json")


def test_options_without_effect_are_refused(bundle: Path, tmp_path: Path) -> None:
    result = invoke("build-engine", bundle, "--fp16", "--exclude", tmp_path / "list.json")
    assert result.exit_code == 2
    assert "--exclude lists layers that stay out of int8" in result.output


def test_engines_of_the_same_bundle_can_be_compared(bundle: Path, scans: Path) -> None:
    invoke("build-engine", bundle, "--int8", "--calibration", scans)
    compared: Any = invoke(
        "compare", bundle, bundle, scans / "scan_10.nii.gz", "--precision-b", "int8", "--json", "--min-dice", "0.9"
    )
    assert compared.exit_code == 0, compared.output
    content = json.loads(compared.stdout)
    assert (content["a"]["settings"]["precision"], content["b"]["settings"]["precision"]) == ("float32", "int8")


def test_a_bundle_that_changed_is_not_built_from(bundle: Path) -> None:
    with (bundle / "decoder.onnx").open("ab") as file:
        file.write(b"x")
    assert "decoder.onnx" in refused("build-engine", bundle, "--fp16")
