"""The command as a user calls it, on a small network. No test looks at how long anything took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

pytest.importorskip("onnx", reason="needs the 'engines' extra")
pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")

from masksam_deploy.base.errors import (
    DisagreementError,
    EngineError,
    MissingDependencyError,
    OutputError,
    RegressionError,
)
from masksam_deploy.bench.contenders import BaselineMode
from masksam_deploy.bench.results import BenchResult, read_result
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli import app
from masksam_deploy.runtimes import Device, GraphChain, open_chain
from tests.engines.small_bundle import make_bundle

QUICK = ("--repeats", "3", "--scan-repeats", "1", "--windows", "2", "--threads", "1", "--no-cold", "--no-roofline")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bench") / "balls.masksam", cases=1)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


def own_open_baseline(
    checkpoint: Path, bundle: Bundle, mode: BaselineMode, *, device: Device, threads: int | None
) -> GraphChain:
    """Stands at the entry point; what it opens is real. The torch side's own is in tests/export/test_baseline.py."""
    assert (checkpoint.name, mode, device) == ("checkpoint.pth", "eager", "cpu")
    return open_chain(bundle, threads=threads)


def test_a_table_a_json_file_and_a_page_are_written(bundle: Bundle, tmp_path: Path) -> None:
    found, page = tmp_path / "out.json", tmp_path / "out.html"
    result = call(bundle.path, *QUICK, "--json", found, "--html", page)
    assert result.exit_code == 0
    for expected in ("onnxruntime fp32", "windows/s", "resample back", "no roofline: not asked for", f"json: {found}"):
        assert expected in result.stdout
    assert "\x1b" not in result.stdout
    content = json.loads(found.read_text())
    assert content["schema_version"] == 1
    assert content["bundle"] == {"name": "balls", "manifest_sha256": bundle.sha256}
    assert content["settings"]["repeats"] == 3
    assert {"processor", "cores", "system"} <= set(content["machine"])
    assert {"masksam-deploy", "onnxruntime", "python"} <= set(content["software"])
    window = content["runs"][0]["windows"]["whole"]
    assert len(window["samples"]) == 3 and {"p50", "p95", "p99", "spread"} <= set(window)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_two_results_are_compared_and_a_slower_one_exits_with_3(bundle: Bundle, tmp_path: Path) -> None:
    first, second = tmp_path / "old.json", tmp_path / "new.json"
    call(bundle.path, *QUICK, "--json", first)
    result = read_result(first)
    assert call("--compare", first, first).exit_code == 0
    second.write_text(slower(result, 10).model_dump_json())
    with pytest.raises(RegressionError, match="onnxruntime fp32, window") as caught:
        call("--compare", first, second)
    assert caught.value.exit_code == 3
    assert "faster" in call("--compare", second, first).stdout


def slower(result: BenchResult, factor: float) -> BenchResult:
    content = json.loads(result.model_dump_json())
    whole = content["runs"][0]["windows"]["whole"]
    whole["samples"] = [factor * max(whole["samples"])] * 8
    return BenchResult.model_validate_json(json.dumps(content), strict=True)


def test_a_checkpoint_is_measured_through_the_entry_point(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install_baseline(tmp_path, "tests.cli.test_bench:own_open_baseline"))
    result = call(bundle.path, *QUICK, "--baseline", "checkpoint.pth")
    assert result.exit_code == 0
    assert "pytorch eager" in result.stdout


def test_a_checkpoint_without_the_torch_side_says_what_to_install(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install_baseline(tmp_path, "masksam_nowhere.baseline:open_baseline"))
    with pytest.raises(MissingDependencyError, match=r"masksam-deploy\[export\]"):
        call(bundle.path, *QUICK, "--baseline", "checkpoint.pth")


def install_baseline(folder: Path, where: str) -> str:
    """A package on the path that offers a baseline, as an installed torch side does."""
    facts = folder / "own_baseline-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-baseline\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[masksam_deploy.baselines]\ntorch = {where}\n")
    return str(folder)


def test_contenders_that_disagree_exit_with_3_after_the_report(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PyTorch side is given a bundle whose classes are swapped."""
    monkeypatch.syspath_prepend(install_baseline(tmp_path, "tests.cli.test_bench:swapped_baseline"))
    found = tmp_path / "out.json"
    with pytest.raises(DisagreementError, match="pytorch eager: in a window only") as caught:
        call(bundle.path, *QUICK, "--baseline", tmp_path / "checkpoint.pth", "--json", found)
    assert caught.value.exit_code == 3
    wrong = read_result(found).runs[1]
    assert wrong.windows is None and not wrong.check.passed


def swapped_baseline(
    checkpoint: Path, bundle: Bundle, mode: BaselineMode, *, device: Device, threads: int | None
) -> GraphChain:
    import onnx

    copy = shutil.copytree(bundle.path, checkpoint.parent / "swapped.masksam")
    model = onnx.load(str(copy / "decoder.onnx"))
    weight = next(weight for weight in model.graph.initializer if weight.name == "class_weight")
    swapped = onnx.numpy_helper.to_array(weight)[:, ::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(swapped, weight.name))
    onnx.save(model, str(copy / "decoder.onnx"))
    return open_chain(Bundle.load(copy, verify=False), threads=threads)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a BUNDLE"),
        (("x.masksam", "--baseline-mode", "eager"), "--baseline"),
        (("x.masksam", "--channel", "y.nii.gz"), "first channel as SCAN"),
        (("x.masksam", "--compare", "a.json", "b.json"), "nothing else, found '[BUNDLE]'"),
        (("--compare", "a.json", "b.json", "--html", "c.html"), "nothing else, found '--html'"),
        (("x.masksam", "--step", "0"), "not in the range"),
        (("x.masksam", "--repeats", "0"), "x>=1"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_must_not_be_written_or_cannot_run_is_refused_first(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="lies inside the bundle"):
        call(bundle.path, "--json", bundle.path / "out.json")
    with pytest.raises(OutputError, match=r"expected \.html"):
        call(bundle.path, "--html", tmp_path / "out.json")
    with pytest.raises(EngineError, match="found no onnxruntime int8 engine"):
        call(bundle.path, "--run", "onnxruntime:int8")
