from __future__ import annotations

import sys
import tracemalloc
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from masksam_deploy.base.errors import MissingDependencyError, OutputError, ScanError
from masksam_deploy.base.volume import Array, Geometry, Volume
from masksam_deploy.outputs.overlay import PALETTE, draw_overlay, require_pillow
from masksam_deploy.outputs.overlay_legend import Entry, fitting, font
from masksam_deploy.outputs.overlay_tiles import choose_slices, count_labels, grey_window, painted, resized
from masksam_deploy.outputs.patient_view import radiological_view

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LPS = "LPS"

# Every way to store a volume along the patient's axes: array axis x runs along world axis order[0], and so on.
STORED = [(order, signs) for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)]


def geometry_of(
    shape_zyx: tuple[int, int, int],
    spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0),
    direction: tuple[float, ...] = IDENTITY,
) -> Geometry:
    z, y, x = shape_zyx
    return Geometry((x, y, z), spacing_xyz, (0.0, 0.0, 0.0), direction)


def direction_of(order: tuple[int, ...], signs: tuple[float, ...]) -> tuple[float, ...]:
    matrix = np.zeros((3, 3))
    for axis in range(3):
        matrix[order[axis], axis] = signs[axis]
    return tuple(matrix.ravel().tolist())


def world_coordinates(geometry: Geometry) -> NDArray[np.float64]:
    """LPS millimetres of every voxel, `[3, Z, Y, X]`."""
    z, y, x = np.indices(geometry.shape_zyx)
    steps = np.stack([x, y, z]) * np.reshape(geometry.spacing_xyz, (3, 1, 1, 1))
    return np.tensordot(np.reshape(geometry.direction_lps, (3, 3)), steps, axes=1)


def picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


def pixels_of(sheet: NDArray[np.uint8], colour: int) -> NDArray[np.intp]:
    """Rows and columns of a label's exact colour above the legend, `[N, 2]`."""
    return np.argwhere((sheet == PALETTE[colour]).all(axis=2)[:-60])


@pytest.mark.parametrize(("order", "signs"), STORED)
@pytest.mark.parametrize("coarse", range(3))
def test_however_a_volume_is_stored_the_patient_is_shown_the_same_way(
    order: tuple[int, ...], signs: tuple[float, ...], coarse: int
) -> None:
    spacing = tuple(3.0 if axis == coarse else 1.0 for axis in range(3))
    geometry = geometry_of((4, 5, 6), (spacing[0], spacing[1], spacing[2]), direction_of(order, signs))
    view = radiological_view(geometry)
    left, posterior, superior = (view.slice_of(values, 1) for values in world_coordinates(geometry))
    across = LPS[order[coarse]]
    if across == "S":
        assert (view.plane, view.left, view.right, view.top, view.bottom) == ("axial", "R", "L", "A", "P")
        assert (np.diff(left, axis=1) > 0).all() and (np.diff(posterior, axis=0) > 0).all()
    elif across == "P":
        assert (view.plane, view.left, view.right, view.top, view.bottom) == ("coronal", "R", "L", "S", "I")
        assert (np.diff(left, axis=1) > 0).all() and (np.diff(superior, axis=0) < 0).all()
    else:
        assert (view.plane, view.left, view.right, view.top, view.bottom) == ("sagittal", "A", "P", "S", "I")
        assert (np.diff(posterior, axis=1) > 0).all() and (np.diff(superior, axis=0) < 0).all()


def test_equal_spacing_gives_axial_slices_of_a_transposed_volume() -> None:
    view = radiological_view(geometry_of((4, 5, 6), direction=direction_of((2, 0, 1), (1, 1, 1))))
    assert (view.plane, view.slice_axis) == ("axial", 2)


def test_an_oblique_scan_says_so_and_gets_two_letters() -> None:
    half = np.sqrt(0.5)
    turned = (half, half, 0.0, -half, half, 0.0, 0.0, 0.0, 1.0)
    view = radiological_view(geometry_of((4, 5, 6), (1, 1, 3), turned))
    assert view.plane == "axial"
    assert {len(view.left), len(view.right), len(view.top), len(view.bottom)} == {2}
    assert set(view.right) in ({"L", "A"}, {"L", "P"})
    tilted = (1.0, 0.0, 0.0, 0.0, half, -half, 0.0, half, half)
    assert radiological_view(geometry_of((4, 5, 6), (1, 1, 3), tilted)).plane.startswith("oblique ")


def test_a_slight_tilt_keeps_single_letters() -> None:
    sine, cosine = np.sin(0.2), np.cos(0.2)
    view = radiological_view(geometry_of((4, 5, 6), (1, 1, 3), (1.0, 0.0, 0.0, 0.0, cosine, -sine, 0.0, sine, cosine)))
    assert (view.plane, view.left, view.right, view.top, view.bottom) == ("axial", "R", "L", "A", "P")


@pytest.mark.parametrize("signs", list(product((1.0, -1.0), repeat=2)))
def test_a_label_in_the_left_anterior_quarter_is_drawn_right_and_up(tmp_path: Path, signs: tuple[float, float]) -> None:
    geometry = geometry_of((1, 40, 60), (1, 1, 5), direction_of((0, 1, 2), (*signs, 1.0)))
    left, posterior, _ = world_coordinates(geometry)
    # The coordinates of the middle depend on the signs, so they are taken from the data.
    label = (left > left.mean() + 5) & (posterior < posterior.mean() - 5)
    path = tmp_path / "overlay.png"
    draw_overlay(Volume(label * 100.0, geometry), Volume(label.astype(np.uint8), geometry), {1: "marker"}, path)
    sheet = picture(path)
    row, column = pixels_of(sheet, 0).mean(axis=0)
    tile = np.argwhere((sheet == 0).all(axis=2))
    middle_row, middle_column = (tile.min(axis=0) + tile.max(axis=0)) / 2
    assert row < middle_row - 20 and column > middle_column + 20


def test_contours_lie_on_the_edge_of_what_they_label_in_true_proportions(tmp_path: Path) -> None:
    geometry = geometry_of((1, 50, 100), (1.0, 3.0, 9.0))
    label = np.zeros((1, 50, 100), np.uint8)
    label[0, 10:30, 20:50] = 1
    path = tmp_path / "overlay.png"
    draw_overlay(Volume(label * 1000.0, geometry), Volume(label, geometry), {1: "box"}, path)
    sheet = picture(path)
    contour = pixels_of(sheet, 0)
    (top, left), (bottom, right) = contour.min(axis=0), contour.max(axis=0)
    # 20 voxels of 3 mm by 30 of 1 mm, where 150 mm take 320 pixels.
    assert abs((bottom - top + 1) - 60 / 150 * 320) <= 2
    assert abs((right - left + 1) - 30 / 150 * 320) <= 2
    inside = sheet[top + 5 : bottom - 5, left + 5 : right - 5].astype(int)
    outside = sheet[top - 8 : top - 4, left:right]
    assert (inside == inside[0, 0]).all() and inside[0, 0].sum() > 300, "white, tinted"
    assert (outside == 0).all(), "the scan is black there, and untouched"


@pytest.mark.parametrize("labels", [0, 1, 3, 60, 150])
def test_the_legend_is_never_cut_off(tmp_path: Path, labels: int) -> None:
    geometry = geometry_of((3, 30, 12), (1, 1, 4))
    array = (np.arange(3 * 30 * 12).reshape(3, 30, 12) % (labels + 1)).astype(np.uint16)
    names = {value: f"musculus latissimus dorsi, part {value} of many, left" for value in range(labels + 1)}
    path = tmp_path / "overlay.png"
    draw_overlay(Volume(array.astype(np.float32), geometry), Volume(array, geometry), names, path)
    sheet = picture(path)
    border = [sheet[:10], sheet[-10:], sheet[:, :10], sheet[:, -10:]]
    assert all((strip == sheet[0, 0]).all() for strip in border)
    assert sheet.shape[1] < 2500


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    geometry = geometry_of((5, 20, 30), (1, 1, 2))
    scan = Volume(rng.normal(size=(2, 5, 20, 30)), geometry)
    labels = Volume(rng.integers(0, 4, (5, 20, 30)), geometry)
    for name in ("a.png", "b.png"):
        draw_overlay(scan, labels, {1: "one"}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_only_the_first_channel_is_drawn(tmp_path: Path) -> None:
    geometry = geometry_of((2, 20, 30))
    first = np.random.default_rng(0).normal(size=(1, 2, 20, 30))
    labels = Volume(np.ones((2, 20, 30), np.uint8), geometry)
    for name, second in (("a.png", 0.0), ("b.png", 1000.0)):
        scan = Volume(np.concatenate([first, first + second]), geometry)
        draw_overlay(scan, labels, {}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -2000.0])
def test_a_scan_of_one_value_is_drawn_all_the_same(tmp_path: Path, value: float) -> None:
    geometry = geometry_of((2, 20, 30))
    scan = Volume(np.full((2, 20, 30), value), geometry)
    draw_overlay(scan, Volume(np.zeros((2, 20, 30), np.uint8), geometry), {1: "one"}, tmp_path / "a.png")
    assert picture(tmp_path / "a.png").shape[0] > 300


def test_one_voxel_and_very_long_scans_are_drawn(tmp_path: Path) -> None:
    for shape in [(1, 1, 1), (300, 2, 2), (2, 2, 900), (1, 700, 3)]:
        geometry = geometry_of(shape, (0.5, 0.5, 2.0))
        ones = np.ones(shape, np.int32)
        draw_overlay(Volume(ones, geometry), Volume(ones, geometry), {1: "one"}, tmp_path / "a.png")
        assert max(picture(tmp_path / "a.png").shape) < 4000


def test_labels_on_another_grid_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    ones = np.ones((2, 3, 4), np.uint8)
    scan = Volume(ones, geometry_of((2, 3, 4)))
    mirrored = Volume(ones, geometry_of((2, 3, 4), direction=direction_of((0, 1, 2), (-1.0, 1.0, 1.0))))
    smaller = Volume(ones[:, :, :3], geometry_of((2, 3, 3)))
    for labels in (mirrored, smaller):
        with pytest.raises(ScanError, match="found labels on a grid"):
            draw_overlay(scan, labels, {}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    ones = Volume(np.ones((2, 3, 4), np.uint8), geometry_of((2, 3, 4)))
    with pytest.raises(OutputError):
        draw_overlay(ones, ones, {}, tmp_path / "missing" / "a.png")


def test_without_pillow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    ones = Volume(np.ones((2, 3, 4), np.uint8), geometry_of((2, 3, 4)))
    needed = r"drawing an overlay needs 'pillow'.*masksam-deploy\[cpu\]"
    with pytest.raises(MissingDependencyError, match=needed):
        require_pillow()
    with pytest.raises(MissingDependencyError, match=needed):
        draw_overlay(ones, ones, {}, tmp_path / "a.png")


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int64]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements=st.sampled_from([0, 0, 1, 7, 200]),
    ),
    st.integers(0, 2),
)
def test_counts_agree_with_counting_one_by_one(labels: Array, axis: int) -> None:
    values, counts = count_labels(labels, axis)
    assert values.tolist() == sorted(set(labels.ravel().tolist()) - {0})
    planes = np.moveaxis(labels, axis, 0)
    assert counts.tolist() == [[int((plane == value).sum()) for value in values] for plane in planes]


@pytest.mark.parametrize("labels", [np.zeros((1, 2, 2)), np.full((1, 2, 2), -1), np.full((1, 2, 2), 65536)])
def test_labels_that_are_no_label_values_are_refused(labels: Array) -> None:
    with pytest.raises(ValueError, match="expected integers from 0 to 65535"):
        count_labels(labels, 0)


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 2)))
def test_chosen_slices_are_few_and_show_labels(counts: NDArray[np.int64]) -> None:
    chosen = choose_slices(counts)
    assert chosen == sorted(set(chosen)) and 1 <= len(chosen) <= 16
    labelled = np.asarray(counts.any(axis=1))
    assert labelled[chosen].all() or not labelled.any()
    assert len(chosen) >= min(12, labelled.sum())


def test_a_label_between_the_evenly_spread_slices_gets_its_own() -> None:
    counts = np.zeros((200, 2), np.int64)
    counts[:, 0] = 5
    counts[3:5, 1] = (1, 9)
    chosen = choose_slices(counts)
    assert 4 in chosen and len(chosen) == 16


def test_the_window_leaves_out_padding_and_is_fixed_for_ct() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.uniform(-100, 200, (64, 64))
    low, high = grey_window([np.where(rng.random((64, 64)) < 0.7, -1000.0, tissue)])
    assert (low, high) == (-160, 240), "soft tissue in Hounsfield units, whatever else is on the slices"
    low, high = grey_window([np.where(rng.random((64, 64)) < 0.7, 0.0, tissue + 200)])
    assert 100 <= low < 110 and 390 < high <= 400


def test_neighbouring_labels_both_keep_their_contour() -> None:
    codes = np.zeros((20, 20), np.intp)
    codes[:, :10], codes[:, 10:] = 1, 2
    rgb = painted(np.zeros((20, 20), np.uint8), codes, PALETTE[:3], thickness=2)
    assert (rgb[:, 8:10] == PALETTE[1]).all() and (rgb[:, 10:12] == PALETTE[2]).all()
    assert not (rgb[:, 7] == PALETTE[1]).all(axis=1).any(), "further in there is only the light fill"


def test_enlarging_keeps_areas_and_values() -> None:
    codes = np.array([[1, 2], [3, 4]])
    assert resized(codes, (4, 6)).tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2


@pytest.mark.parametrize(
    ("volume", "shown", "expected"),
    [
        (None, False, "not found"),
        (0.004, True, "0.00 ml"),
        (9.994, True, "9.99 ml"),
        (12.34, True, "12.3 ml"),
        (1234.5, False, "1234 ml, not on these slices"),
    ],
)
def test_the_legend_gives_volumes_in_millilitres(volume: float | None, shown: bool, expected: str) -> None:
    assert Entry(1, "liver", (0, 0, 0), volume, shown).amount == expected


def test_names_are_shortened_and_reduced_to_letters_that_the_font_has() -> None:
    assert fitting("Vésicule biliaire", 17, 1000) == "Vesicule biliaire"
    assert fitting("肝臓 1", 17, 1000) == "?? 1"
    short = fitting("a very long name of a muscle" * 5, 17, 200)
    assert short.endswith("...") and font(17).getlength(short) <= 200


def test_the_palette_has_no_two_equal_colours() -> None:
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == len(PALETTE)


def test_memory_is_bounded_by_planes_not_by_the_volume(tmp_path: Path) -> None:
    geometry = geometry_of((200, 200, 200), (1, 1, 1))
    labels = Volume(np.tile(np.arange(200, dtype=np.uint8) // 50, (200, 200, 1)), geometry)
    scan = Volume(np.zeros((200, 200, 200), np.float32), geometry)
    tracemalloc.start()
    try:
        draw_overlay(scan, labels, {}, tmp_path / "a.png")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The sheet and its tiles take most of it; one copy of the scan as float64 would take 64 MB.
    assert peak < 40 * 2**20


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    text = ImageDraw.ImageDraw.text

    def spy(self: ImageDraw.ImageDraw, xy: tuple[float, float], text_: str, *args: Any, **options: Any) -> None:
        texts.append(text_)
        text(self, xy, text_, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return texts


def test_a_title_is_an_extra_first_line_and_moves_the_rest_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = geometry_of((2, 20, 30))
    scan = Volume(np.random.default_rng(0).normal(size=(2, 20, 30)), geometry)
    labels = Volume(np.ones((2, 20, 30), np.uint8), geometry)
    draw_overlay(scan, labels, {}, tmp_path / "plain.png")
    texts = drawn_texts(monkeypatch)
    draw_overlay(scan, labels, {}, tmp_path / "titled.png", title="case_01.nii.gz, hippocampus")
    assert texts[:2] == ["case_01.nii.gz, hippocampus", "30 x 20 x 2 voxels of 1.00 x 1.00 x 1.00 mm"]
    plain, titled = picture(tmp_path / "plain.png"), picture(tmp_path / "titled.png")
    more = titled.shape[0] - plain.shape[0]
    assert 20 <= more <= 50
    # From the tiles on, below two lines of head, nothing else changes.
    np.testing.assert_array_equal(titled[90 + more :], plain[90:])


@pytest.mark.parametrize("title", ["long " * 200, "caf\udce9\n\x1b[2J \u809d", " \n "])
def test_any_title_is_cut_to_the_width_and_to_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, title: str
) -> None:
    geometry = geometry_of((2, 20, 30))
    ones = Volume(np.ones((2, 20, 30), np.uint8), geometry)
    texts = drawn_texts(monkeypatch)
    draw_overlay(ones, ones, {}, tmp_path / "a.png", title=title)
    assert all(" " <= char <= "~" for char in texts[0])
    sheet = picture(tmp_path / "a.png")
    assert (sheet[:10] == 16).all() and (sheet[:, -10:] == 16).all()
    if title.startswith("caf"):
        assert texts[0] == "caf? [2J ?"
    if not title.strip():
        assert texts[0].startswith("30 x 20 x 2 voxels"), "an empty title takes no line"


def test_slices_are_numbered_by_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = geometry_of((2, 20, 30))
    ones = Volume(np.ones((2, 20, 30), np.uint8), geometry)
    texts = drawn_texts(monkeypatch)
    draw_overlay(ones, ones, {}, tmp_path / "a.png")
    assert texts[1].startswith("axial slices, numbered 1 to 2 from the first in space; black to white is ")
