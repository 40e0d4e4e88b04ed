"""The picture of an evaluation: what it shows of the worst cases, and that odd input does not stop it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from masksam_deploy.evaluation import evaluate_folders
from masksam_deploy.evaluation.figure import draw_figure, worst_cases
from masksam_deploy.evaluation.figure_panel import outline, slice_of_largest_disagreement
from tests.evaluation.test_folders import cube, write

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def folders(root: Path, shifts: dict[str, int]) -> tuple[Path, Path]:
    for name, shift in shifts.items():
        write(root / "found" / f"{name}.nii.gz", cube(shift=shift))
        write(root / "wanted" / f"{name}.nii.gz", cube())
    return root / "found", root / "wanted"


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_the_worst_cases_come_worst_first_and_at_most_three(tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders(tmp_path, {"a": 1, "b": 3, "c": 0, "d": 2}))
    assert [case.pair.case for case, _ in worst_cases(evaluation)] == ["b", "d", "a"]


def test_cases_empty_on_both_sides_are_not_among_the_worst(tmp_path: Path) -> None:
    found, wanted = folders(tmp_path, {"a": 1})
    for side in (found, wanted):
        write(side / "empty.nii.gz", cube(0))
    assert [case.pair.case for case, _ in worst_cases(evaluate_folders(found, wanted))] == ["a"]


def test_the_slice_shown_is_the_middle_one_of_those_that_differ_most() -> None:
    reference = np.zeros((9, 4, 4), bool)
    prediction = reference.copy()
    reference[1:6, 1:3, 1:3] = True
    prediction[5, 1, 1] = True
    assert slice_of_largest_disagreement(reference, prediction, 0) == 3
    assert slice_of_largest_disagreement(reference, reference, 0) == 3
    reference[7] = True
    assert slice_of_largest_disagreement(reference, prediction, 0) == 7
    assert slice_of_largest_disagreement(np.moveaxis(reference, 0, 2), np.moveaxis(prediction, 0, 2), 2) == 7


def test_the_outline_of_a_voxel_at_the_border_has_four_sides() -> None:
    mask = np.zeros((2, 3), bool)
    mask[0, 2] = True
    sides = {tuple(map(tuple, segment)) for segment in outline(mask)}
    assert sides == {((2, 0), (2, 1)), ((3, 0), (3, 1)), ((2, 0), (3, 0)), ((2, 1), (3, 1))}


def test_the_outline_separates_inside_from_outside() -> None:
    mask = np.random.default_rng(1).random((7, 5)) > 0.5
    padded = np.pad(mask, 1).astype(int)
    assert len(outline(mask)) == sum(int(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))


def test_names_that_matplotlib_would_stumble_over_are_drawn(tmp_path: Path) -> None:
    # Mathematics that does not parse, letters that its font lacks (a warning fails tests here), a line break.
    paths = folders(tmp_path, {"a$b$^_{": 1, "肝臓": 2})
    evaluation = evaluate_folders(*paths, names={1: "$\\frac$ [x] 肝\nb"})
    draw_figure(evaluation, tmp_path / "all.png")
    assert pixels(tmp_path / "all.png").std() > 10


def test_the_same_evaluation_gives_the_same_picture(tmp_path: Path) -> None:
    evaluation = evaluate_folders(*folders(tmp_path, {"a": 1, "b": 5, "c": 0}))
    for name in ("one.png", "two.png"):
        draw_figure(evaluation, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_perfect_missed_and_false_positive_cases_are_drawn(tmp_path: Path) -> None:
    found, wanted = folders(tmp_path, {"perfect": 0})
    write(found / "missed.nii.gz", cube(0))
    write(wanted / "missed.nii.gz", cube())
    write(found / "extra.nii.gz", cube())
    write(wanted / "extra.nii.gz", cube(0))
    draw_figure(evaluate_folders(found, wanted), tmp_path / "all.png")
    assert pixels(tmp_path / "all.png").std() > 10


def test_more_classes_than_fit_leave_out_the_better_ones(tmp_path: Path) -> None:
    labels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    write(tmp_path / "found.nii.gz", labels)
    write(tmp_path / "wanted.nii.gz", labels)
    evaluation = evaluate_folders(tmp_path / "found.nii.gz", tmp_path / "wanted.nii.gz")
    assert len(evaluation.classes) == 63
    draw_figure(evaluation, tmp_path / "all.png")
    assert pixels(tmp_path / "all.png").shape[0] < 4000


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 2.0), (3.0, 1.0, 4.0)])
def test_the_panel_keeps_the_proportions_of_the_patient(tmp_path: Path, spacing: tuple[float, float, float]) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    from masksam_deploy.evaluation.figure_panel import draw_panel

    for side in ("found", "wanted"):
        write(tmp_path / f"{side}.nii.gz", cube(), spacing)
    (case,) = evaluate_folders(tmp_path / "found.nii.gz", tmp_path / "wanted.nii.gz").cases
    axes = Figure().subplots()
    draw_panel(axes, case.pair, case.classes[0])
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert axes.get_aspect() == 1
    assert abs(right - left) == pytest.approx(abs(top - bottom))
    # Five voxels along each axis in the plane, in millimetres.
    outlines = [lines for lines in axes.collections if isinstance(lines, LineCollection)]
    corners = np.concatenate([segment for lines in outlines for segment in lines.get_segments()])
    assert np.ptp(corners[:, 0]) == pytest.approx(5 * spacing[0])
    assert np.ptp(corners[:, 1]) == pytest.approx(5 * spacing[1])
