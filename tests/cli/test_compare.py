"""`masksam-deploy compare` on a real scan with the network of the cardiac case."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import SimpleITK
from click.testing import CliRunner, Result

from masksam_deploy.base.errors import BundleError, DisagreementError, MaskSamError, OutputError
from masksam_deploy.bundle.rules import MANIFEST_NAME
from masksam_deploy.cli import app


@pytest.fixture(scope="module")
def scans(cardiac_case: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twice five slices of the real scan, so that a run takes seconds."""
    image = SimpleITK.ReadImage(str(cardiac_case / "c_cardiac_0000.nii.gz"))
    folder = tmp_path_factory.mktemp("scans")
    paths = [folder / "low.nii.gz", folder / "high.nii.gz"]
    for path, first in zip(paths, (1, 4), strict=True):
        SimpleITK.WriteImage(image[:, :, first : first + 5], str(path))
    return paths


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def failure(result: Result) -> MaskSamError:
    assert isinstance(result.exception, MaskSamError), result.output
    return result.exception


@pytest.fixture(scope="module")
def against_itself(cardiac_bundle: Path, scans: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Result:
    table = tmp_path_factory.mktemp("csv") / "c.csv"
    result = call(
        cardiac_bundle, cardiac_bundle, *scans, "--no-tta", "--csv", table, "--min-agreement", 1, "--min-dice", 1
    )
    assert table.read_text().startswith("scan,agreement,foreground_agreement,value,name,dice")
    return result


def test_a_bundle_agrees_fully_with_itself_and_passes_the_strictest_gates(against_itself: Result) -> None:
    assert against_itself.exit_code == 0, against_itself.output
    assert "lowest agreement: 100 % of all voxels" in against_itself.stdout
    assert against_itself.stderr == ""  # no progress bar in a pipe


def test_the_tables_show_both_sides_every_scan_and_the_worst(against_itself: Result) -> None:
    for expected in ("A: ", "B: ", "float32 accumulator", "low.nii.gz", "high.nii.gz", "1.000000", "Worst of 2 scans"):
        assert expected in against_itself.stdout
    assert "\x1b" not in against_itself.stdout


@pytest.fixture(scope="module")
def half_precision(cardiac_bundle: Path, scans: list[Path]) -> Result:
    return call(
        cardiac_bundle, cardiac_bundle, scans[0], "--no-tta", "--accumulator-b", "float16", "--json",
        "--min-agreement", 1,
    )  # fmt: skip


def test_summing_in_half_precision_changes_some_voxels(half_precision: Result) -> None:
    content = json.loads(half_precision.stdout)
    assert 0.9 < content["worst"]["agreement"] < 1
    (scan,) = content["scans"]
    assert scan["disagreeing_voxels"] > 0
    assert min(entry["dice"] for entry in scan["classes"] if entry["dice"] is not None) < 1
    assert (content["a"]["settings"]["accumulator"], content["b"]["settings"]["accumulator"]) == ("float32", "float16")


def test_a_gate_that_fails_comes_after_the_result_and_exits_with_3(half_precision: Result) -> None:
    error = failure(half_precision)
    assert isinstance(error, DisagreementError) and error.exit_code == 3
    assert "low.nii.gz: found the same label on" in str(error) and "expected at least 100 %" in str(error)


def test_a_gate_on_dice_exits_with_3(cardiac_bundle: Path, scans: list[Path]) -> None:
    result = call(
        cardiac_bundle, cardiac_bundle, scans[0], "--no-tta", "--accumulator-a", "float16", "--min-dice", 1
    )  # fmt: skip
    error = failure(result)
    assert error.exit_code == 3
    assert "expected at least 1 for every class in every scan" in str(error)
    assert "lowest agreement" in result.stdout


def test_bundles_with_other_labels_are_refused(cardiac_bundle: Path, scans: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.masksam"
    shutil.copytree(cardiac_bundle, other)
    manifest = json.loads((other / MANIFEST_NAME).read_text())
    name = manifest["labels"]["classes"][1]["name"]
    manifest["labels"]["classes"][1]["name"] = "something else"
    (other / MANIFEST_NAME).write_text(json.dumps(manifest))
    error = failure(call(cardiac_bundle, other, scans[0]))
    assert isinstance(error, BundleError) and error.exit_code == 2
    assert f"found label 1 called 'something else', expected called '{name}'" in str(error)


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have CUDA")
def test_a_device_that_is_missing_is_refused_before_the_other_side_runs(cardiac_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("no scan: reading it would fail")
    error = failure(call(cardiac_bundle, cardiac_bundle, tmp_path / "scan.nii.gz", "--device-b", "cuda"))
    assert "device 'cuda' was asked for" in str(error)


@pytest.mark.parametrize("name", ["c.txt", "missing/c.csv"])
def test_a_table_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    assert isinstance(failure(call(tmp_path, tmp_path, "scan", "--csv", tmp_path / name)), OutputError)


def test_a_table_inside_a_bundle_is_refused(tmp_path: Path) -> None:
    error = failure(call(tmp_path, "b", "scan", "--csv", tmp_path / "c.csv"))
    assert "lies inside a bundle" in str(error)


@pytest.mark.parametrize("arguments", [["--min-dice", "1.1"], ["--min-agreement", "nan"], ["--device-a", "tpu"]])
def test_wrong_options_are_usage_errors(arguments: list[str]) -> None:
    assert call("a", "b", "scan", *arguments).exit_code == 2


def test_the_listed_purpose_is_the_one_that_the_command_states() -> None:
    from masksam_deploy.cli.compare import compare
    from masksam_deploy.cli.group import _BUILT_IN

    assert compare.get_short_help_str(limit=200) == _BUILT_IN["compare"][1]


def test_a_scan_is_required() -> None:
    assert call("a", "b").exit_code == 2
