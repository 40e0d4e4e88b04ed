"""Calling `masksam-deploy infer` as one does from a shell, and looking at what it leaves."""

from __future__ import annotations

import hashlib
import json
import locale
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from click.testing import CliRunner, Result

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.cli import app
from tests.engines.small_bundle import ball_scan


def write_series(folder: Path) -> Path:
    """Two balls as a small DICOM series."""
    folder.mkdir(parents=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, plane in enumerate(np.asarray(ball_scan(0)[0].array)):
        image = SimpleITK.GetImageFromArray(plane[None].astype(np.int16))
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.3.{number + 1}",
            "0008|0060": "MR",
            "0010|0020": "patient",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(number + 1),
            "0020|0032": f"0\\0\\{number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}.dcm"))
        with _same_locale():
            writer.Execute(image)
    return folder


@contextmanager
def _same_locale() -> Iterator[None]:
    """ITK's DICOM writer leaves the process in the C locale (ITK #6695), where Python reads text files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def invoke(*arguments: object) -> Result:
    step = [] if "--step" in arguments else ["--step", 1]  # fewer windows
    return CliRunner().invoke(app, ["infer", *map(str, [*arguments, *step])])


def done(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    if isinstance(result.exception, MaskSamError):
        assert result.exception.exit_code == 2
        return str(result.exception)
    assert result.exit_code == 2, result.output
    return result.output


def report_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def statuses(folder: Path) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in report_in(folder)["scans"]}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
