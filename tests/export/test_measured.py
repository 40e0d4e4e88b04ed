"""Figures that travel with a bundle are those of its own checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")
pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")

from click.testing import CliRunner

from masksam_deploy.base.errors import ExportError
from masksam_deploy.bundle.directory import Bundle, file_digest
from masksam_export.cli import export_command
from masksam_export.measured import read_measured
from tests.export.toy_family import ToyFamily, save_toy

FIGURES = Path(__file__).parents[2] / "models" / "masksam-tiny-lv" / "measured.json"


def test_a_bundle_holds_the_figures_of_its_own_checkpoint(tmp_path: Path) -> None:
    save_toy(tmp_path / "toy.pth")
    content = json.loads(FIGURES.read_text(encoding="utf-8"))
    content["source_sha256"] = file_digest(tmp_path / "toy.pth").sha256
    (tmp_path / "measured.json").write_text(json.dumps(content), encoding="utf-8")
    arguments = [tmp_path / "toy.pth", "-o", tmp_path / "toy.masksam", "--measured", tmp_path / "measured.json"]
    done = CliRunner().invoke(export_command(lambda: [ToyFamily()]), [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    measured = Bundle.load(tmp_path / "toy.masksam").manifest.measured
    assert measured is not None and measured.model_dump(mode="json") == content


def test_figures_of_another_checkpoint_or_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found figures of the checkpoint .* expected those of this one \(0000"):
        read_measured(FIGURES, "0" * 64)
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ExportError, match=r"found something else in .*x\.json .* expected what benchmarks"):
        read_measured(tmp_path / "x.json", "0" * 64)
    with pytest.raises(ExportError, match=r"missing\.json cannot be read \(No such file"):
        read_measured(tmp_path / "missing.json", "0" * 64)
