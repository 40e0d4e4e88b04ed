"""A folder in which a page's commands run as a reader would type them, and what it finds there.

`lv.masksam` is the demo's bundle, as the tutorial exports it. `scan.nii.gz`, `dicom_folder` and `scans` are parts of
the example scan, small enough for the network to see them in one window or a few. `training_scans` holds all of it.
`labels.nii.gz` is close to `reference.nii.gz`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import SimpleITK

from docs.extensions.fences import Fence
from masksam_deploy import read_volume
from tests.conftest import LV_EXPORT, LV_PRINTED, ROOT

SAMPLE = ROOT / "examples" / "sunnybrook"
CHECKPOINT = "models/masksam-tiny-lv/checkpoint_final.pth"
_SLICES = slice(4, 8)
_PLANE = slice(12, 244)
"""Pixels of a slice that make one window of the demo's network."""


class Sandbox:
    """One page's folder.

    Args:
        folder: an empty one.
        bundle: the demo's bundle, which is copied.
    """

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder = folder
        self._bundle = bundle
        for name in ("models", "examples"):
            (folder / name).symlink_to(ROOT / name, target_is_directory=True)
        _write_scans(folder)

    def give_bundle(self) -> None:
        """Put the demo's bundle where pages expect it that do not export it themselves."""
        shutil.copytree(self._bundle, self.folder / "lv.masksam")

    def run(self, fence: Fence) -> str:
        """Run one block and return what it printed.

        Raises:
            AssertionError: it failed.
        """
        code = fence.code if fence.language == "python" else self._without_exports(fence.code)
        shell = [sys.executable, "-c", code] if fence.language == "python" else ["bash", "-euo", "pipefail", "-c", code]
        scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            shell,
            cwd=self.folder,
            env={**os.environ, "PATH": scripts, "COLUMNS": "160"},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, f"{fence.page}:{fence.line}: exit code {done.returncode}\n{done.stderr}"
        return done.stdout

    def _without_exports(self, code: str) -> str:
        """The same commands, with a copy, and what it printed, in place of each export of the demo's model.

        It takes most of a minute: the session ran it once, with all options that pages show (`LV_EXPORT`).
        """
        return "\n".join(self._copied(line) if exports_the_demo(line) else line for line in logical_lines(code))

    def _copied(self, line: str) -> str:
        words = shlex.split(line)
        target = shlex.quote(words[words.index("-o") + 1])
        bundle, printed = (shlex.quote(str(path)) for path in (self._bundle, self._bundle.parent / LV_PRINTED))
        return f"test ! -e {target} && cp -r {bundle} {target} && cat {printed}"


def exports_the_demo(line: str) -> bool:
    """Whether a command is the export that the session ran, up to its target and options left out."""
    words = shlex.split(line, comments=True)
    if words[:3] != ["masksam-deploy", "export", CHECKPOINT] or "-o" not in words:
        return False
    at = words.index("-o")
    options = words[3:at] + words[at + 2 :]
    pairs = set(zip(options[::2], options[1::2], strict=False))
    return len(options) % 2 == 0 and pairs <= set(zip(LV_EXPORT[::2], LV_EXPORT[1::2], strict=True))


def logical_lines(code: str) -> list[str]:
    """Lines of shell, those that end in a backslash joined with the next, without empty ones and comments."""
    joined = code.replace("\\\n", " ").splitlines()
    return [line.strip() for line in joined if line.strip() and not line.lstrip().startswith("#")]


def states(expected: str, printed: str) -> bool:
    """Whether lines stand in what was printed, in their order; figures and the width of gaps may differ."""
    lines = iter(map(_shape, printed.splitlines()))
    return all(_shape(line) in lines for line in expected.splitlines() if line.strip())


def _shape(line: str) -> str:
    figures = re.sub(r"\d+([.,]\d+)*(e[-+]?\d+)?", "#", line)
    return " ".join(figures.split())


def _write_scans(folder: Path) -> None:
    reference = SimpleITK.ReadImage(str(SAMPLE / "reference.nii.gz"))[_PLANE, _PLANE, _SLICES]
    array = read_volume(SAMPLE / "scan").channels_czyx[0, _SLICES, _PLANE, _PLANE]
    scan = SimpleITK.GetImageFromArray(array.astype("int16"))
    scan.CopyInformation(reference)
    labels, moved = (SimpleITK.CyclicShift(image, [1, 0, 0]) for image in (reference, scan))
    images = {"scan": scan, "labels": labels, "reference": reference}
    images |= {"scans/first_0000": scan, "predictions/first": labels, "references/first": reference}
    images |= {"scans/second_0000": moved, "predictions/second": reference, "references/second": labels}
    for name in ("scans", "predictions", "references", "dicom_folder"):
        (folder / name).mkdir()
    for name, image in images.items():
        SimpleITK.WriteImage(image, str(folder / f"{name}.nii.gz"))
    files = sorted((SAMPLE / "scan").glob("*.dcm"), key=lambda path: int(path.stem))
    for path in files[_SLICES]:
        shutil.copy(path, folder / "dicom_folder")
    shutil.copytree(SAMPLE / "scan", folder / "training_scans" / "patient")
