"""What may become of a damaged or hostile file, kind by kind: refused in one line, or read as independent readers do.

A judge yields the name of each case and what tries it. `FaultError` stands for anything that must not be.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from masksam_deploy.base.errors import MaskSamError

Outcome: TypeAlias = Literal["refused", "read and right", "read, nothing to compare with"]
Case: TypeAlias = tuple[str, Callable[[], Outcome]]

_LONGEST = 2000
_UNFORESEEN = ("was not made for", "this is a bug", "Traceback")
_MOST_VOXELS = 10**7


class FaultError(Exception):
    """Something that must not happen to any file."""


def images(seed: int, work: Path) -> Iterator[Case]:
    """NIfTI, NRRD and MetaImage files, against plain readers."""
    from tests.fuzz.image_files import mutations

    for name, content in mutations(seed):
        yield name, lambda name=name, content=content: _image(work / name, content)  # type: ignore[misc]


def dicom(seed: int, work: Path) -> Iterator[Case]:
    """DICOM series with one damaged slice, against pydicom."""
    from tests.fuzz.dicom_files import mutations

    for name, files in mutations(seed):
        yield name, lambda name=name, files=files: _series(name, files, work / "series")  # type: ignore[misc]


def checkpoints(seed: int, work: Path) -> Iterator[Case]:
    """Checkpoints, against the undamaged one."""
    from tests.fuzz.checkpoints import mutations

    for name, content in mutations(seed):
        yield name, lambda name=name, content=content: _checkpoint(name, content, work / "x.pth")  # type: ignore[misc]


def bundles(seed: int, work: Path) -> Iterator[Case]:
    """Bundles whose graphs, manifests and files were changed: loaded, and run on a scan by the command line."""
    from tests.engines.small_bundle import ball_scan, make_bundle
    from tests.fuzz.bundles import mutations

    good = make_bundle(work / "good.masksam").path
    scan = work / "scan.nii.gz"
    from masksam_deploy.io.write_scan import write_scan

    write_scan(ball_scan(0)[0], 0, scan)
    for name, mutate in mutations(seed):

        def judge(mutate: Callable[[Path], None] = mutate) -> Outcome:
            copy = work / "copy.masksam"
            with _copied(good, copy):
                mutate(copy)
                return _command(
                    ["infer", str(scan), "-b", str(copy), "-o", str(work / "out.nii.gz")], work / "out.nii.gz"
                )

        yield name, judge


def archives(seed: int, work: Path) -> Iterator[Case]:
    """Packed bundles: unpacked to what was packed, or refused with nothing left."""
    from masksam_deploy.bundle.archive import pack, unpack
    from tests.engines.small_bundle import make_bundle
    from tests.fuzz.archives import mutations

    good = make_bundle(work / "good.masksam")
    packed = pack(good.path, work / "good.zip")
    for name, mutate in mutations(seed):

        def judge(mutate: Callable[[Path], None] = mutate) -> Outcome:
            copy, target = work / "copy.zip", work / "copy.masksam"
            shutil.copyfile(packed, copy)
            mutate(copy)
            try:
                with _refusals():
                    right = unpack(copy, target).sha256 == good.sha256
                    shutil.rmtree(target)
                    if not right:
                        raise FaultError("unpacked to something else")
                    return "read and right"
            finally:
                _remove(copy)
                if left := [path.name for path in work.iterdir() if path.name not in ("good.masksam", "good.zip")]:
                    raise FaultError(f"left behind: {left}")
            return "refused"

        yield name, judge


def batches(seed: int, work: Path) -> Iterator[Case]:
    """The command line on folders of damaged scans: no traceback, no half-written file, a verdict on each."""
    from tests.engines.small_bundle import make_bundle
    from tests.fuzz.image_files import mutations

    bundle = make_bundle(work / "good.masksam").path
    files = mutations(seed)
    while True:
        batch = list(islice(files, 25))
        yield batch[0][0], lambda batch=batch: _batch(batch, bundle, work)  # type: ignore[misc]


JUDGES: dict[str, Callable[[int, Path], Iterator[Case]]] = {
    judge.__name__: judge for judge in (images, dicom, checkpoints, bundles, archives, batches)
}


def _image(path: Path, content: bytes) -> Outcome:
    from masksam_deploy.io import read_volume
    from masksam_deploy.io.grid import affine_lps
    from tests.fuzz.plain_images import agrees, ways

    path.write_bytes(content)
    try:
        with _refusals():
            volume = read_volume(path, max_voxels=_MOST_VOXELS)
            if not any(agrees(volume.array[0], affine_lps(volume.geometry), way) for way in ways(path.name, content)):
                raise FaultError("accepted, but plain reading finds something else")
            return "read and right"
    finally:
        path.unlink()
    return "refused"


def _series(name: str, files: dict[str, bytes], folder: Path) -> Outcome:
    from masksam_deploy.io import read_volume
    from masksam_deploy.io.grid import affine_lps
    from tests.fuzz.dicom_files import expected, left_as_it_was

    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    try:
        with _refusals():
            volume = read_volume(folder, max_voxels=_MOST_VOXELS)
            wanted = expected(files) or left_as_it_was(name, files)
            if wanted is None:
                return "read, nothing to compare with"
            values = volume.array[0]
            if values.shape != wanted.values.shape or not np.allclose(values, wanted.values, rtol=1e-6, atol=1e-3):
                raise FaultError("other pixels than pydicom's")
            if not np.allclose(affine_lps(volume.geometry), wanted.affine, atol=1e-3):
                raise FaultError("another place than pydicom's")
            return "read and right"
    finally:
        shutil.rmtree(folder)
    return "refused"


def _checkpoint(name: str, content: bytes, path: Path) -> Outcome:
    import torch

    from masksam_export.families.masksam.checkpoint import load_checkpoint

    path.write_bytes(content)
    with _refusals():
        weights = load_checkpoint(path).model.state_dict()
        if not name.startswith("damaged-"):
            return "read, nothing to compare with"
        original = _original_weights()
        if not all(torch.equal(value, original[key]) for key, value in weights.items()):
            raise FaultError("other weights than the original's")
        return "read and right"
    return "refused"


@lru_cache
def _original_weights() -> dict[str, Any]:
    from masksam_export.families.masksam.checkpoint import load_checkpoint
    from tests.fuzz.torch_files import BASE

    return load_checkpoint(BASE).model.state_dict()


def _batch(batch: list[tuple[str, bytes]], bundle: Path, work: Path) -> Outcome:
    scans, out = work / "scans", work / "out"
    scans.mkdir()
    for name, content in batch:
        (scans / name).write_bytes(content)
    try:
        code = _run(["infer", str(scans), "-b", str(bundle), "-o", str(out)], {0, 4})
        report = json.loads((out / "report.json").read_text("utf-8"))
        done = {f"{entry['name']}.nii.gz" for entry in report["scans"] if entry["status"] == "done"}
        if len(report["scans"]) != len(batch) or (len(done) < len(batch)) != (code == 4):
            raise FaultError(f"exit code {code} with {len(done)} of {len(report['scans'])} done")
        for entry in report["scans"]:
            if entry["error"] and entry["error"]["traceback"]:
                raise FaultError(entry["error"]["traceback"])
        if left := {path.name for path in out.iterdir()} - done - {"report.json", "ledger.jsonl"}:
            raise FaultError(f"left behind: {sorted(left)}")
    finally:
        shutil.rmtree(scans)
        shutil.rmtree(out, ignore_errors=True)
    return "read and right" if done else "refused"


def _command(arguments: list[str], output: Path) -> Outcome:
    """Run the command line: it succeeds, or says in one line why not and leaves nothing."""
    code = _run(arguments, {0, 2})
    if (code == 0) != output.exists():
        raise FaultError(f"exit code {code}, output {'there' if output.exists() else 'missing'}")
    output.unlink(missing_ok=True)
    if left := [path.name for path in output.parent.iterdir() if path.name.startswith(".")]:
        raise FaultError(f"left behind: {left}")
    return "refused" if code else "read, nothing to compare with"


def _run(arguments: list[str], codes: set[int]) -> int:
    command = [sys.executable, "-m", "masksam_deploy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    if done.returncode not in codes or "Traceback" in done.stderr or "onnxruntime" in done.stderr.split("error:")[0]:
        raise FaultError(f"exit code {done.returncode}: {done.stderr[-3000:]}")
    if max(map(len, lines), default=0) > 2 * _LONGEST:
        raise FaultError(f"a line of {max(map(len, lines))} letters")
    return done.returncode


@contextmanager
def _refusals() -> Iterator[None]:
    """Take an error of ours for a refusal, if it is a line that a person can read."""
    try:
        yield
    except MaskSamError as error:
        message = str(error)
        if "\n" in message or len(message) > _LONGEST or re.search(r"[\x00-\x1f]", message):
            raise FaultError(f"a message of {len(message)} letters: {message[:300]!r}") from error
        if any(word in message for word in _UNFORESEEN):
            raise FaultError(message) from error


@contextmanager
def _copied(source: Path, target: Path) -> Iterator[None]:
    shutil.copytree(source, target)
    try:
        yield
    finally:
        _remove(target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def workplace() -> tempfile.TemporaryDirectory[str]:
    """Where a judge keeps its files."""
    return tempfile.TemporaryDirectory(prefix="masksam-fuzz-")
