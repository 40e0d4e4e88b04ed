"""`masksam-deploy prepare-sample-data` on tiny made-up patients, and every way in which its source can be wrong."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from masksam_deploy.base.errors import DatasetError, OutputError
from masksam_deploy.io import read_volume
from masksam_deploy.io.dicom import ordered_files
from masksam_export.cli_prepare import prepare_sample_data as command
from masksam_export.families.masksam.training.samples.contours import Contour, paint
from masksam_export.families.masksam.training.samples.sunnybrook import prepare_sunnybrook

Image = pytest.importorskip("PIL.Image")
draw = pytest.importorskip("skimage.draw")

STACKS = {"ED": (11, 21, 31), "ES": (12, 22, 32)}
CINE = Path(__file__).parents[1] / "data" / "io" / "dicom" / "cine_mr_ed"


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(path)


def write_patient(part: Path, patient: str, numbers: tuple[int, ...]) -> None:
    """Slices whose grey value is their number, with a labelled pixel in the column of their place."""
    for place, number in enumerate(numbers):
        name = f"Part1/{patient}-IM-0001-{number:04d}.dcm.png"
        write_png(part / "Images" / name, np.full((6, 8), number, np.uint8))
        label = np.zeros((6, 8), np.uint8)
        label[1, place] = 255
        write_png(part / "Labels" / name, label)


def circle(centre: float, radius: float) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.column_stack([centre + radius * np.cos(angles), centre + radius * np.sin(angles)])


def write_contour(folder: Path, number: int, kind: str, points: NDArray[np.float64]) -> Path:
    path = folder / f"{kind}-contours" / f"IM-0001-{number:04d}-{kind}contour-manual.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{x:.2f} {y:.2f}\n" for x, y in points))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two training patients, one test patient, two DICOM patients with three real slices per phase."""
    root = tmp_path / "sunnybrook"
    for part, patients in {"Train": ("SC-HF-I-07", "SC-N-40"), "Test": ("SC-HYP-09",)}.items():
        for patient in patients:
            write_patient(root / "scd_cardiac_png" / part, patient, (9, 20, 100))
    dicom = root / "scd_cardiac_dicom"
    for patient, original, centre in (("SCD01", "SC-HF-I-1", 100.0), ("SCD02", "SC-HF-I-2", 120.0)):
        for phase, numbers in STACKS.items():
            folder = dicom / patient / phase
            folder.mkdir(parents=True)
            # The slices of the highest numbers come first along the normal, as in the real data.
            files = ordered_files(CINE)[0][:3]
            for number, file in zip(reversed(numbers), files, strict=True):
                shutil.copy(file, folder / f"{number}.dcm")
            for number in numbers[:2]:
                write_contour(dicom / "contours" / original, number, "i", circle(centre + number, 10))
        write_contour(dicom / "contours" / original, 11, "o", circle(centre + 11, 15))
    (dicom / "link.csv").write_text("patient_id,original_id\nSCD01,SC-HF-I-1\nSCD02,SC-HF-I-2\n")
    return root


@pytest.fixture
def contours(source: Path) -> Path:
    return source / "scd_cardiac_dicom" / "contours"


def refusal(source: Path) -> str:
    """The message of a source that must be refused, leaving nothing behind."""
    before = set(source.parent.iterdir())
    with pytest.raises(DatasetError) as caught:
        prepare_sunnybrook(source, source.parent / "dataset")
    assert set(source.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    return message


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def array(path: Path) -> NDArray[np.uint8]:
    image = SimpleITK.ReadImage(str(path))
    assert image.GetPixelID() == SimpleITK.sitkUInt8
    result: NDArray[np.uint8] = SimpleITK.GetArrayFromImage(image)
    return result


def test_the_layout_is_that_of_an_nnunet_raw_dataset(source: Path, tmp_path: Path) -> None:
    result = call(source, "-o", tmp_path / "lv")
    assert result.exit_code == 0
    files = sorted(path.relative_to(tmp_path / "lv").as_posix() for path in (tmp_path / "lv").rglob("*.*"))
    assert files == [
        "LICENSE.txt",
        "dataset.json",
        "imagesTr/SC-HF-I-07_0000.nii.gz",
        "imagesTr/SC-N-40_0000.nii.gz",
        "imagesTs/SC-HYP-09_0000.nii.gz",
        "labelsDicom/SCD01_ED.nii.gz",
        "labelsDicom/SCD01_ES.nii.gz",
        "labelsDicom/SCD02_ED.nii.gz",
        "labelsDicom/SCD02_ES.nii.gz",
        "labelsTr/SC-HF-I-07.nii.gz",
        "labelsTr/SC-N-40.nii.gz",
        "labelsTs/SC-HYP-09.nii.gz",
    ]
    assert "CC0-1.0" in (tmp_path / "lv" / "LICENSE.txt").read_text()
    described = json.loads((tmp_path / "lv" / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "cineMRI"}
    assert described["labels"] == {"background": 0, "LV cavity": 1}
    assert (described["numTraining"], described["file_ending"]) == (2, ".nii.gz")
    assert described["licence"] == "CC0-1.0"


def test_the_summary_says_what_was_written_and_what_comes_next(source: Path, tmp_path: Path) -> None:
    result = call(source, "-o", tmp_path / "lv")
    assert result.stdout.splitlines() == [
        f"wrote {tmp_path / 'lv'}: 2 training and 1 test cases, labels of 4 DICOM stacks",
        f"next: masksam-deploy train {tmp_path / 'lv'} -o RUN",
    ]
    assert result.stderr == ""


def test_slices_are_stacked_by_number_the_highest_first(source: Path, tmp_path: Path) -> None:
    prepare_sunnybrook(source, tmp_path / "lv")
    image = array(tmp_path / "lv" / "imagesTr" / "SC-N-40_0000.nii.gz")
    label = array(tmp_path / "lv" / "labelsTr" / "SC-N-40.nii.gz")
    assert image[:, 0, 0].tolist() == [100, 20, 9]
    assert np.argwhere(label).tolist() == [[0, 1, 2], [1, 1, 1], [2, 1, 0]]
    assert label.max() == 1
    header = SimpleITK.ReadImage(str(tmp_path / "lv" / "labelsTr" / "SC-N-40.nii.gz"))
    np.testing.assert_allclose(header.GetSpacing(), (1.3, 1.3, 8.0), rtol=1e-6)


def test_contours_are_painted_on_the_slice_of_their_number(source: Path, tmp_path: Path) -> None:
    prepare_sunnybrook(source, tmp_path / "lv")
    for phase, numbers in STACKS.items():
        labels = read_volume(tmp_path / "lv" / "labelsDicom" / f"SCD01_{phase}.nii.gz")
        scan = read_volume(source / "scd_cardiac_dicom" / "SCD01" / phase)
        assert labels.geometry.size_xyz == scan.geometry.size_xyz
        np.testing.assert_allclose(labels.geometry.origin_lps, scan.geometry.origin_lps, atol=1e-4)
        np.testing.assert_allclose(labels.geometry.direction_lps, scan.geometry.direction_lps, atol=1e-6)
        names = [path.stem for path in ordered_files(source / "scd_cardiac_dicom" / "SCD01" / phase)[0]]
        assert names == [str(number) for number in reversed(numbers)]
        for plane, number in zip(labels.channels_czyx[0], reversed(numbers), strict=True):
            if number == numbers[2]:
                assert not plane.any()
            else:
                # The centre in pixels from 0 is three quarters of a pixel less than what the file says.
                np.testing.assert_allclose(np.argwhere(plane).mean(axis=0), 100 + number - 0.75, atol=0.1)


def test_paint_agrees_with_scikit_image() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 17))
        radii = generator.uniform(3, 14, 17)
        points = np.column_stack([20 + radii * np.cos(angles), 15 + radii * np.sin(angles)])
        mask = paint(Contour(Path("c.txt"), 1, points), (31, 41))
        np.testing.assert_array_equal(mask, draw.polygon2mask((31, 41), points[:, ::-1]))


def test_paint_covers_the_area_of_a_polygon_whose_edges_run_through_pixel_centres() -> None:
    square = np.array([[2.0, 3.0], [7.0, 3.0], [7.0, 9.0], [2.0, 9.0]])
    assert paint(Contour(Path("c.txt"), 1, square), (12, 12)).sum() == 5 * 6


def test_an_existing_target_is_replaced_only_with_force(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "lv"
    prepare_sunnybrook(source, target)
    with pytest.raises(OutputError, match="found something there already"):
        prepare_sunnybrook(source, target)
    (target / "imagesTr" / "SC-N-40_0000.nii.gz").unlink()
    prepare_sunnybrook(source, target, force=True)
    assert (target / "imagesTr" / "SC-N-40_0000.nii.gz").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lv", "sunnybrook"}


@pytest.mark.parametrize(
    "content", [{"notes.txt": "mine"}, {"dataset.json": '{"name": "Heart"}'}, {"dataset.json": "["}]
)
def test_force_never_replaces_something_else(source: Path, tmp_path: Path, content: dict[str, str]) -> None:
    (tmp_path / "mine").mkdir()
    for name, text in content.items():
        (tmp_path / "mine" / name).write_text(text)
    with pytest.raises(OutputError, match="found something else than a sample data set"):
        prepare_sunnybrook(source, tmp_path / "mine", force=True)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == set(content)


def test_a_dataset_with_something_added_is_not_replaced(source: Path, tmp_path: Path) -> None:
    prepare_sunnybrook(source, tmp_path / "lv")
    (tmp_path / "lv" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="found something else"):
        prepare_sunnybrook(source, tmp_path / "lv", force=True)


def test_a_failed_replacement_keeps_the_old_dataset(source: Path, contours: Path, tmp_path: Path) -> None:
    prepare_sunnybrook(source, tmp_path / "lv")
    shutil.rmtree(contours / "SC-HF-I-2")
    with pytest.raises(DatasetError):
        prepare_sunnybrook(source, tmp_path / "lv", force=True)
    assert (tmp_path / "lv" / "dataset.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"lv", "sunnybrook"}


def test_another_folder_is_no_sample_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found no folder scd_cardiac_png in it"):
        prepare_sunnybrook(tmp_path, tmp_path / "lv")


def test_a_missing_parent_folder_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        prepare_sunnybrook(source, tmp_path / "nowhere" / "lv")


Damage = Callable[[Path], None]
TRAIN = Path("scd_cardiac_png/Train")
SLICE = Path("Part1/SC-N-40-IM-0001-0020.dcm.png")


def _unlabelled(root: Path) -> None:
    (root / TRAIN / "Labels" / SLICE).unlink()


def _without_image(root: Path) -> None:
    (root / TRAIN / "Images" / SLICE).unlink()


def _grey_label(root: Path) -> None:
    write_png(root / TRAIN / "Labels" / SLICE, np.full((6, 8), 7, np.uint8))


def _other_label_size(root: Path) -> None:
    write_png(root / TRAIN / "Labels" / SLICE, np.zeros((6, 9), np.uint8))


def _other_slice_size(root: Path) -> None:
    for kind in ("Images", "Labels"):
        write_png(root / TRAIN / kind / SLICE, np.zeros((7, 8), np.uint8))


def _colours(root: Path) -> None:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[2, 2, 1] = 4
    Image.fromarray(pixels).save(root / TRAIN / "Images" / SLICE)


def _sixteen_bits(root: Path) -> None:
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(root / TRAIN / "Images" / SLICE)


def _truncated(root: Path) -> None:
    path = root / TRAIN / "Images" / SLICE
    path.write_bytes(path.read_bytes()[:45])


def _no_png(root: Path) -> None:
    (root / TRAIN / "Images" / SLICE).write_bytes(b"GIF89a")


def _huge(root: Path) -> None:
    path = root / TRAIN / "Images" / SLICE
    content = path.read_bytes()
    path.write_bytes(content[:16] + struct.pack(">II", 60000, 60000) + content[24:])


def _strange_name(root: Path) -> None:
    for kind in ("Images", "Labels"):
        (root / TRAIN / kind / SLICE).rename(root / TRAIN / kind / "Part1" / "notes.png")


def _number_twice(root: Path) -> None:
    for kind in ("Images", "Labels"):
        other = root / TRAIN / kind / "Part2" / SLICE.name
        other.parent.mkdir()
        shutil.copy(root / TRAIN / kind / SLICE, other)


def _single_slice(root: Path) -> None:
    write_patient(root / TRAIN, "SC-N-02", (5,))


def _trained_and_tested(root: Path) -> None:
    write_patient(root / TRAIN, "SC-HYP-09", (1, 2))


def _trained_and_dicom(root: Path) -> None:
    write_patient(root / TRAIN, "SC-HF-I-01", (1, 2))


def _empty(root: Path) -> None:
    for kind in ("Images", "Labels"):
        shutil.rmtree(root / TRAIN / kind)
        (root / TRAIN / kind).mkdir()


def _no_labels_folder(root: Path) -> None:
    shutil.rmtree(root / TRAIN / "Labels")


@pytest.mark.parametrize(
    ("damage", "named", "said"),
    [
        (_unlabelled, "Images/Part1/SC-N-40-IM-0001-0020", "found no label of the same name"),
        (_without_image, "Labels/Part1/SC-N-40-IM-0001-0020", "found no image of the same name"),
        (_grey_label, "Labels/Part1/SC-N-40-IM-0001-0020", "found the value 7, expected only 0"),
        (_other_label_size, "Labels/Part1/SC-N-40-IM-0001-0020", "found 9 x 6 pixels, expected 8 x 6"),
        (_other_slice_size, "Images/Part1/SC-N-40-IM-0001-0020", "found 8 x 7 pixels, expected 8 x 6"),
        (_colours, "Images/Part1/SC-N-40-IM-0001-0020", "found colours"),
        (_sixteen_bits, "Images/Part1/SC-N-40-IM-0001-0020", "found a PNG of type I;16"),
        (_truncated, "Images/Part1/SC-N-40-IM-0001-0020", "found a damaged PNG"),
        (_no_png, "Images/Part1/SC-N-40-IM-0001-0020", "found no PNG"),
        (_huge, "Images/Part1/SC-N-40-IM-0001-0020", "found 60000 x 60000 pixels"),
        (_strange_name, "Images/Part1/notes.png", "found an unknown kind of name"),
        (_number_twice, "Images/Part2/SC-N-40-IM-0001-0020", "found the same patient and number"),
        (_single_slice, "SC-N-02-IM-0001-0005", "found the only slice"),
        (_trained_and_tested, "Train/Images/Part1/SC-HYP-09", "found a patient that is in Train as well"),
        (_trained_and_dicom, "scd_cardiac_dicom/SCD01", "found a patient that is in Train as well"),
        (_empty, "scd_cardiac_png/Train", "found no PNG files"),
        (_no_labels_folder, "Train/Labels", "found no such folder"),
    ],
)
def test_wrong_pictures_are_refused_by_name(source: Path, damage: Damage, named: str, said: str) -> None:
    damage(source)
    message = refusal(source)
    assert named in message and said in message


def test_contours_copied_from_another_patient_are_refused_naming_both(contours: Path) -> None:
    name = "o-contours/IM-0001-0011-ocontour-manual.txt"
    shutil.copy(contours / "SC-HF-I-1" / name, contours / "SC-HF-I-2" / name)
    message = refusal(contours.parents[1])
    assert "contours of the wrong patient" in message
    assert f"SC-HF-I-1/{name}" in message and f"SC-HF-I-2/{name}" in message


def test_a_copied_border_is_refused_even_where_it_encloses_the_cavity(contours: Path) -> None:
    name = "o-contours/IM-0001-0011-ocontour-manual.txt"
    shutil.copy(contours / "SC-HF-I-1" / name, contours / "SC-HF-I-2" / name)
    write_contour(contours / "SC-HF-I-2", 11, "i", circle(111, 9))
    assert "contours of the wrong patient" in refusal(contours.parents[1])


def test_a_copied_contour_with_other_line_ends_is_found_too(contours: Path) -> None:
    name = "i-contours/IM-0001-0011-icontour-manual.txt"
    copied = (contours / "SC-HF-I-1" / name).read_bytes().replace(b"\n", b"\r\n")
    (contours / "SC-HF-I-2" / name).write_bytes(copied)
    shutil.rmtree(contours / "SC-HF-I-2" / "o-contours")
    assert "contours of the wrong patient" in refusal(contours.parents[1])


def test_a_cavity_outside_the_outer_border_is_refused_naming_both(contours: Path) -> None:
    write_contour(contours / "SC-HF-I-1", 11, "o", circle(120, 15))
    message = refusal(contours.parents[1])
    assert "0011-ocontour" in message and "0011-icontour" in message and "expected at least 95%" in message


@pytest.mark.parametrize("kind", ["i", "o"])
def test_a_contour_without_an_image_is_refused(contours: Path, kind: str) -> None:
    write_contour(contours / "SC-HF-I-1", 13, kind, circle(50, 5))
    message = refusal(contours.parents[1])
    assert f"0013-{kind}contour" in message and "found image 13 in neither of ED and ES of SCD01" in message


def test_a_contour_whose_number_is_in_both_phases_is_refused(contours: Path) -> None:
    folder = contours.parent / "SCD01"
    (folder / "ES" / "12.dcm").rename(folder / "ES" / "11.dcm")
    assert "found image 11 in both of ED and ES" in refusal(contours.parents[1])


@pytest.mark.parametrize("phase", STACKS)
def test_a_phase_without_any_cavity_is_refused(contours: Path, phase: str) -> None:
    for number in STACKS[phase]:
        for path in (contours / "SC-HF-I-2").rglob(f"IM-0001-{number:04d}-*"):
            path.unlink()
    message = refusal(contours.parents[1])
    assert f"SCD02/{phase}" in message and "found no i-contour of SC-HF-I-2" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 2\nnan 3\n4 5\n", "found 'nan 3' in line 2"),
        ("1 2\n3\n4 5\n", "found '3' in line 2"),
        ("1,2\n3,4\n5,6\n", "found '1,2' in line 1"),
        ("1 2\n3 inf\n5 6\n", "found '3 inf'"),
        ("10 10\n20 10\n", "found 2 points, expected at least 3"),
        ("", "found 0 points"),
        ("10 10\n20 10\n20 300\n", "found points outside its image of 256 x 256 pixels"),
        ("-1 10\n20 10\n20 20\n", "found points outside"),
        ("10 10\n10 10\n10 10\n", "found a contour around no pixel"),
        ("1 2\n" * 300_000, "found more than 1 MiB"),
    ],
)
def test_a_damaged_contour_is_refused_by_name(contours: Path, text: str, said: str) -> None:
    path = write_contour(contours / "SC-HF-I-2", 21, "i", circle(50, 5))
    path.write_text(text)
    message = refusal(contours.parents[1])
    assert path.name in message and said in message


def test_a_contour_that_is_no_text_is_refused(contours: Path) -> None:
    write_contour(contours / "SC-HF-I-2", 21, "i", circle(50, 5)).write_bytes(b"\xff\xfe\x00")
    assert "found bytes that are no text" in refusal(contours.parents[1])


def test_a_contour_of_an_unknown_name_is_refused(contours: Path) -> None:
    path = write_contour(contours / "SC-HF-I-2", 21, "i", circle(50, 5))
    path.rename(path.with_name("IM-0001-0021-ocontour-manual.txt"))
    assert "found an unknown kind of name" in refusal(contours.parents[1])


def test_two_contours_of_one_image_are_refused(contours: Path) -> None:
    path = write_contour(contours / "SC-HF-I-2", 21, "i", circle(50, 5))
    shutil.copy(path, path.with_name("IM-0002-0021-icontour-manual.txt"))
    assert "found a second contour of image 21" in refusal(contours.parents[1])


@pytest.mark.parametrize("extra", ["contours/SC-HF-I-9", "SCD99/ED"])
def test_a_patient_without_a_row_is_refused_by_name(extra: str, source: Path) -> None:
    (source / "scd_cardiac_dicom" / extra).mkdir(parents=True)
    assert extra.split("/")[0 if "SCD" in extra else 1] in refusal(source)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found 'nothing' and 0 rows"),
        ("patient_id,original_id\n", "0 rows"),
        ("patient,original\nSCD01,SC-HF-I-1\n", "found 'patient,original'"),
        ("patient_id,original_id\nSCD01\n", "found the row 'SCD01'"),
        ("patient_id,original_id\n../secret,SC-HF-I-1\n", "found the row '../secret,SC-HF-I-1'"),
        ("patient_id,original_id\nSCD01,/etc\n", "found the row 'SCD01,/etc'"),
        ("patient_id,original_id\nSCD01,..\n", "found the row 'SCD01,..'"),
        ("patient_id,original_id\nSCD01,SC-HF-I-1\nSCD02,SC-HF-I-1\n", "found SC-HF-I-1 in two rows"),
        ('patient_id,original_id\n"SCD01,SC-HF-I-1\n', "found no valid CSV"),
        ("patient_id,original_id\nSCD09,SC-HF-I-1\n", "SCD09"),
    ],
)
def test_a_wrong_list_of_patients_is_refused(source: Path, text: str, said: str) -> None:
    (source / "scd_cardiac_dicom" / "link.csv").write_text(text)
    assert said in refusal(source)


def test_a_missing_list_of_patients_is_named(source: Path) -> None:
    (source / "scd_cardiac_dicom" / "link.csv").unlink()
    assert "link.csv: cannot be read" in refusal(source)


def test_an_image_without_a_number_is_refused(source: Path) -> None:
    folder = source / "scd_cardiac_dicom" / "SCD01" / "ED"
    (folder / "11.dcm").rename(folder / "first.dcm")
    assert "first.dcm: found a name without a number" in refusal(source)


def test_preparing_imports_no_torch(source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from masksam_export.cli_prepare import prepare_sample_data as command; "
        f"command([{str(source)!r}, '-o', {str(tmp_path / 'lv')!r}], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
