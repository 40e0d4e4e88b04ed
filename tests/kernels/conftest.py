"""Without a GPU, kernels run in Triton's interpreter (tests/conftest.py); builds run in processes of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kernels.command import masksam_kernels
from tests.shared_files import SharedFiles

NARROWEST_AND_WIDEST = ("64", "320")


class WithoutTriton(pytest.Module):
    """Stands for a test module that cannot be imported on this machine."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("needs Triton, which exists for Linux only: pip install 'masksam-deploy[kernels]'")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if find_spec("triton"):
        return None
    module: pytest.Module = WithoutTriton.from_parent(parent, path=module_path)
    return module


@pytest.fixture(scope="session")
def pack(shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All architectures, the narrowest and the widest adapter."""
    widths = [argument for width in NARROWEST_AND_WIDEST for argument in ("--channels", width)]

    def build(folder: Path) -> None:
        done = masksam_kernels("build", "-o", folder, "--dtype", "fp16", *widths)
        assert done.returncode == 0, done.stderr

    return shared_files.copy("kernels", build, tmp_path_factory.mktemp("pack") / "all.kernels")
