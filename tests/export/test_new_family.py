"""A family that this package has never heard of: its own module is all that exporting and running it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")
pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")

import torch
from click.testing import CliRunner

from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.scan_path.segmenter import Segmenter
from masksam_export.cli import export_command
from masksam_export.families.base import Family
from masksam_export.families.masksam.family import FAMILY
from masksam_export.families.registry import load_trained
from masksam_export.onnx_export import export_bundle
from tests.export.toy_family import CLASSES, ToyFamily, save_toy, toy_recipe


def families() -> list[Family]:
    return [FAMILY, ToyFamily()]


def test_a_new_family_is_exported_and_segments_as_its_network_does_in_torch(tmp_path: Path) -> None:
    network = save_toy(tmp_path / "toy.pth")
    bundle = export_bundle(load_trained(tmp_path / "toy.pth", families=families), tmp_path / "toy.masksam")
    assert (bundle.manifest.family, bundle.manifest.network) == ("toy", {"side": 24})
    assert (bundle.manifest.recipe, bundle.patch_size) == (toy_recipe(), (1, 24, 24))

    scan = np.random.default_rng(3).normal(100, 20, (5, 24, 24)).astype(np.float32)
    geometry = Geometry((24, 24, 5), (1.5, 1.5, 8.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    with Segmenter(bundle, threads=1) as segmenter:
        found = segmenter(Volume(scan, geometry))
    normalised = (scan - scan.mean()) / scan.std()
    slices = torch.from_numpy(normalised.astype(np.float32))[:, None, None]
    with torch.inference_mode():
        scores = network(slices)[:, :, 0].numpy()
    ordered = np.sort(scores, axis=1)
    clear = ordered[:, -1] - ordered[:, -2] > 1e-4
    expected = scores.argmax(axis=1)
    assert clear.mean() > 0.99 and len(np.unique(expected[clear])) == len(CLASSES)
    np.testing.assert_array_equal(found.labels.array[clear], expected[clear])


def test_the_export_command_takes_a_new_familys_options_and_refuses_those_of_others(tmp_path: Path) -> None:
    save_toy(tmp_path / "toy.pth")
    command = export_command(families)
    arguments = [str(tmp_path / "toy.pth"), "-o", str(tmp_path / "toy.masksam"), "--json"]
    refused = CliRunner().invoke(command, [*arguments, "--adapters", "node"])
    assert "found --adapters, expected no such option: the checkpoint belongs to the family 'toy'" in str(
        refused.exception
    )
    done = CliRunner().invoke(command, [*arguments, "--side", "16"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["inferred"] == ["network: a toy of 16x16"]
    assert Bundle.load(tmp_path / "toy.masksam").patch_size == (1, 16, 16)
