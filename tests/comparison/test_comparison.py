"""Comparing two label maps, and what several scans say together."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from masksam_deploy.base.errors import BundleError, DisagreementError, ScanError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.rules import MANIFEST_NAME
from masksam_deploy.comparison import Comparison, ScanComparison, Side, check_agreement, check_dice, compare
from masksam_deploy.comparison.comparison import _extremes, _overlap
from masksam_deploy.comparison.files import to_dict, write_csv
from masksam_deploy.comparison.gates import share
from masksam_deploy.metrics.label_maps import PackedLabels
from masksam_deploy.metrics.overlap import dice_per_class, overlap
from tests.example_bundle import make_bundle

NAMES = {0: "background", 1: "ventricle", 2: "muscle", 700: "atrium"}
A = np.array([[[0, 1, 1, 1], [0, 0, 2, 2]], [[0, 0, 0, 0], [0, 0, 0, 0]]], np.uint16)
B = np.array([[[0, 1, 1, 0], [0, 0, 1, 2]], [[0, 0, 0, 0], [0, 0, 0, 0]]], np.uint16)


def test_equal_label_maps_agree_fully() -> None:
    found = overlap(A, A, NAMES, 0.5)
    assert (found.agreement, found.foreground_agreement, found.disagreeing_voxels) == (1, 1, 0)
    assert [entry.dice for entry in found.classes] == [1, 1, None]


def test_agreement_counts_all_voxels_and_foreground_agreement_those_of_either_side() -> None:
    found = overlap(A, B, NAMES, 0.5)
    assert found.agreement == 14 / 16
    assert found.foreground_agreement == 3 / 5
    assert found.disagreeing_voxels == 2


def test_each_class_has_its_dice_and_what_it_disagrees_on() -> None:
    ventricle, muscle, atrium = overlap(A, B, NAMES, 0.5).classes
    assert (ventricle.name, ventricle.voxels_a, ventricle.voxels_b) == ("ventricle", 3, 3)
    assert ventricle.dice == 4 / 6
    assert (ventricle.disagreeing_voxels, ventricle.disagreeing_ml) == (2, 1.0)
    assert muscle.dice == 2 / 3
    assert (muscle.disagreeing_voxels, muscle.disagreeing_ml) == (1, 0.5)
    assert (atrium.value, atrium.dice, atrium.disagreeing_voxels) == (700, None, 0)


def test_a_class_that_one_side_finds_and_the_other_does_not_has_a_dice_of_zero() -> None:
    assert dice_per_class(A, np.where(A == 2, 0, A), NAMES) == {1: 1, 2: 0, 700: None}


def test_empty_label_maps_have_no_foreground_to_agree_on() -> None:
    found = overlap(A * 0, A * 0, NAMES, 1)
    assert (found.agreement, found.foreground_agreement) == (1, None)


def test_dice_is_the_definition_on_random_label_maps() -> None:
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 4, (2, 5, 6, 7), dtype=np.uint8)
    for value, dice in dice_per_class(a, b, range(4)).items():
        assert dice == 2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum())


@pytest.mark.parametrize("other", [A[:1], A + 1])
def test_maps_of_another_shape_or_with_unknown_values_are_refused(other: NDArray[np.uint16]) -> None:
    with pytest.raises(ValueError, match="label map"):
        overlap(A, other, NAMES, 1)


def geometry(shape_zyx: tuple[int, ...]) -> Geometry:
    depth, height, width = shape_zyx
    return Geometry((width, height, depth), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def test_a_kept_label_map_comes_back_whole() -> None:
    kept = PackedLabels.of(Volume(A[:, :, ::-1], geometry(A.shape)))
    np.testing.assert_array_equal(kept.array, A[:, :, ::-1])
    assert (kept.array.dtype, kept.geometry) == (A.dtype, geometry(A.shape))


def test_a_scan_that_changes_between_the_two_sides_is_refused() -> None:
    kept = PackedLabels.of(Volume(A, geometry(A.shape)))
    with pytest.raises(ScanError, match="grid of the scan changed"):
        _overlap(kept, Volume(A[:1], geometry((1, *A.shape[1:]))), NAMES, Path("scan.nii.gz"))


@pytest.fixture
def heart(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "heart.masksam")


@pytest.fixture
def two_scans(heart: Bundle) -> Comparison:
    """One scan on which the sides agree, one on which they do not."""
    scans = tuple(
        ScanComparison(Path(name), overlap(A, other, NAMES, 0.001)) for name, other in (("same", A), ("other", B))
    )
    settings = {"device": "cpu"}
    return Comparison(Side(heart), Side(heart), settings, settings, scans, _extremes(scans))


def test_the_worst_of_each_class_is_found_with_its_scan(two_scans: Comparison) -> None:
    ventricle, _, atrium = two_scans.classes
    assert (ventricle.lowest_dice, ventricle.lowest_dice_scan, ventricle.counted) == (4 / 6, Path("other"), 2)
    assert ventricle.most_disagreeing_ml == 0.002
    assert (atrium.lowest_dice, atrium.lowest_dice_scan, atrium.counted) == (None, None, 0)
    assert two_scans.lowest_agreement.scan == Path("other")
    foreground = two_scans.lowest_foreground_agreement
    assert foreground and foreground.scan == Path("other")


def test_gates_let_pass_what_is_just_good_enough(two_scans: Comparison) -> None:
    check_agreement(two_scans, 14 / 16)
    check_dice(two_scans, 4 / 6)


def test_gates_name_the_worst_scan_and_class(two_scans: Comparison) -> None:
    with pytest.raises(DisagreementError, match=r"other: found the same label on 87\.5000 %"):
        check_agreement(two_scans, 0.9)
    with pytest.raises(DisagreementError, match=r"'ventricle' 0\.6666\d+ in other; 'muscle' 0\.6666\d+ in other"):
        check_dice(two_scans, 0.7)


def test_a_demand_on_dice_fails_if_no_class_was_found_anywhere(heart: Bundle) -> None:
    scans = (ScanComparison(Path("s"), overlap(A * 0, A * 0, NAMES, 1)),)
    with pytest.raises(DisagreementError, match="found no class in any scan"):
        check_dice(Comparison(Side(heart), Side(heart), {}, {}, scans, _extremes(scans)), 0.5)


def test_only_full_agreement_is_shown_as_100_percent() -> None:
    assert share(1.0) == "100 %"
    assert share(1 - 1e-12) == "99.9999 %"


def test_json_and_csv_hold_every_scan_and_class(two_scans: Comparison, tmp_path: Path) -> None:
    content = json.loads(json.dumps(to_dict(two_scans), allow_nan=False))
    assert [scan["scan"] for scan in content["scans"]] == ["same", "other"]
    assert content["worst"]["agreement_scan"] == "other"
    assert content["worst"]["classes"][2]["lowest_dice"] is None
    write_csv(two_scans, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["scan"], row["name"]) for row in rows][3:] == [
        ("other", "ventricle"), ("other", "muscle"), ("other", "atrium")
    ]  # fmt: skip
    assert rows[5]["dice"] == ""


def single_channel(bundle: Bundle, *changes: tuple[str, str]) -> Bundle:
    """The example bundle as if it had one input channel, with texts in its manifest replaced."""
    path = bundle.path / MANIFEST_NAME
    content = json.loads(path.read_text())
    for graph in content["graphs"]:
        for port in graph["inputs"]:
            if port["name"] == "image":
                port["shape"][1] = 1
    content["recipe"]["channels"] = content["recipe"]["channels"][:1]
    text = json.dumps(content)
    for old, new in changes:
        text = text.replace(old, new)
    path.write_text(text)
    return Bundle.load(bundle.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"myocardium"', '"muscle"'), "found label 2 called 'muscle', expected called 'myocardium'"),
        (('"value": 2', '"value": 3'), "found label 2 missing, expected called 'myocardium'"),
    ],
)
def test_bundles_whose_labels_differ_are_refused_naming_the_difference(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    a = single_channel(make_bundle(tmp_path / "a.masksam"))
    b = single_channel(make_bundle(tmp_path / "b.masksam"), change)
    with pytest.raises(BundleError, match=said):
        compare(Side(a), Side(b), [tmp_path / "scan.nii.gz"])


def test_models_of_several_channels_are_refused_with_another_way(heart: Bundle) -> None:
    with pytest.raises(
        BundleError, match="found a model of 2 input channels, expected one; run 'masksam-deploy infer'"
    ):
        compare(Side(heart), Side(heart), ["scan.nii.gz"])


def test_missing_and_repeated_scans_are_refused_before_any_work(tmp_path: Path) -> None:
    side = Side(single_channel(make_bundle(tmp_path / "a.masksam")))
    (tmp_path / "scan.nii.gz").touch()
    for scans, said in (
        ([], "found no scans"),
        ([tmp_path / "scan.nii.gz", tmp_path / "none.nii.gz"], "none.nii.gz: found no such file"),
        ([tmp_path / "scan.nii.gz"] * 2, "given twice"),
    ):
        with pytest.raises(ScanError, match=said):
            compare(side, side, scans)
