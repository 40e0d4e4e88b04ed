"""Folders of label maps: how files pair up, what is refused, and what all cases say together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from masksam_deploy.base.errors import DiceTooLowError, EvaluationError
from masksam_deploy.evaluation import evaluate_folders
from masksam_deploy.evaluation.evaluation import check_mean_dice
from masksam_deploy.evaluation.label_names import read_label_names


def cube(value: int = 1, shift: int = 0) -> NDArray[np.uint8]:
    array = np.zeros((6, 10, 10), np.uint8)
    array[1:5, 2 + shift : 7 + shift, 2:7] = value
    return array


def write(path: Path, array: NDArray[np.generic], spacing: tuple[float, float, float] = (1, 1, 2)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases: perfect, shifted, and missed."""
    found, wanted = tmp_path / "found", tmp_path / "wanted"
    for name, array in {"a": cube(), "b": cube(shift=2), "c": cube(0)}.items():
        write(found / f"{name}.nii.gz", array)
        write(wanted / f"{name}.nii.gz", cube())
    return found, wanted


def test_the_summary_is_over_all_cases_and_says_how_many(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate_folders(*folders)
    assert [case.pair.case for case in evaluation.cases] == ["a", "b", "c"]
    (row,) = evaluation.summary
    assert (row.counted, row.with_distances, row.missed, row.false_positive, row.both_empty) == (3, 2, 1, 0, 0)
    assert row.mean_dice == pytest.approx((1 + 0.6 + 0) / 3)
    assert row.median_dice == pytest.approx(0.6)
    assert row.min_dice == 0
    assert row.mean_hd95_mm == pytest.approx(1.0)


def test_formats_may_differ_and_other_files_are_passed_over(folders: tuple[Path, Path]) -> None:
    found, wanted = folders
    (found / "a.nii.gz").unlink()
    write(found / "a.nrrd", cube())
    (found / ".hidden.nii.gz").write_bytes(b"junk")
    (wanted / "summary.json").write_text("{}")
    assert evaluate_folders(found, wanted).cases[0].classes[0].dice == 1


def test_names_without_a_partner_are_refused_from_both_sides(folders: tuple[Path, Path]) -> None:
    found, wanted = folders
    write(found / "only_here.nii.gz", cube())
    (found / "a.nii.gz").unlink()
    with pytest.raises(EvaluationError, match=r"1 predictions without a reference \(only_here\).*\(a\)"):
        evaluate_folders(found, wanted)
    evaluation = evaluate_folders(found, wanted, allow_missing=True)
    assert [case.pair.case for case in evaluation.cases] == ["b", "c"]
    assert (evaluation.only_predictions, evaluation.only_references) == (("only_here",), ("a",))


def test_two_files_of_one_case_are_refused(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.mha", cube())
    with pytest.raises(EvaluationError, match=r"a\.mha and a\.nii\.gz"):
        evaluate_folders(*folders)


def test_no_volumes_or_no_folder_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="no volumes"):
        evaluate_folders(tmp_path / "empty", folders[1])
    with pytest.raises(EvaluationError, match="no such"):
        evaluate_folders(tmp_path / "missing", folders[1])
    with pytest.raises(EvaluationError, match=r"a folder .* and a file"):
        evaluate_folders(folders[0], folders[1] / "a.nii.gz")


def test_two_files_are_one_case(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate_folders(folders[0] / "b.nii.gz", folders[1] / "a.nii.gz")
    assert [case.pair.case for case in evaluation.cases] == ["a"]


def test_another_grid_names_case_and_difference(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "b.nii.gz", cube(), spacing=(1, 1.5, 2))
    with pytest.raises(EvaluationError, match=r"case 'b', the prediction: found spacing \(1\.0, 1\.5, 2\.0\)"):
        evaluate_folders(*folders)


def test_values_beyond_the_list_name_file_and_values(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "b.nii.gz", cube(7))
    with pytest.raises(EvaluationError, match=r"b\.nii\.gz.*found the label values 7, expected only 0 and 1"):
        evaluate_folders(*folders, names={1: "organ"})
    values = [entry.name for entry in evaluate_folders(*folders).summary]
    assert values == ["1", "7"]


@pytest.mark.parametrize("array", [cube().astype(np.float32) * 0.5, -cube().astype(np.int16)])
def test_a_file_that_is_no_label_map_is_refused(folders: tuple[Path, Path], array: NDArray[np.generic]) -> None:
    write(folders[0] / "b.nii.gz", array)
    with pytest.raises(EvaluationError, match=r"b\.nii\.gz.*whole numbers"):
        evaluate_folders(*folders)


def test_whole_numbers_stored_as_floats_are_labels(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "a.nii.gz", cube().astype(np.float32))
    assert evaluate_folders(*folders).cases[0].classes[0].dice == 1


def test_a_scan_in_place_of_a_label_map_is_refused_before_hours_of_work(tmp_path: Path) -> None:
    scan = np.arange(600, dtype=np.int16).reshape(6, 10, 10)
    write(tmp_path / "found" / "a.nii.gz", scan)
    write(tmp_path / "wanted" / "a.nii.gz", cube())
    with pytest.raises(EvaluationError, match=r"case 'a': found 599 different values.*a scan"):
        evaluate_folders(tmp_path / "found", tmp_path / "wanted")


def test_one_folder_given_twice_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(EvaluationError, match="on both sides"):
        evaluate_folders(folders[0], folders[0])


def test_nothing_but_background_is_refused(tmp_path: Path) -> None:
    for side in ("found", "wanted"):
        write(tmp_path / side / "a.nii.gz", cube(0))
    with pytest.raises(EvaluationError, match="only the value 0"):
        evaluate_folders(tmp_path / "found", tmp_path / "wanted")


def test_the_gate_names_the_class_that_is_too_low(folders: tuple[Path, Path]) -> None:
    evaluation = evaluate_folders(*folders, names={1: "organ", 2: "never there"})
    check_mean_dice(evaluation, 0.5)
    with pytest.raises(DiceTooLowError, match=r"'organ' 0\.5333\d+ over 3 cases"):
        check_mean_dice(evaluation, 0.6)


def test_names_come_from_a_dataset_or_a_bundle(tmp_path: Path, cardiac_bundle: Path) -> None:
    description = tmp_path / "dataset.json"
    description.write_text(json.dumps({"labels": {"background": 0, "b": 2, "a": 1}}))
    assert read_label_names(description) == {1: "a", 2: "b"}
    assert len(read_label_names(cardiac_bundle)) >= 1


@pytest.mark.parametrize(
    "labels",
    [None, [], {"background": 0}, {"a": [1, 2]}, {"a": 1, "b": 1}, {"a": -1}, {"a": True}, {"a": 1, "ignore": 2}],
)
def test_a_list_of_labels_that_does_not_name_single_values_is_refused(tmp_path: Path, labels: object) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    with pytest.raises(EvaluationError, match="found"):
        read_label_names(path)


def test_a_damaged_list_of_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    for content in ("{", '{"labels": {"a": 1, "a": 2}}'):
        path.write_text(content)
        with pytest.raises(EvaluationError, match="no usable JSON"):
            read_label_names(path)
