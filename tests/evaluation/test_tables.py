"""What a person sees of an evaluation in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from masksam_deploy.evaluation import evaluate_folders
from masksam_deploy.evaluation.tables import print_tables
from tests.evaluation.test_folders import cube, write


def printed(root: Path, names: dict[int, str] | None = None) -> str:
    text = io.StringIO()
    print_tables(evaluate_folders(root / "found", root / "wanted", names=names, allow_missing=True), text)
    return text.getvalue()


def test_many_rows_are_shortened_to_the_worst(tmp_path: Path) -> None:
    for number in range(41):
        write(tmp_path / "found" / f"case{number:02}.nii", cube(shift=number % 3))
        write(tmp_path / "wanted" / f"case{number:02}.nii", cube())
    text = printed(tmp_path)
    assert "The 10 worst of 41 by Dice" in text
    assert "case02" in text
    assert "case00" not in text
    assert "Summary of 41 case(s)" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_undefined_figures_are_dashes_and_the_reason_is_said(tmp_path: Path) -> None:
    write(tmp_path / "found" / "a.nii", cube(0))
    write(tmp_path / "wanted" / "a.nii", cube())
    (line,) = [line for line in printed(tmp_path).splitlines() if "missed" in line and line.lstrip().startswith("a ")]
    assert line.split()[:6] == ["a", "1", "0.0000", "0.0000", "\N{EN DASH}", "\N{EN DASH}"]


def test_a_distance_says_when_it_is_over_fewer_cases(tmp_path: Path) -> None:
    for name, value in {"a": 0, "b": 1}.items():
        write(tmp_path / "found" / f"{name}.nii", cube(value))
        write(tmp_path / "wanted" / f"{name}.nii", cube())
    assert "0.00 (1)" in printed(tmp_path)


def test_what_was_left_out_is_said_for_each_side(tmp_path: Path) -> None:
    for side, names in {"found": "ab", "wanted": "bcd"}.items():
        for name in names:
            write(tmp_path / side / f"{name}.nii", cube())
    text = printed(tmp_path)
    assert "left out: 1 predictions without a reference" in text
    assert "left out: 2 references without a prediction" in text


def test_names_are_text_and_neither_markup_nor_control_codes(tmp_path: Path) -> None:
    for side in ("found", "wanted"):
        write(tmp_path / side / "[red]a.nii", np.asarray(cube()))
    text = printed(tmp_path, {1: "\x1b[31m[bold]organ"})
    assert "[red]a" in text
    assert "[bold]organ" in text
    assert "\x1b" not in text
