"""Graphs of allowed operators that crash ONNX Runtime end the command with one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from onnx import NodeProto, helper

from tests.engines.small_bundle import make_bundle, write_ball_scans
from tests.runtimes.test_onnxruntime_limits import MAIN, before


def empty(*nodes: NodeProto) -> list[NodeProto]:
    """Nodes that make something of `empty`, which has no elements, and a number `more` of all."""
    return [
        helper.make_node("Slice", ["image", "zero", "zero", "one"], ["sliced"]),
        helper.make_node("Reshape", ["sliced", "flat"], ["empty"], allowzero=1),
        *nodes,
        helper.make_node("ReduceMax", ["made"], ["more"], keepdims=0),
    ]


CONSTANTS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "flat": np.array([2, 0]),
    "nothing": np.zeros(0, np.float32),
    "sizes": np.array([0, 0]),
    "two": np.array([2]),
    "weight": np.ones(1, np.float32),
    "cube": np.ones((1, 1, 3, 3, 3), np.float32),
}
HALVES = [
    helper.make_node("Split", ["image"], ["made", "other"], axis=2, num_outputs=1),
    helper.make_node("ReduceMax", ["made"], ["more"], keepdims=0),
]
NO_SLICES = [
    helper.make_node("Slice", ["image", "zero", "zero", "two"], ["none"]),
    helper.make_node("ConvTranspose", ["none", "cube"], ["made"]),
    helper.make_node("ReduceMax", ["made"], ["more"], keepdims=0),
]
NO_SLICES_NORMALISED = [
    NO_SLICES[0],
    helper.make_node("InstanceNormalization", ["none", "weight", "weight"], ["made"]),
    NO_SLICES[2],
]
CRASHES = {
    "normalisation": empty(helper.make_node("LayerNormalization", ["empty", "nothing"], ["made"], axis=-1)),
    "split": empty(helper.make_node("Split", ["empty", "sizes"], ["made", "other"], axis=1)),
    "softmax": empty(helper.make_node("Softmax", ["empty"], ["made"], axis=0)),
    "product": empty(
        helper.make_node("Transpose", ["empty"], ["turned"]),
        helper.make_node("MatMul", ["turned", "empty"], ["made"]),
    ),
    "halves": HALVES,
    "transposed convolution": NO_SLICES,
    "instance normalisation": NO_SLICES_NORMALISED,
}


@pytest.mark.parametrize("name", CRASHES)
def test_a_graph_that_crashes_the_runtime_does_not_end_the_command_without_a_word(tmp_path: Path, name: str) -> None:
    hostile = make_bundle(tmp_path / "hostile.masksam").path
    before(hostile, CRASHES[name], CONSTANTS)
    write_ball_scans(tmp_path / "scans", range(1))
    output = tmp_path / "seg.nii.gz"
    scan = tmp_path / "scans" / "scan_0.nii.gz"
    command = [sys.executable, "-c", f"import sys\n{MAIN}", "infer", str(scan), "-b", str(hostile), "-o", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if ended.returncode == 0:  # this ONNX Runtime computes it
        assert output.exists()
        return
    assert ended.returncode == 2, ended
    assert ended.stderr.startswith("error: "), ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not output.exists()
