"""Options, markers and fixtures that all tests share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes or many gigabytes")
    parser.addoption("--require-gpu", action="store_true", help="fail, instead of skip, GPU tests without a GPU")


LONG = ("tests/walk/", "tests/export/test_onnx_export.py", "tests/training/test_run.py", "tests/bench/test_nightly.py")
"""Files with few tests that take long: begun last, they would leave one of two processes without work."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: run with --slow")
    if not config.getoption("--require-gpu") and shutil.which("nvidia-smi") is None:
        _skip(items, "gpu", "gpu: this machine has no NVIDIA driver (nvidia-smi not found)")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if marker in item.keywords:
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
def cardiac_bundle(cardiac_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bundle exported from the cardiac checkpoint, once for all tests."""
    pytest.importorskip("torch")
    from masksam_export.families.masksam.checkpoint import load_checkpoint
    from masksam_export.families.masksam.exportable import exportable
    from masksam_export.onnx_export import export_bundle

    target = tmp_path_factory.mktemp("bundle") / "cardiac.masksam"
    export_bundle(exportable(load_checkpoint(cardiac_case / "checkpoint_final.pth")), target)
    yield target
