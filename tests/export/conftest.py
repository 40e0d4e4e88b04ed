"""Fixtures of the torch side."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksam_export.onnx_export import export_graphs
from tests.export.golden import NAMES, Golden


@pytest.fixture(scope="session")
def golden_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stored official networks, exported once."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        export_graphs(Golden.read(name).model(), folder)
    return folders
