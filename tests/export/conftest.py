"""Fixtures of the torch side."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.golden import NAMES, Golden, export_masksam


@pytest.fixture(scope="session")
def golden_graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stored official networks, exported once."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        export_masksam(Golden.read(name).model(), folder)
    return folders
