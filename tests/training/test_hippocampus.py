"""`masksam-deploy prepare-sample-data --data hippocampus` on tiny made-up volumes."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from masksam_deploy.base.errors import DatasetError, OutputError
from masksam_export.cli_prepare import prepare_sample_data as command
from masksam_export.families.masksam.training.dataset import read_dataset
from masksam_export.families.masksam.training.samples.hippocampus import prepare_hippocampus
from tests.training.raw_dataset import write_image

NAMES = [f"hippocampus_{index:03d}" for index in (1, 4, 7, 11, 15, 20, 21, 30)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "hippocampus_msd" / folder).mkdir(parents=True)
        for index, name in enumerate(NAMES):
            array = np.full((4, 5, 6), index % 3, np.uint8)
            array.flat[:3] = (0, 1, 2)
            write_image(tmp_path / "hippocampus_msd" / folder / f"{name}.nii.gz", array)
    return tmp_path


def test_every_fourth_volume_is_set_aside_unchanged(source: Path, tmp_path: Path) -> None:
    prepared = prepare_hippocampus(source, tmp_path / "data")
    assert (prepared.training, prepared.test) == (6, 2)
    dataset = read_dataset(tmp_path / "data")
    assert [case.name for case in dataset.cases] == [
        n for n in NAMES if n not in ("hippocampus_011", "hippocampus_030")
    ]
    assert dataset.label_names == ("background", "anterior", "posterior")
    kept = tmp_path / "data" / "imagesTs" / "hippocampus_011_0000.nii.gz"
    original = source / "hippocampus_msd" / "imagesTr" / "hippocampus_011.nii.gz"
    assert kept.read_bytes() == original.read_bytes()
    assert (tmp_path / "data" / "labelsTs" / "hippocampus_030.nii.gz").is_file()
    assert "CC-BY-SA-4.0" in (tmp_path / "data" / "LICENSE.txt").read_text()
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["numTraining"] == 6


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_a_volume_without_its_partner_is_refused_by_name(folder: str, source: Path, tmp_path: Path) -> None:
    (source / "hippocampus_msd" / folder / "hippocampus_015.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"without a partner: .*hippocampus_015\.nii\.gz"):
        prepare_hippocampus(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["hippocampus_001", "hippocampus_011"])  # to train on, and set aside
def test_a_value_beyond_the_list_is_refused_by_name(name: str, source: Path, tmp_path: Path) -> None:
    array = np.full((4, 5, 6), 99, np.uint8)
    write_image(source / "hippocampus_msd" / "labelsTr" / f"{name}.nii.gz", array)
    with pytest.raises(DatasetError, match=rf"{name}.*99"):
        prepare_hippocampus(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_another_grid_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    write_image(source / "hippocampus_msd" / "labelsTr" / "hippocampus_011.nii.gz", array, (1.0, 2.0, 1.0))
    with pytest.raises(DatasetError, match="hippocampus_011"):
        prepare_hippocampus(source, tmp_path / "data")


def test_an_empty_folder_is_refused(source: Path, tmp_path: Path) -> None:
    for path in (source / "hippocampus_msd").rglob("*.nii.gz"):
        path.unlink()
    with pytest.raises(DatasetError, match="no volumes"):
        prepare_hippocampus(source / "hippocampus_msd", tmp_path / "data")


def test_the_command_replaces_only_sample_data(source: Path, tmp_path: Path) -> None:
    arguments = [str(source), "--data", "hippocampus", "-o", str(tmp_path / "data")]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "6 training and 2 test cases" in result.stdout
    with pytest.raises(OutputError, match="--force"):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert CliRunner().invoke(command, [*arguments, "--force"], catch_exceptions=False).exit_code == 0
