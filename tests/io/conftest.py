from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data" / "io"


@pytest.fixture
def data() -> Path:
    return DATA


@pytest.fixture(autouse=True)
def no_stderr_from_itk(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever is read or written, ITK's C++ code must not write to the terminal.

    One message cannot be switched off: VNL's about the SVD of some rotations about one axis, in NIfTI files.
    """
    yield
    captured = capfd.readouterr()
    assert captured.err == "" or "vnl_svd.hxx: suspicious return value" in captured.err
    assert captured.out == ""


Edit = Callable[[Any], None]


@pytest.fixture
def edited_copy() -> Callable[[Path, Path, Edit], Path]:
    """Copy a DICOM file, changing tags; the pixel data stay as they are, compressed or not."""

    def copy(source: Path, target: Path, edit: Edit) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(source)
            edit(dataset)
            dataset.save_as(target)
        return target

    return copy


@pytest.fixture
def copied_folder(tmp_path: Path) -> Callable[..., Path]:
    """A writable folder with the files of several folders; equal names get a prefix."""

    def copy(*folders: Path) -> Path:
        target = tmp_path / "series"
        target.mkdir()
        for i, folder in enumerate(folders):
            for file in folder.iterdir():
                shutil.copy(file, target / (f"{i}_{file.name}" if i else file.name))
        return target

    return copy


def pydicom_stack(folder: Path) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The same series read by pydicom: rescaled pixels `[Z, Y, X]` and position, row, column of each slice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = [pydicom.dcmread(f) for f in folder.iterdir() if f.suffix != ".txt"]
        normal = np.cross(files[0].ImageOrientationPatient[:3], files[0].ImageOrientationPatient[3:])
        files.sort(key=lambda f: float(np.dot(f.ImagePositionPatient, normal)))
        pixels = [
            f.pixel_array.astype(np.float64) * float(f.get("RescaleSlope", 1)) + float(f.get("RescaleIntercept", 0))
            for f in files
        ]
        geometry = {
            "positions": np.array([f.ImagePositionPatient for f in files], dtype=np.float64),
            "orientation": np.array(files[0].ImageOrientationPatient, dtype=np.float64),
            "pixel_spacing": np.array(files[0].PixelSpacing, dtype=np.float64),
        }
    return np.stack(pixels), geometry


@pytest.fixture
def dicom_oracle() -> Callable[[Path], tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]]:
    return pydicom_stack
