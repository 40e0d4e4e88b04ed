"""Which formulation of the adapter's depthwise 3D convolution is fastest in ONNX Runtime on this CPU.

    python -m benchmarks.adapter_formulations      # writes benchmarks/results/adapter_formulations.json

One node (the adapter's middle) at the shapes of the published networks, each formulation held to the float64 reference
before it is timed. All are timed in turns in one process; medians, and ratios to the plain 3D convolution.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.parts import held, timed
from masksam_deploy.bench.machine import provenance
from masksam_deploy.runtimes.onnxruntime import SessionSettings, import_runtime, session_options, thread_count
from masksam_export.families.masksam.adapter_nodes import DOMAIN, FORMULATIONS, OP_TYPE, adapter_function
from masksam_kernels.depth_adapter import reference

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-6  # of the norm: float32 sums of 27 products near one, then a norm
WEIGHTS = ("bias", "taps", "taps_bias", "norm_weight", "norm_bias")


class Shape(NamedTuple):
    """One adapter: `[rows, side, side, channels]`, depth neighbours `inner` rows apart."""

    name: str
    rows: int
    frames: int
    inner: int
    side: int
    channels: int


SHAPES = (
    Shape("ViT-B 1024, windowed (ACDC)", 4 * 25, 4, 1, 14, 192),
    Shape("ViT-B 1024, global (ACDC)", 4, 4, 1, 64, 192),
    Shape("ViT-H 512, windowed (AMOS)", 9 * 9, 9, 1, 14, 320),
    Shape("ViT-H 512, global (AMOS)", 9, 9, 1, 32, 320),
    Shape("decoder 512 (AMOS, 24 queries)", 9 * 24, 9, 24, 32, 64),
)


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "adapter_formulations.json")
    arguments = parser.parse_args()
    facts = provenance("onnx")
    rows = [measure(shape, arguments.repeats, arguments.threads) for shape in SHAPES]
    result = {"repeats": arguments.repeats, "threads": arguments.threads, "shapes": rows, **facts}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


def measure(shape: Shape, repeats: int, threads: int) -> dict[str, Any]:
    """Medians in ms by formulation, after each was held to the reference."""
    tensors = random_tensors(shape.rows, shape.side, shape.side, shape.channels)
    depth = {"frames": shape.frames, "inner": shape.inner}
    sessions: dict[str, onnxruntime.InferenceSession] = {
        name: session(adapter_model(tensors, **depth, body=adapter_function(name)), threads) for name in FORMULATIONS
    }
    expected = reference_output(tensors, **depth)
    feeds = {"hidden": tensors["hidden"]}
    errors = held(sessions, feeds, expected, TOLERANCE)
    times = timed(sessions, feeds, repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{shape.name}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in medians.items()), flush=True)
    return {
        **shape._asdict(),
        "median_ms": {name: round(ms, 2) for name, ms in medians.items()},
        "times_faster_than_volume": {name: round(medians["volume"] / ms, 2) for name, ms in medians.items()},
        "relative_error": errors,
    }


def random_tensors(rows: int, height: int, width: int, channels: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Inputs of a node: hidden values of unit size, taps that keep the sums near one."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * generator.standard_normal(shape)).astype(np.float32)

    vectors = {name: normal(channels) for name in WEIGHTS if name != "taps"}
    return {"hidden": normal(rows, height, width, channels), "taps": normal(27, channels, scale=27**-0.5), **vectors}


def adapter_model(
    tensors: dict[str, NDArray[np.float32]], *, frames: int, inner: int, body: onnx.FunctionProto | None
) -> onnx.ModelProto:
    """A graph of one adapter node, `hidden` to `out`, with or without a body."""
    _, height, width, channels = tensors["hidden"].shape
    node = helper.make_node(
        OP_TYPE,
        ["hidden", *WEIGHTS],
        ["out"],
        domain=DOMAIN,
        frames=frames,
        inner=inner,
        height=height,
        width=width,
        channels=channels,
        epsilon=1e-6,
        plugin_namespace="masksam",
        plugin_version="1",
    )
    size: list[str | int | None] = ["N", height, width, channels]
    graph = helper.make_graph(
        [node],
        "adapter",
        [helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, size)],
        [numpy_helper.from_array(tensors[name], name) for name in WEIGHTS],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    functions = [] if body is None else [body]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def reference_output(tensors: dict[str, NDArray[np.float32]], *, frames: int, inner: int) -> NDArray[np.float64]:
    """In float64, from the same numbers."""
    given = (torch.from_numpy(tensors[name]).double() for name in ("hidden", *WEIGHTS))
    out: NDArray[np.float64] = reference.depth_adapter_middle(*given, frames=frames, inner=inner).numpy()
    return out


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """On the CPU."""
    options = session_options(import_runtime(), SessionSettings(thread_count(threads)))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
