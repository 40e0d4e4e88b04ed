"""Bundles of schema 1.x, as they were written then, run to the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from masksam_deploy.bundle.directory import Bundle

# Written by version 0.1.0 before schema 2.0.
MANIFEST = "761cc90b2dde3b278df6097e7d4459f07e0ab82baf12e9f39246e15048e741bc"
LABELS = "0b9db6206df582d03b8681e77b0d2742e99d50299158202437200770085f737e"


def test_a_bundle_of_schema_1_runs_to_the_same_bytes(data: Path) -> None:
    pytest.importorskip("onnx", reason="makes its scan with the helpers of a bundle that onnx builds")
    from masksam_deploy.scan_path.segmenter import Segmenter
    from tests.engines.small_bundle import ball_scan

    bundle = Bundle.load(data / "bundles" / "balls_1.1")
    assert bundle.sha256 == MANIFEST  # what engines are stored for
    assert bundle.manifest.schema_version == "1.1"
    assert (bundle.manifest.family, bundle.manifest.contract, bundle.manifest.measured) == ("masksam", "dense", None)
    with Segmenter(bundle, threads=1) as segmenter:
        labels = segmenter(ball_scan(0)[0]).labels.array
    assert hashlib.sha256(labels.tobytes()).hexdigest() == LABELS
