"""A network of three small graphs that really segments: bright balls on noise are class 1.

It has what engines must take care of: linear and convolution layers, a norm, a softmax, and a mask threshold between
the graphs. It runs in milliseconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.directory import Bundle, staging_directory, write_bundle
from masksam_deploy.bundle.upgrade import Manifest1, upgraded
from masksam_deploy.io import write_labels
from masksam_deploy.io.write_scan import write_scan

PATCH = (4, 16, 16)
WIDTH = 32
SHAPE = (9, 40, 36)
FEATURES = ["B", WIDTH, *PATCH]
MASK = ["B", 1, *PATCH]
SCORES = ["B", 2, *PATCH]
IMAGE = ["B", 1, *PATCH]


def make_bundle(target: Path, *, outlier: float = 1.0, cases: int = 0) -> Bundle:
    """Write the bundle to `target`.

    Args:
        target: the directory.
        outlier: scales one feature channel up, and the weights that read it down: the same function in float32, but a
            range that int8 (from about 100 on) or fp16 (from about 10,000 on) cannot hold.
        cases: validation scans with references that it carries.
    """
    weights = Weights(outlier)
    with staging_directory(target) as staging:
        for name, graph in (("encoder", weights.encoder()), ("generator", weights.generator())):
            onnx.save(graph, str(staging / f"{name}.onnx"))
        onnx.save(weights.decoder(), str(staging / "decoder.onnx"))
        listed = []
        for number in range(cases):
            scan, reference = ball_scan(number)
            files = [f"validation/case_{number}_0000.nii.gz", f"validation/case_{number}_reference.nii.gz"]
            (staging / "validation").mkdir(exist_ok=True)
            write_scan(scan, 0, staging / files[0])
            write_labels(reference, staging / files[1])
            listed.append({"name": f"case_{number}", "scans": files[:1], "reference": files[1]})
        content = manifest_content() | {"validation": listed, "files": {}}
        manifest = upgraded(Manifest1.model_validate_json(json.dumps(content), strict=True), "here")
        return write_bundle(staging, manifest, target)


def ball_scan(seed: int) -> tuple[Volume, Volume]:
    """A scan with two bright balls, and where they are."""
    generator = np.random.default_rng(seed)
    geometry = Geometry((SHAPE[2], SHAPE[1], SHAPE[0]), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    z, y, x = np.indices(SHAPE)
    inside = np.zeros(SHAPE, bool)
    for centre in generator.uniform((3, 10, 10), (6, 30, 26), (2, 3)):
        inside |= (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 36
    values = generator.normal(100, 10, SHAPE) + 100 * inside
    return Volume(values.astype(np.float32), geometry), Volume(inside.astype(np.uint8), geometry)


def write_ball_scans(folder: Path, seeds: range) -> Path:
    """Scans `scan_<seed>.nii.gz` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        write_scan(ball_scan(seed)[0], 0, folder / f"scan_{seed}.nii.gz")
    return folder


class Weights:
    """All weights, seeded."""

    def __init__(self, outlier: float) -> None:
        generator = np.random.default_rng(0)
        self.lift = generator.uniform(0.5, 1.0, (WIDTH, 1, 3, 3, 3)) / 27
        self.mix = np.eye(WIDTH) + generator.normal(0, 0.02, (WIDTH, WIDTH))
        self.narrow = generator.uniform(0.5, 1.0, (WIDTH, WIDTH)) / WIDTH
        self.head = generator.uniform(0.5, 1.0, (1, WIDTH, 1, 1, 1)) / WIDTH
        self.scale = np.ones(WIDTH)
        self.scale[3] = outlier

    def encoder(self) -> onnx.ModelProto:
        """`image` -> `features`: convolution, norm, linear, GELU."""
        to_last, to_first = [0, 2, 3, 4, 1], [0, 4, 1, 2, 3]
        nodes = [
            node("Conv", ["image", "lift"], "lifted", pads=[1] * 6),
            node("Transpose", ["lifted"], "tokens", perm=to_last),
            node("MatMul", ["tokens", "mix"], "mixed"),
            node("Add", ["mixed", "mix_bias"], "biased"),
            node("Gelu", ["biased"], "active"),
            node("Mul", ["active", "scale"], "scaled"),
            node("MatMul", ["scaled", "narrow"], "narrowed"),
            node("Add", ["active", "narrowed"], "summed"),
            node("Transpose", ["summed"], "features", perm=to_first),
        ]
        arrays = {
            "lift": self.lift,
            "mix": self.mix,
            "mix_bias": np.full(WIDTH, 0.1),
            "scale": self.scale,
            "narrow": self.narrow / self.scale[:, None],
        }
        return model("encoder", nodes, {"image": IMAGE}, {"features": FEATURES}, arrays)

    def generator(self) -> onnx.ModelProto:
        """`features` -> a 0/1 `mask` from a threshold."""
        nodes = [
            node("Conv", ["features", "wide"], "widened"),
            node("LeakyRelu", ["widened"], "active", alpha=0.01),
            node("Conv", ["active", "head"], "logits"),
            node("Sub", ["logits", "middle"], "shifted"),
            node("Sigmoid", ["shifted"], "probabilities"),
            node("Greater", ["probabilities", "half"], "above"),
            node("Cast", ["above"], "mask", to=TensorProto.FLOAT),
        ]
        arrays = {
            "wide": np.eye(WIDTH).reshape(WIDTH, WIDTH, 1, 1, 1),
            "head": self.head,
            "middle": np.array(1.0),
            "half": np.array(0.5),
        }
        return model("generator", nodes, {"features": FEATURES}, {"mask": MASK}, arrays)

    def decoder(self) -> onnx.ModelProto:
        """`features`, `mask` -> `semseg`: a norm, a linear, the mask, a softmax."""
        last = [0, 2, 3, 4, 1]
        nodes = [
            node("Transpose", ["features"], "tokens", perm=last),
            node("MatMul", ["tokens", "project"], "projected"),
            node("LayerNormalization", ["projected", "norm_weight", "norm_bias"], "normed", axis=-1, epsilon=1e-6),
            node("MatMul", ["projected", "class_weight"], "evidence"),
            node("ReduceMean", ["normed", "last_axis"], "flat", keepdims=1),
            node("Add", ["evidence", "flat"], "logits"),
            node("Transpose", ["mask"], "mask_last", perm=last),
            node("Mul", ["mask_last", "push"], "pushed"),
            node("Add", ["logits", "pushed"], "decided"),
            node("Sub", ["decided", "threshold"], "shifted"),
            node("Softmax", ["shifted"], "shares", axis=-1),
            node("Transpose", ["shares"], "semseg", perm=[0, 4, 1, 2, 3]),
        ]
        classes = np.stack([np.zeros(WIDTH), np.full(WIDTH, 4.0 / WIDTH)], axis=1)
        arrays = {
            "project": np.eye(WIDTH),
            "norm_weight": np.ones(WIDTH),
            "norm_bias": np.zeros(WIDTH),
            "class_weight": classes,
            "push": np.array([0.0, 1.0]),
            "threshold": np.array([0.0, 5.0]),
            "last_axis": np.array([-1]),
        }
        return model("decoder", nodes, {"features": FEATURES, "mask": MASK}, {"semseg": SCORES}, arrays)


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after what it gives."""
    return helper.make_node(kind, inputs, [output], name=f"make_{output}", **attributes)


def model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: dict[str, NDArray[Any]],
) -> onnx.ModelProto:
    """A checked float32 graph."""
    feeds, results = (
        [helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in side.items()]
        for side in (inputs, outputs)
    )
    arrays = [
        numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), key)
        for key, value in weights.items()
    ]
    made = helper.make_model(
        helper.make_graph(nodes, name, feeds, results, arrays),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(made)
    return made


def manifest_content() -> dict[str, Any]:
    """As JSON, without `files` and `validation`."""

    def port(name: str, shape: list[Any]) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": shape}

    image, features, mask, scores = (
        port(name, shape)
        for name, shape in (("image", IMAGE), ("features", FEATURES), ("mask", MASK), ("semseg", SCORES))
    )
    return {
        "schema_version": "1.1",
        "name": "balls",
        "model": {},
        "graphs": [
            {"name": "encoder", "file": "encoder.onnx", "inputs": [image], "outputs": [features]},
            {"name": "generator", "file": "generator.onnx", "inputs": [features], "outputs": [mask]},
            {"name": "decoder", "file": "decoder.onnx", "inputs": [features, mask], "outputs": [scores]},
        ],
        "preprocessing": {
            "channel_names": ["MR"],
            "transpose_forward": [0, 1, 2],
            "spacing": [1.0, 1.0, 1.0],
            "normalization": [{"scheme": "ZScoreNormalization"}],
            "resample_data": {"order": 3, "order_z": 0},
            "resample_scores": {"order": 1, "order_z": 0},
        },
        "labels": {
            "decision": "argmax",
            "classes": [{"name": "background", "value": 0}, {"name": "ball", "value": 1}],
        },
        "mirror_axes": [],
        "provenance": {
            "source_name": "none",
            "source_sha256": "ab" * 32,
            "created_utc": "2026-01-31T12:00:00Z",
            "tools": {},
            "parity": {},
        },
    }
