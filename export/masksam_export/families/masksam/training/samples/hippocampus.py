"""The hippocampus volumes of the Medical Segmentation Decathlon (Task04) as an nnU-Net raw data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from masksam_deploy.base.errors import DatasetError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.directory import reporting_writes
from masksam_export.families.masksam.training.dataset import Case, Dataset, load_case
from masksam_export.families.masksam.training.samples.files import visible_files
from masksam_export.families.masksam.training.samples.target import Prepared, Step, Work, check_target, write_sample

DATASET_NAME = "HippocampusMSD"
FOLDER = "hippocampus_msd"
LABELS = ("background", "anterior", "posterior")
_ENDING = ".nii.gz"
_HELD_OUT = 4  # every fourth volume, by name, is a test volume
_LICENSE_TEXT = """\
Source: Medical Segmentation Decathlon, Task04 Hippocampus (Simpson et al., "A large annotated medical image dataset
for the development and evaluation of segmentation algorithms", arXiv:1902.09063; http://medicaldecathlon.com), as
copied in github.com/udacity/nd320-c3-3d-imaging-starter. Files are unchanged; every fourth one is set aside for tests.
Licence: CC-BY-SA-4.0, https://creativecommons.org/licenses/by-sa/4.0/.
"""


def prepare_hippocampus(
    source: Path, target: Path, *, force: bool = False, step: Step = lambda text, done, total: None
) -> Prepared:
    """Write the data set `target`, complete or not at all.

    Args:
        source: a folder with `imagesTr` and `labelsTr`, or one that holds it as `hippocampus_msd`.
        target: the data set's directory.
        force: whether to replace a sample data set that is there already.
        step: called before each case.

    Raises:
        DatasetError: a folder is missing, an image has no label, or a label no image; or their grids differ, or a
            label has another value than those of the task.
        OutputError: the target exists, or cannot be written.
    """
    check_target(target, force=force)
    folder = source / FOLDER if (source / FOLDER).is_dir() else source
    images, labels = _named(folder / "imagesTr"), _named(folder / "labelsTr")
    _check_pairs(images, labels)
    test = len(images) // _HELD_OUT
    description = _description(len(images) - test)
    described = Dataset(folder, DATASET_NAME, description, ("MRI",), tuple(LABELS), ())
    work: list[Work] = []
    for index, name in enumerate(sorted(images)):
        part = "Ts" if index % _HELD_OUT == _HELD_OUT - 1 else "Tr"
        work.append((name, _copier(name, images[name], labels[name], part, described)))
    write_sample(target, work, description, _LICENSE_TEXT, force=force, step=step)
    return Prepared(target, training=len(images) - test, test=test, dicom_stacks=0)


def _named(folder: Path) -> dict[str, Path]:
    return {path.name.removesuffix(_ENDING): path for path in visible_files(folder) if path.name.endswith(_ENDING)}


def _check_pairs(images: dict[str, Path], labels: dict[str, Path]) -> None:
    """Every image needs its label."""
    alone = [shown(images[name]) for name in sorted(images.keys() - labels.keys())]
    alone += [shown(labels[name]) for name in sorted(labels.keys() - images.keys())]
    if alone or not images:
        found = f"files without a partner: {', '.join(alone[:8])}" if alone else "no volumes"
        raise DatasetError(
            f"found {one_line(found, limit=2000)}; expected pairs of imagesTr/NAME{_ENDING} and labelsTr"
        )


def _copier(name: str, image: Path, label: Path, part: str, dataset: Dataset) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        load_case(Case(name, (image,), label), dataset)  # the checks that `train` makes of its part
        with reporting_writes(staging):
            shutil.copyfile(image, staging / f"images{part}" / f"{name}_0000{_ENDING}")
            shutil.copyfile(label, staging / f"labels{part}" / f"{name}{_ENDING}")

    return write


def _description(training: int) -> dict[str, object]:
    return {
        "name": DATASET_NAME,
        "description": "Anterior and posterior hippocampus in brain MRI",
        "reference": "Medical Segmentation Decathlon, Task04, http://medicaldecathlon.com",
        "licence": "CC-BY-SA-4.0",
        "channel_names": {"0": "MRI"},
        "labels": {name: value for value, name in enumerate(LABELS)},
        "numTraining": training,
        "file_ending": _ENDING,
    }
