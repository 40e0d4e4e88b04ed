"""Fixtures of the torch side."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksam_export.onnx_export import export_bundle
from tests.example_kernels import make_pack
from tests.export.golden import Golden, export_masksam, trained_with
from tests.shared_files import SharedFiles


class ExportedGraphs(dict[str, Path]):
    """The folders of the stored official networks' graphs by name, each exported when it is first asked for."""

    def __init__(self, shared_files: SharedFiles, folder: Path) -> None:
        super().__init__()
        self._shared_files, self._folder = shared_files, folder

    def __missing__(self, name: str) -> Path:
        def export(target: Path) -> None:
            target.mkdir()
            export_masksam(Golden.read(name).model(), target)

        self[name] = self._shared_files.copy(name, export, self._folder / name)
        return self[name]


@pytest.fixture(scope="session")
def golden_graphs(shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stored official networks, exported."""
    return ExportedGraphs(shared_files, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def node_bundle(shared_files: SharedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_acdc` with its adapters as nodes, and a kernel pack for them, which `make_pack` makes the same again."""

    def export(target: Path) -> None:
        model = Golden.read("tiny_acdc").model()
        pack = make_pack(target.parent / "p", {model.config.adapter_dim, model.config.decoder_adapter_dim})
        export_bundle(trained_with(model, adapters="node", kernels=pack.folder), target)

    return shared_files.copy("tiny_acdc_nodes", export, tmp_path_factory.mktemp("nodes") / "lv.masksam")
