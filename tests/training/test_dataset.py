from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError
from masksam_export.families.masksam.training import description as description_module
from masksam_export.families.masksam.training.dataset import Dataset, load_case, read_dataset
from tests.training.raw_dataset import Generated, description, generated, write_dataset, write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of three good cases with one channel."""
    return write_dataset(tmp_path / "Dataset001_Test", {f"case_{i}": generated(i) for i in range(3)})


@pytest.fixture
def two_channels(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "Dataset002_Test", {f"case_{i}": generated(i, channels=2) for i in range(2)})


def describe(root: Path, **changes: Any) -> Path:
    """The dataset with entries of its description replaced, or left out if None."""
    path = root / "dataset.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return root


def refused(root: Path, *parts: str) -> str:
    """The message with which a dataset is refused, after checking that it holds `parts` on one line."""
    with pytest.raises(DatasetError) as error:
        read_dataset(root)
    message = str(error.value)
    assert message.isprintable()
    for part in parts:
        assert part in message
    return message


def make_msd(root: Path) -> Path:
    for image in (root / "imagesTr").iterdir():
        image.rename(image.with_name(image.name.replace("_0000", "")))
    labels = {"0": "background", "1": "part 1", "2": "part 2"}
    return describe(root, channel_names=None, file_ending=None, modality={"0": "MRI"}, labels=labels, training=[])


def test_a_dataset_is_read_in_the_order_of_its_names(root: Path) -> None:
    dataset = read_dataset(root)
    assert (dataset.root, dataset.name) == (root, "Dataset001_Test")
    assert dataset.channel_names == ("channel 0",)
    assert dataset.label_names == ("background", "part 1", "part 2")
    assert [case.name for case in dataset.cases] == ["case_0", "case_1", "case_2"]
    assert dataset.cases[1].images == (root / "imagesTr/case_1_0000.nii.gz",)
    assert dataset.cases[1].labels == root / "labelsTr/case_1.nii.gz"


def test_channels_come_in_the_order_of_their_numbers(two_channels: Path) -> None:
    case = read_dataset(two_channels).cases[0]
    assert [path.name for path in case.images] == ["case_0_0000.nii.gz", "case_0_0001.nii.gz"]


def test_the_decathlons_form_reads_the_same(root: Path) -> None:
    before = read_dataset(root)
    dataset = read_dataset(make_msd(root))
    assert dataset.cases[0].images == (root / "imagesTr/case_0.nii.gz",)
    assert dataset.label_names == before.label_names
    assert dataset.json == {**before.json, "channel_names": {"0": "MRI"}}


def test_a_decathlon_case_may_end_like_a_channel(tmp_path: Path) -> None:
    root = make_msd(write_dataset(tmp_path / "d", {"heart": generated(0), "lung": generated(1)}))
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "heart.nii.gz").rename(root / folder / "heart_0000.nii.gz")
        (root / folder / "lung.nii.gz").rename(root / folder / "heart_0001.nii.gz")
    assert [case.images[0].name for case in read_dataset(root).cases] == ["heart_0000.nii.gz", "heart_0001.nii.gz"]


def test_the_kept_description_is_nnunets_and_holds_only_what_was_checked(root: Path) -> None:
    describe(root, numTraining=99, name="Test", description="about", secret={"deep": [1]}, licence=3)
    assert read_dataset(root).json == {
        "name": "Test",
        "description": "about",
        "channel_names": {"0": "channel 0"},
        "labels": {"background": 0, "part 1": 1, "part 2": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def test_links_are_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(root / "imagesTr", outside)
    (root / "imagesTr").symlink_to(outside)
    moved = outside / "case_0_0000.nii.gz"
    moved.rename(tmp_path / "elsewhere.nii.gz")
    moved.symlink_to(tmp_path / "elsewhere.nii.gz")
    dataset = read_dataset(root)
    load_case(dataset.cases[0], dataset)


def test_hidden_files_and_other_kinds_of_file_are_left_out(root: Path) -> None:
    for name in ("._case_0_0000.nii.gz", ".DS_Store", "readme.txt", "case_0.json"):
        (root / "imagesTr" / name).write_bytes(b"x")
    assert len(read_dataset(root).cases) == 3


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_other_file_endings(tmp_path: Path, ending: str) -> None:
    content = description(file_ending=ending)
    root = write_dataset(tmp_path / "d", {"a": generated(0), "b": generated(1)}, content, ending)
    dataset = read_dataset(root)
    assert dataset.cases[0].images[0].name == f"a_0000{ending}"
    load_case(dataset.cases[0], dataset)


def test_a_missing_folder_or_description_says_what_to_write(root: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder", "check the path")
    (root / "dataset.json").unlink()
    message = refused(root, "dataset.json", "found no such file", "write one like ")
    example = json.loads(message.split("write one like ")[1])
    (root / "dataset.json").write_text(json.dumps(example))
    assert read_dataset(root).label_names == ("background", "anterior", "posterior")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as JSON"),
        ("[1]", "a JSON list"),
        ('{"labels": {"background": 0, "a": 1, "a": 2}}', "'a' occurs twice"),
        ('{"labels": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("\udcff", "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(root: Path, text: str, said: str) -> None:
    (root / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(root, "dataset.json", said)


def test_an_endless_description_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description_module, "MAX_JSON_BYTES", 2**20)
    (root / "dataset.json").write_bytes(b" " * (2**20 + 1))
    refused(root, "more than 1 MiB")


@pytest.mark.parametrize(
    "channels",
    [None, {}, [], ["MRI"], "MRI", {"0": ""}, {"0": 1}, {"1": "MRI"}, {"0": "T1", "2": "T2"}, {"0": "a\nb"}, {"0": {}}],
)
def test_channels_that_are_not_numbered_names_are_refused(root: Path, channels: object) -> None:
    refused(describe(root, channel_names=channels), "dataset.json", "channel")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "labels None"),
        ([], "labels []"),
        ({"background": 0}, "at least one more"),
        ({"background": 0, "a": 2}, "each of 0 to 1"),
        ({"background": 0, "a": 1, "b": 1}, "each of 0 to 2"),
        ({"background": 0, "a": True}, "each of 0 to 1"),
        ({"background": 0, "a": 1.0}, "each of 0 to 1"),
        ({"background": 0, "a": -1}, "each of 0 to 1"),
        ({"background": 0, "a": None}, "each of 0 to 1"),
        ({"background": 0, "a": {"b": 1}}, "each of 0 to 1"),
        ({"air": 0, "a": 1}, "expected 'background'"),
        ({"background": 0, "a\u202eb": 1}, "printable"),
        ({"background": 0, " ": 1}, "printable"),
        ({"0": "background", "one": "a"}, "a number for each name"),
        ({"0": "background", "1": "background"}, "no name twice"),
        ({"background": 0, "whole": [1, 2], "core": [1]}, "regions (['whole', 'core']), which are not trained here"),
        ({"background": 0, "a": 1, "ignore": 2}, "'ignore' label, which is not trained here"),
        ({"0": "background", "1": "a", "2": "ignore"}, "'ignore' label"),
    ],
)
def test_labels_that_are_not_numbered_from_the_background_are_refused(root: Path, labels: object, said: str) -> None:
    refused(describe(root, labels=labels), "dataset.json", said)


_TEXT = st.text(max_size=4)
_SCALARS = st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=False) | _TEXT
_JSON = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3))
_KEYS = ("channel_names", "modality", "labels", "file_ending", "overwrite_image_reader_writer", "numTraining", "name")


@settings(deadline=None, max_examples=150)
@given(content=st.dictionaries(st.sampled_from(_KEYS), _JSON) | _JSON)
def test_whatever_a_description_holds_the_answer_is_one_line(
    content: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("d")
    (root / "dataset.json").write_text(json.dumps(content))
    refused(root)  # if only because the folder is empty


def test_an_unknown_file_ending_is_refused(root: Path) -> None:
    refused(describe(root, file_ending=".png"), "file_ending '.png'", ".nii.gz")
    refused(describe(root, file_ending=["x"]), "file_ending ['x']")


def test_a_reader_that_turns_the_axes_is_refused(root: Path) -> None:
    describe(root, overwrite_image_reader_writer="NibabelIOWithReorient")
    refused(root, "NibabelIOWithReorient", "SimpleITKIO")


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_folders_that_are_missing_empty_or_no_folders_are_refused(root: Path, folder: str) -> None:
    shutil.rmtree(root / folder)
    refused(root, folder, "cannot be listed")
    (root / folder).write_bytes(b"")
    refused(root, folder, "cannot be listed")
    (root / folder).unlink()
    (root / folder).mkdir()
    refused(root, folder, "found no .nii.gz files")


def test_an_image_without_labels_and_labels_without_an_image_are_named(root: Path) -> None:
    (root / "labelsTr/case_1.nii.gz").unlink()
    (root / "imagesTr/case_2_0000.nii.gz").unlink()
    refused(
        root,
        "imagesTr/case_1_0000.nii.gz has no labels (labelsTr/case_1.nii.gz)",
        "labelsTr/case_2.nii.gz has no image (imagesTr/case_2_0000.nii.gz)",
    )


def test_a_decathlon_image_without_labels_is_named(root: Path) -> None:
    make_msd(root)
    (root / "labelsTr/case_1.nii.gz").unlink()
    refused(root, "imagesTr/case_1.nii.gz has no labels (labelsTr/case_1.nii.gz)")


def test_a_missing_channel_is_named_once(two_channels: Path) -> None:
    (two_channels / "imagesTr/case_1_0000.nii.gz").unlink()
    message = refused(two_channels, "case 'case_1' lacks imagesTr/case_1_0000.nii.gz", "NAME_0000.nii.gz to NAME_0001")
    assert "case_1_0001" not in message


def test_a_channel_too_many_is_named(two_channels: Path) -> None:
    describe(two_channels, channel_names={"0": "MRI"})
    refused(two_channels, "imagesTr/case_0_0001.nii.gz is a channel more than the 1 that dataset.json names")


def test_an_unnumbered_image_is_no_channel_of_several(two_channels: Path) -> None:
    images = two_channels / "imagesTr"
    shutil.copy(images / "case_0_0000.nii.gz", images / "case_0.nii.gz")
    refused(two_channels, "imagesTr/case_0.nii.gz has no channel number")


def test_two_images_of_one_case_are_a_duplicate(root: Path) -> None:
    images = root / "imagesTr"
    shutil.copy(images / "case_0_0000.nii.gz", images / "case_0.nii.gz")
    refused(root, "imagesTr/case_0.nii.gz is a duplicate of imagesTr/case_0_0000.nii.gz")


def test_one_image_cannot_be_two_cases(root: Path) -> None:
    shutil.copy(root / "labelsTr/case_0.nii.gz", root / "labelsTr/case_0_0000.nii.gz")
    refused(root, "imagesTr/case_0_0000.nii.gz belongs to two cases ('case_0' and 'case_0_0000')")


def test_the_same_case_in_another_format_is_refused(root: Path) -> None:
    (root / "imagesTr/case_0_0000.nii").write_bytes(b"x")
    refused(root, "case_0_0000.nii: found another file type", "only .nii.gz")


@pytest.mark.parametrize(
    "name", ["a b_0000.nii.gz", "a\nb_0000.nii.gz", "é_0000.nii.gz", "-a_0000.nii.gz", "_.nii.gz."]
)
def test_unusual_file_names_are_refused(root: Path, name: str) -> None:
    (root / "imagesTr" / name).write_bytes(b"x")
    if name.endswith("."):
        assert len(read_dataset(root).cases) == 3  # no scan by its name
    else:
        refused(root, "unusual file name", "rename it")


def test_names_that_differ_only_in_case_are_refused(root: Path) -> None:
    shutil.copy(root / "labelsTr/case_0.nii.gz", root / "labelsTr/CASE_0.nii.gz")
    if len(list((root / "labelsTr").iterdir())) == 3:
        pytest.skip("this file system does not tell upper from lower case")
    refused(root, "CASE_0, case_0")


def test_a_broken_link_is_refused(root: Path) -> None:
    path = root / "imagesTr/case_0_0000.nii.gz"
    path.unlink()
    path.symlink_to(root / "gone.nii.gz")
    refused(root, "case_0_0000.nii.gz: found no readable file")


def test_one_case_is_too_few(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", {"only": generated()})
    refused(root, "found 1 case, expected at least 2")


def test_many_problems_are_counted_not_listed(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", {"a": generated(), "b": generated()})
    for index in range(20):
        (root / "labelsTr" / f"extra_{index:02d}.nii.gz").write_bytes(b"x")
    refused(root, "extra_07", "and 12 more")


def loaded(root: Path) -> tuple[NDArray[Any], NDArray[Any], Dataset]:
    dataset = read_dataset(root)
    scan, labels = load_case(dataset.cases[0], dataset)
    assert scan.geometry == labels.geometry
    return np.asarray(scan.array), np.asarray(labels.array), dataset


def test_a_case_is_loaded_as_it_is_stored(tmp_path: Path) -> None:
    case = generated(3, channels=2, spacing=(4.0, 1.5, 0.5))
    scan, labels, dataset = loaded(write_dataset(tmp_path / "d", {"a": case, "b": case}))
    assert [str(array.dtype) for array in (scan, labels)] == ["float32", "uint8"]
    np.testing.assert_array_equal(scan, case.scan)
    np.testing.assert_array_equal(labels, case.labels)
    volume = load_case(dataset.cases[0], dataset)[0]
    assert volume.geometry.spacing_zyx == (4.0, 1.5, 0.5)


def test_the_scan_does_not_keep_the_labels_alive(root: Path) -> None:
    scan, labels, _ = loaded(root)
    assert scan.base is None
    assert labels.base is None


def test_more_than_256_classes_are_read_as_uint16(tmp_path: Path) -> None:
    labels = np.zeros((4, 10, 10), np.uint16)
    labels.flat[:300] = np.arange(300)
    case = Generated(np.ones((1, 4, 10, 10), np.float32), labels)
    _, read, _ = loaded(write_dataset(tmp_path / "d", {"a": case, "b": case}, description(classes=300)))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, labels)


@settings(deadline=None, max_examples=25)
@given(value=st.sampled_from([-1, 3, 255, 256, 257, 65536]) | st.floats(-1e6, 1e6, width=32))
def test_only_the_datasets_labels_are_accepted(value: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    case = generated()
    root = write_dataset(tmp_path_factory.mktemp("d"), {"a": case, "b": case})
    labels = case.labels.astype(np.float32)
    labels[0, 0, 0] = value
    write_image(root / "labelsTr/a.nii.gz", labels)
    if value in (0, 1, 2):
        np.testing.assert_array_equal(loaded(root)[1], labels)
        return
    with pytest.raises(DatasetError) as error:
        loaded(root)
    message = str(error.value)
    assert f"{value:g}" in message
    assert "case 'a'" in message
    assert "labelsTr/a.nii.gz" in message
    assert "0 background, 1 part 1, 2 part 2" in message


def test_a_scan_given_as_labels_is_answered_briefly(root: Path) -> None:
    shutil.copy(root / "imagesTr/case_0_0000.nii.gz", root / "labelsTr/case_0.nii.gz")
    with pytest.raises(DatasetError, match=r"found label values .*\.\.\. .* in all\), expected only") as error:
        loaded(root)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("shape", "spacing", "origin", "said"),
    [
        ((5, 8, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "found size 10 x 8 x 5, expected 10 x 8 x 6"),
        ((6, 8, 10), (1.0, 1.0, 1.01), (0.0, 0.0, 0.0), "found spacing 1.01 x 1 x 1, expected 1 x 1 x 1"),
        ((6, 8, 10), (1.0, 1.0, 1.0), (0.0, 0.5, 0.0), "found an origin or direction that puts it up to 0.5 mm off"),
    ],
)
@pytest.mark.parametrize("moved", ["imagesTr/case_0_0001.nii.gz", "labelsTr/case_0.nii.gz"])
def test_files_on_different_grids_are_refused(
    two_channels: Path,
    shape: tuple[int, ...],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    said: str,
    moved: str,
) -> None:
    write_image(two_channels / moved, np.ones(shape, np.uint8), spacing, origin)
    with pytest.raises(DatasetError, match=re.escape(said)) as error:
        loaded(two_channels)
    assert moved in str(error.value)
    assert "imagesTr/case_0_0000.nii.gz" in str(error.value)


def test_a_grid_that_differs_by_rounding_is_accepted(root: Path) -> None:
    write_image(root / "labelsTr/case_0.nii.gz", generated(0).labels, (1.00001, 1.0, 1.0), (0.001, 0.0, 0.0))
    loaded(root)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scan_that_is_not_finite_is_refused(root: Path, value: float) -> None:
    scan = generated(0).scan[0].copy()
    scan[1, 2, 3] = value
    write_image(root / "imagesTr/case_0_0000.nii.gz", scan)
    with pytest.raises(DatasetError, match=r"case 'case_0': .*1 voxels that are NaN"):
        loaded(root)


@pytest.mark.parametrize("file", ["imagesTr/case_0_0000.nii.gz", "labelsTr/case_0.nii.gz"])
@pytest.mark.parametrize("kept", [0, 30, 0.6])
def test_a_damaged_file_is_named(root: Path, file: str, kept: float) -> None:
    path = root / file
    data = path.read_bytes()
    path.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(DatasetError, match=re.escape(file)):
        loaded(root)


def test_reading_a_dataset_does_not_load_torch() -> None:
    program = (
        "import sys; from masksam_export.families.masksam.training import cases, planning\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
