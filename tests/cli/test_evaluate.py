"""`masksam-deploy evaluate` as a person and as a script call it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from masksam_deploy import Volume, read_volume, write_labels
from masksam_deploy.base.errors import DiceTooLowError, MissingDependencyError, OutputError
from masksam_deploy.cli.evaluate import evaluate
from tests.evaluation.test_folders import cube, write

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, shift in (("good", 0), ("worse", 2), ("empty", 0)):
        write(tmp_path / "wanted" / f"{name}.nii.gz", cube(int(name != "empty")))
        write(tmp_path / "found" / f"{name}.nii.gz", cube(int(name != "empty"), shift))
        noise = np.random.default_rng(shift).normal(100, 20, (6, 10, 10)).astype(np.float32)
        write(tmp_path / "scans" / f"{name}_0000.nii.gz", noise)
    return tmp_path


def call(folder: Path, *options: object) -> Result:
    arguments = [str(folder / "found"), str(folder / "wanted"), *map(str, options)]
    return CliRunner().invoke(evaluate, arguments, catch_exceptions=False)


def test_tables_show_every_case_and_the_summary(folders: Path) -> None:
    result = call(folders)
    assert result.exit_code == 0
    for text in ("good", "worse", "1.000", "0.600", "both empty"):
        assert text in result.stdout, result.stdout


def test_machines_get_everything_with_definitions_and_no_nan(folders: Path) -> None:
    report = folders / "all.json"
    printed = json.loads(call(folders, "--json", "--report", report).stdout, parse_constant=pytest.fail)
    assert json.loads(report.read_text(encoding="utf-8")) == printed
    assert "95th percentile" in printed["definitions"]["hd95_mm"]
    empty, good, worse = printed["cases"]
    assert empty["classes"][0]["status"] == "both empty"
    assert empty["classes"][0]["dice"] is None
    assert good["classes"][0]["dice"] == 1
    assert worse["classes"][0]["volume_reference_ml"] == pytest.approx(0.2)
    assert printed["summary"][0]["counted"] == 2


def test_the_csv_has_a_row_per_case_and_class(folders: Path) -> None:
    call(folders, "--csv", folders / "all.csv")
    rows = list(csv.DictReader((folders / "all.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["case"], row["dice"]) for row in rows] == [("empty", ""), ("good", "1.0"), ("worse", "0.6")]


@pytest.mark.parametrize("with_scans", [False, True])
def test_the_picture_holds_box_plots_and_the_worst_cases(folders: Path, with_scans: bool) -> None:
    pytest.importorskip("matplotlib")
    picture = folders / "all.png"
    call(folders, "--plot", picture, *(["--scans", folders / "scans"] if with_scans else []))
    with Image.open(picture) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    blue, orange = np.array([0x56, 0xB4, 0xE9]), np.array([0xE6, 0x9F, 0x00])
    for colour in (blue, orange):  # both contours are drawn
        assert (np.abs(pixels.astype(int) - colour).max(axis=-1) < 12).sum() > 200


def test_scans_without_a_plot_or_missing_scans_are_refused(folders: Path) -> None:
    assert call(folders, "--scans", folders / "scans").exit_code == 2
    pytest.importorskip("matplotlib")
    (folders / "scans" / "good_0000.nii.gz").unlink()
    with pytest.raises(Exception, match="no scan for good"):
        call(folders, "--plot", folders / "x.png", "--scans", folders / "scans")
    assert not (folders / "x.png").exists()


def test_a_dice_below_the_gate_exits_with_3_after_telling_all(folders: Path) -> None:
    assert call(folders, "--min-dice", 0.7).exit_code == 0
    with pytest.raises(DiceTooLowError) as refusal:
        call(folders, "--min-dice", 0.9, "--csv", folders / "all.csv")
    assert refusal.value.exit_code == 3
    assert (folders / "all.csv").is_file()


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan"])
def test_a_gate_that_is_no_share_is_a_wrong_call(folders: Path, value: str) -> None:
    assert call(folders, "--min-dice", value).exit_code == 2


def test_outputs_are_checked_before_the_work(folders: Path) -> None:
    for option, name in (("--csv", "x.txt"), ("--report", "x.csv"), ("--plot", "x.jpg"), ("--csv", "no/such/x.csv")):
        with pytest.raises(OutputError):
            call(folders, option, folders / name)


def test_nothing_of_the_inputs_is_replaced(folders: Path) -> None:
    for side in ("found", "wanted", "scans"):
        (folders / side / "dataset.json").write_text("{}")
        with pytest.raises(OutputError, match="only read"):
            call(folders, "--report", folders / side / "dataset.json", "--plot", "x.png", "--scans", folders / "scans")
        assert (folders / side / "dataset.json").read_text() == "{}"


def test_the_scan_of_one_case_may_be_a_dicom_folder(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    sample = Path(__file__).parents[2] / "examples" / "sunnybrook"
    labels = read_volume(sample / "reference.nii.gz")
    moved = np.roll(np.asarray(labels.array[0], np.uint8), 3, axis=2)
    write_labels(Volume(moved, labels.geometry), tmp_path / "found.nii.gz")
    arguments = [tmp_path / "found.nii.gz", sample / "reference.nii.gz", "--scans", sample / "scan"]
    result = CliRunner().invoke(evaluate, [*map(str, arguments), "--plot", str(tmp_path / "x.png")])
    assert result.exit_code == 0, result.exception
    with Image.open(tmp_path / "x.png") as image:
        grey = np.asarray(image.convert("L"))
    # The scan beneath: many different greys, where a panel without a scan is black.
    assert len(np.unique(grey[grey.shape[0] // 2 :])) > 100


def test_a_plot_without_matplotlib_says_what_to_install(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="evaluate"):
        call(folders, "--plot", folders / "x.png")
