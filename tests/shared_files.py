"""Folders that are slow to make and the same for all tests: made once on a machine, until what makes them changes.

They lie beside pytest's temporary folders. A lock lets the processes of one run, and runs beside each other, wait for
what another one makes. Every user gets a copy: a test that writes where it should not harms no other.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "pydantic", "torch", "triton")
PREFIX = "masksam-shared-"
KEPT_S = 2 * 24 * 3600
"""Folders that nobody used for so long are removed."""


class SharedFiles:
    """What was made by the sources, data and package versions of now.

    Args:
        temporary: pytest's temporary folder of this process.
    """

    def __init__(self, temporary: Path) -> None:
        parent = next((path for path in temporary.parents if path.name.startswith("pytest-of-")), temporary)
        self._folder = parent / f"{PREFIX}{fingerprint()}"
        self._folder.mkdir(exist_ok=True)
        self._folder.touch()
        for other in parent.glob(f"{PREFIX}*"):
            if time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other, ignore_errors=True)

    def copy(self, name: str, make: Callable[[Path], object], target: Path) -> Path:
        """Copy a folder to `target`, after it was made if it is not there.

        Args:
            name: of what is made, the same for everybody who wants it.
            make: makes the folder whose path it is given; the path's last part is that of `target`.
            target: a path that does not exist.
        """
        made, staging = self._folder / name, self._folder / f"{name}.part"
        with FileLock(self._folder / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
                staging.mkdir()
                make(staging / target.name)
                staging.replace(made)
        return Path(shutil.copytree(made / target.name, target))


def fingerprint() -> str:
    """Of everything that what is made can depend on: another one, and it is made anew."""
    digest = hashlib.sha256(repr((str(ROOT), sys.version, platform.machine(), *map(_version, PACKAGES))).encode())
    for path in _sources():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    """The packages, what the tests share, the networks. Tests themselves make nothing that others get."""
    for folder in ("masksam_deploy", "export", "kernels", "models", "examples", "tests/data/network", "tests/data/e2e"):
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")
    yield from sorted(path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
