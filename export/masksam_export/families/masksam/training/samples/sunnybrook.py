"""The Sunnybrook cardiac MR slices and contours as an nnU-Net raw data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.io import read_volume, write_labels
from masksam_export.families.masksam.training.samples import dicom, png
from masksam_export.families.masksam.training.samples.dicom import DicomPatient
from masksam_export.families.masksam.training.samples.files import same_patient_key
from masksam_export.families.masksam.training.samples.png import Pixels, PngPatient
from masksam_export.families.masksam.training.samples.target import Prepared, Step, Work, check_target, write_sample

DATASET_NAME = "SunnybrookLV"
# The PNG files lost their spacing. The originals have 1.25 to 1.4 mm in the plane and 8 to 10 mm across it; one
# nominal value treats all cases alike. Shapes and Dice hardly depend on it; volumes in ml are only roughly right.
_SPACING_XYZ = (1.3, 1.3, 8.0)
_LICENSE_TEXT = """\
Source: Sunnybrook Cardiac Data (Radau et al., "Evaluation Framework for Algorithms Segmenting Short Axis Cardiac
MRI", The MIDAS Journal, 2009; https://www.cardiacatlas.org/sunnybrook-cardiac-data/).
Licence: CC0-1.0 (public domain), https://creativecommons.org/publicdomain/zero/1.0/, for the data and what is
derived from them.

imagesTr, labelsTr, imagesTs, labelsTs: end-diastolic slices as PNG files of github.com/mshunshin/SegNetCMR (its code
is MIT, the data are CC0-1.0), stacked by file number, the highest first: from apex to base, as the DICOM stacks run.
Grey values and labels are unchanged; the spacing is nominal.
labelsDicom: made from the manual endocardial contours, on the grids of the DICOM stacks of
github.com/kwu93/image-segmentation (final_data).
"""


def prepare_sunnybrook(
    source: Path, target: Path, *, force: bool = False, step: Step = lambda text, done, total: None
) -> Prepared:
    """Write the data set `target`, complete or not at all.

    Args:
        source: the folder with `scd_cardiac_png` and `scd_cardiac_dicom`.
        target: the data set's directory.
        force: whether to replace a sample data set that is there already.
        step: called before each case.

    Raises:
        DatasetError: the source is incomplete, damaged or contradicts itself.
        ScanError: a DICOM stack cannot be read.
        OutputError: the target exists, or cannot be written.
    """
    check_target(target, force=force)
    _check_source(source)
    training = png.find_patients(source / "scd_cardiac_png" / "Train")
    test = png.find_patients(source / "scd_cardiac_png" / "Test")
    patients = dicom.find_patients(source / "scd_cardiac_dicom")
    _check_disjoint(training, test, patients)
    work: list[Work] = [
        *((patient.name, _png_writer(patient, "Tr")) for patient in training),
        *((patient.name, _png_writer(patient, "Ts")) for patient in test),
        *((patient.name, _dicom_writer(patient)) for patient in patients),
    ]
    write_sample(target, work, _dataset_json(len(training)), _LICENSE_TEXT, force=force, step=step)
    return Prepared(target, len(training), len(test), sum(len(patient.stacks) for patient in patients))


def _png_writer(patient: PngPatient, part: str) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        image, label = png.read_stacks(patient)
        # 8-bit grey values are written as label maps are: as uint8, and read back.
        write_labels(_placed(image), staging / f"images{part}" / f"{patient.name}_0000.nii.gz")
        write_labels(_placed(label), staging / f"labels{part}" / f"{patient.name}.nii.gz")

    return write


def _dicom_writer(patient: DicomPatient) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        for stack in patient.stacks:
            # Headers told the grid; a label map is of no use if the pixels are damaged.
            read_volume(stack.folder)
        for phase, labels in dicom.label_maps(patient):
            write_labels(labels, staging / "labelsDicom" / f"{patient.name}_{phase}.nii.gz")

    return write


def _placed(pixels: Pixels) -> Volume:
    depth, height, width = pixels.shape
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(pixels, Geometry((width, height, depth), _SPACING_XYZ, (0.0, 0.0, 0.0), identity))


def _dataset_json(training: int) -> dict[str, object]:
    """The description in the form of nnU-Net v2 (`generate_dataset_json`)."""
    return {
        "name": DATASET_NAME,
        "description": "Left ventricular cavity in short-axis cine MRI at the end of diastole; nominal spacing",
        "reference": "Sunnybrook Cardiac Data, https://www.cardiacatlas.org/sunnybrook-cardiac-data/",
        "licence": "CC0-1.0",
        "channel_names": {"0": "cineMRI"},
        "labels": {"background": 0, "LV cavity": 1},
        "numTraining": training,
        "file_ending": ".nii.gz",
    }


def _check_source(source: Path) -> None:
    for part in ("scd_cardiac_png", "scd_cardiac_dicom"):
        if not (source / part).is_dir():
            raise DatasetError(
                f"{shown(source)}: found no folder {part} in it, expected the Sunnybrook sample data; give the folder "
                "that holds scd_cardiac_png and scd_cardiac_dicom"
            )


def _check_disjoint(training: Sequence[PngPatient], test: Sequence[PngPatient], dicom: Sequence[DicomPatient]) -> None:
    """Nobody that a network is trained on may be among those it is tested on."""
    parts = {
        "Train": {same_patient_key(patient.name): patient.slices[0].image for patient in training},
        "Test": {same_patient_key(patient.name): patient.slices[0].image for patient in test},
        "DICOM": {same_patient_key(patient.original): patient.stacks[0].folder for patient in dicom},
    }
    for one, other in (("Train", "Test"), ("Train", "DICOM"), ("Test", "DICOM")):
        both = sorted(parts[one].keys() & parts[other].keys())
        if both:
            raise DatasetError(
                f"{shown(parts[other][both[0]])}: found a patient that is in {one} as well "
                f"({shown(parts[one][both[0]])}), expected different people; remove one of the two"
            )
