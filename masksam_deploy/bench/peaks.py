"""What the machine can do at float32, measured in the same runtime and with the same threads as the networks.

Needs `onnx` to write the two graphs that are timed. The arrays stay on the device.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from masksam_deploy.runtimes import Device
from masksam_deploy.runtimes.onnxruntime import (
    PROVIDERS,
    SessionSettings,
    import_runtime,
    provider_options,
    session_options,
    thread_count,
)

SIDE = 2048
"""Of the matrices multiplied: large enough for full speed, a fraction of a second on two cores."""
ELEMENTS = 2**25
"""Of the arrays added: 128 MiB each, far beyond any cache."""
REPEATS = 15


def peak_flops(*, device: Device = "cpu", threads: int | None = None, side: int = SIDE) -> float:
    """Operations per second of a square matrix product."""
    a = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    return 2 * side**3 / _seconds("MatMul", a, device, threads)


def peak_bandwidth(*, device: Device = "cpu", threads: int | None = None, elements: int = ELEMENTS) -> float:
    """Bytes per second of adding two arrays: two read, one written."""
    a = np.ones(elements, np.float32)
    return 3 * a.nbytes / _seconds("Add", a, device, threads)


def _seconds(
    operator: str, operand: np.ndarray[Any, np.dtype[np.float32]], device: Device, threads: int | None
) -> float:
    """The shortest time of one operator on two such operands, without copies between host and device."""
    runtime = import_runtime(device)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, operand.shape) for name in "abc"]
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], operator, values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = session_options(runtime, SessionSettings(thread_count(threads)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "peak.onnx"
        onnx.save(model, str(path))
        session = runtime.InferenceSession(
            str(path), options, providers=[(PROVIDERS[device], provider_options(device))]
        )
    binding = session.io_binding()
    for name in "ab":
        binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(operand, device, 0))
    binding.bind_ortvalue_output(
        "c", runtime.OrtValue.ortvalue_from_shape_and_type(operand.shape, np.float32, device, 0)
    )
    session.run_with_iobinding(binding)
    samples = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        samples.append(time.perf_counter() - started)
    return min(samples)  # a peak: whatever disturbed a sample only made it slower
