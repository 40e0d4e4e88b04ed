"""A tiny bundle for tests: the bundle layer does not parse ONNX, so any bytes will do as graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksam_deploy.bundle.directory import Bundle, staging_directory, write_bundle
from masksam_deploy.bundle.upgrade import Manifest1, upgraded

GRAPH_BYTES = {
    "image_encoder.onnx": b"not really a graph" * 10,
    "prompts/prompt_generator.onnx": b"another" * 7,
    "mask_decoder.onnx": b"",
}
ZERO_HASH = "0" * 64


def manifest_content() -> dict[str, Any]:
    """A consistent manifest as JSON content, without `files`."""
    image = {"name": "image", "dtype": "float32", "shape": ["B", 2, 4, 16, 32]}
    features = {"name": "features", "dtype": "float32", "shape": ["B", 8, 4, 2, 4]}
    tokens = {"name": "tokens", "dtype": "float16", "shape": ["B", 3, 8]}
    scores = {"name": "semseg", "dtype": "float32", "shape": ["B", 3, 4, 16, 32]}
    ct = {"scheme": "CTNormalization", "lower": -100.0, "upper": 300.0, "mean": 80.5, "std": 40.0}
    return {
        "schema_version": "1.0",
        "name": "heart",
        "model": {"embed_dim": 8, "patch": [4, 16, 32]},
        "graphs": [
            {"name": "image_encoder", "file": "image_encoder.onnx", "inputs": [image], "outputs": [features]},
            {
                "name": "prompt_generator",
                "file": "prompts/prompt_generator.onnx",
                "inputs": [features],
                "outputs": [tokens],
            },
            {
                "name": "mask_decoder",
                "file": "mask_decoder.onnx",
                "inputs": [image, features, tokens],
                "outputs": [scores],
            },
        ],
        "preprocessing": {
            "channel_names": ["CT", "T2"],
            "transpose_forward": [1, 0, 2],
            "spacing": [1.0, 2.5, 1],
            "normalization": [ct, {"scheme": "ZScoreNormalization", "use_mask": True}],
            "resample_data": {"order": 3, "order_z": 0, "force_separate_z": None},
            "resample_scores": {"order": 1, "order_z": 0},
        },
        "labels": {
            "decision": "argmax",
            "classes": [
                {"name": "background", "value": 0},
                {"name": "left ventricle", "value": 1},
                {"name": "myocardium", "value": 2},
            ],
        },
        "mirror_axes": [1, 2],
        "provenance": {
            "source_name": "checkpoint_final.pth",
            "source_sha256": "ab" * 32,
            "created_utc": "2025-01-31T12:00:00Z",
            "tools": {"torch": "2.9.0"},
            "parity": {"random": {"semseg": 1.5e-5, "argmax_agreement": 1.0}},
        },
    }


def make_bundle(target: Path, more: Mapping[str, bytes] | None = None) -> Bundle:
    """Write the example bundle to `target`, with more files if given."""
    with staging_directory(target) as staging:
        for name, data in {**GRAPH_BYTES, **(more or {})}.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(data)
        old = Manifest1.model_validate_json(json.dumps(manifest_content() | {"files": {}}), strict=True)
        return write_bundle(staging, upgraded(old, "here"), target)
