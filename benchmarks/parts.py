"""Parts of a network as graphs in ONNX Runtime on the CPU: held to what is expected, then timed in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from masksam_deploy.runtimes.onnxruntime import SessionSettings, import_runtime, session_options, thread_count
from masksam_export.families.masksam.adapter_nodes import adapter_rewrites
from masksam_export.families.masksam.graphs import traceable
from masksam_export.families.parts import GraphPart
from masksam_export.onnx_export import export_part
from masksam_export.passes.convolutions import Convolutions

TOLERANCE = 1e-4  # of the norm: float32 sums of up to 5120 products, layer after layer; one wrong value in 10^8 is more

Floats = NDArray[np.float32]


def compare(
    parts: Mapping[str, GraphPart],
    feeds: dict[str, Floats],
    expected: NDArray[np.floating[Any]],
    convolutions: Mapping[str, Convolutions] | None = None,
    **timing: int,
) -> dict[str, Any]:
    """Export, hold to what is expected, time in turns; `convolutions` says which parts have them in another form."""
    sessions, operators = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            with traceable(part):
                form = (convolutions or {}).get(name, "direct")
                export_part(part, Path(folder), rewrites=adapter_rewrites(), convolutions=form)
            sessions[name], operators[name] = session(Path(folder) / f"{part.name}.onnx", timing["threads"])
    errors = held(sessions, feeds, expected, TOLERANCE)
    times = timed(sessions, feeds, timing["repeats"])
    return {
        "median_ms": {name: round(statistics.median(values), 1) for name, values in times.items()},
        "fastest_ms": {name: round(min(values), 1) for name, values in times.items()},
        "relative_error": errors,
        "allowed_error": TOLERANCE,
        "fused_operators": operators,
    }


def held(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: dict[str, Floats],
    expected: NDArray[np.floating[Any]],
    tolerance: float,
) -> dict[str, float]:
    """The errors of all, by the norm; if one is larger than allowed, the script ends."""
    errors = {name: relative_error(run.run(None, feeds)[0], expected) for name, run in sessions.items()}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise SystemExit(f"off by {wrong} of the norm, allowed {tolerance:.1e}: nothing was timed")
    return errors


def timed(
    sessions: Mapping[str, onnxruntime.InferenceSession], feeds: dict[str, Floats], repeats: int
) -> dict[str, list[float]]:
    """Milliseconds of every run, in turns in both orders: none always comes after the same other."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(repeats):
        for name, run in list(sessions.items())[:: -1 if repeat % 2 else 1]:
            started = time.perf_counter()
            run.run(None, feeds)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def relative_error(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """The norm of the difference, by the norm of what is expected."""
    off = np.subtract(found, expected, dtype=np.float64)
    return float(np.linalg.norm(off) / np.linalg.norm(expected.astype(np.float64)))


def session(path: Path, threads: int) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """On the CPU, with the names of the operators that ONNX Runtime put in place of standard ones."""
    options = session_options(import_runtime(), SessionSettings(thread_count(threads)))
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return run, sorted({node.op_type for node in graph.node if node.domain not in ("", "ai.onnx")})


def random_values(*shape: int, seed: int = 0) -> Floats:
    """Of unit size."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
