"""Options, markers and fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from masksam_deploy.base.nvidia import find_gpus
from tests.shared_files import SharedFiles

if not find_gpus().devices:
    # Triton looks at it when it is imported, which tests of any folder may be the first to do.
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parent / "data"
LV_CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
LV_EXPORT = (
    *("--validation", "examples/sunnybrook/scan"),
    *("--references", "examples/sunnybrook/reference.nii.gz"),
)
"""Options with which the demo's model is exported, from the repository's root."""
LV_PRINTED = "printed.txt"
"""What the export printed, in a file beside the bundle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes or many gigabytes")
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skip, GPU tests without a GPU")


LONG = (
    "tests/walk/",
    "tests/docs/test_commands.py",
    "tests/export/test_onnx_export.py",
    "tests/training/test_run.py",
    "tests/bench/test_nightly.py",
    "tests/benchmarks/",
)
"""Files with few tests that take long: begun last, they would leave one of two processes without work."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: run with --slow")
    if not config.getoption("--require-gpu") and shutil.which("nvidia-smi") is None:
        _skip(items, "gpu", "gpu: this machine has no NVIDIA driver (nvidia-smi not found)")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):  # keywords hold the folders' names, too
            item.add_marker(pytest.mark.skip(reason=reason))


INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from masksam_deploy.cli import main; main(sys.argv[1:])",
]
"""The command line, listening to SIGINT even where the tests themselves run with it ignored (background jobs)."""


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of test data."""
    return DATA


@pytest.fixture(scope="session")
def cardiac_case() -> Path:
    """A whole official run on a real heart scan; see tests/data/README.md."""
    return DATA / "e2e" / "c_cardiac"


@pytest.fixture(scope="session")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> SharedFiles:
    """What is slow to make, and made once for all test processes."""
    return SharedFiles(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def cardiac_bundle(cardiac_case: Path, shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle exported from the cardiac checkpoint."""
    pytest.importorskip("torch")

    def export(target: Path) -> None:
        from masksam_export.families.masksam.checkpoint import load_checkpoint
        from masksam_export.families.masksam.exportable import exportable
        from masksam_export.onnx_export import export_bundle

        export_bundle(exportable(load_checkpoint(cardiac_case / "checkpoint_final.pth")), target)

    return shared_files.copy("cardiac", export, tmp_path_factory.mktemp("bundle") / "cardiac.masksam")


@pytest.fixture(scope="session")
def lv_bundle(shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle, exported by the command line, with what that printed beside it; copy it to change it."""
    pytest.importorskip("torch")
    return shared_files.copy("lv", _export_lv, tmp_path_factory.mktemp("lv") / "exported") / "lv.masksam"


def _export_lv(folder: Path) -> None:
    folder.mkdir()
    target = str(folder / "lv.masksam")
    command = [sys.executable, "-m", "masksam_deploy", "export", str(LV_CHECKPOINT), "-o", target, *LV_EXPORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / LV_PRINTED).write_text(done.stdout, encoding="utf-8")
