"""ONNX Runtime: the typed graph is the engine. Building one means loading it, running it on zeros, and reading in the
runtime's own profile which types its operators really worked in.

No optimised model is stored: it would bind the file to one processor and one version, and save seconds at loading.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.atomic import atomic_path, check_writable
from masksam_deploy.base.errors import BackendError, EngineError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.builder import (
    BuildOptions,
    BuiltEngine,
    Progress,
    check_common,
    check_engine_precision,
    check_graph_precision,
    refuse,
)
from masksam_deploy.runtimes.onnxruntime import PROVIDERS, BareSession, SessionSettings, import_runtime, thread_count
from masksam_deploy.runtimes.spec import Precision, Target
from masksam_deploy.runtimes.versions import onnxruntime_facts

_NOT_HERE = "the typed graph itself is the engine"
_REFUSED = {
    "workspace_bytes": _NOT_HERE,
    "hardware_compatible": _NOT_HERE,
    "version_compatible": _NOT_HERE,
    "strip_weights": _NOT_HERE,
    "timing_cache": _NOT_HERE,
    "optimization_level": _NOT_HERE,
    "gpus": "it runs where ONNX Runtime does",
}
_TYPES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8"}
_FEED_TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CONTRACTIONS = ("MatMul", "Gemm", "Conv", "Einsum", "Attention")
_LONGEST_REASON = 300


class OnnxRuntimeBuilder:
    """See `Builder`. `device` is where the graph will run, and is tried now."""

    target: Target = "onnxruntime"
    suffix = ".onnx"

    def __init__(self, device: Device = "cpu") -> None:
        self._device = device

    def facts(self, options: BuildOptions) -> dict[str, str]:
        """See `Builder.facts`."""
        del options
        return onnxruntime_facts(self._device)

    def check(self, options: BuildOptions) -> None:
        """See `Builder.check`."""
        check_common(options)
        refuse(options, self.target, _REFUSED)
        runtime = import_runtime(self._device)
        available = runtime.get_available_providers()
        if PROVIDERS[self._device] not in available:
            raise BackendError(
                f"device '{self._device}' was asked for, but this ONNX Runtime {runtime.__version__} offers only "
                f"{', '.join(available)}; needs: pip install 'masksam-deploy[{self._device}]'"
            )

    def build(
        self, graph: Path, output: Path, precision: Precision, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        """See `Builder.build`."""
        self.check(options)
        check_writable(output)
        started = time.monotonic()
        progress("Reading the graph", 0, 2)
        in_graph = stored_types(self._run(graph, options, optimised=False))
        check_graph_precision(in_graph, precision, shown(graph))
        progress("Running it once", 1, 2)
        ran = list(self._run(graph, options, optimised=True))
        found = worked_types(ran)
        notes = _notes(ran, PROVIDERS[self._device])
        if precision in ("fp16", "bf16") and self._device == "cpu" and not found.get(precision):
            notes.append(f"ONNX Runtime computes {precision} graphs in fp32 on this processor: right, but no faster")
        else:
            check_engine_precision(found, precision, f"ONNX Runtime on {self._device} with {shown(graph)}")
        _copy(graph, output)
        return BuiltEngine(
            file=output,
            seconds=time.monotonic() - started,
            bytes=output.stat().st_size,
            precision_in_graph=in_graph,
            precision_found=found,
            not_read_back=None,
            facts=self.facts(options),
            notes=tuple(notes),
        )

    def _run(self, graph: Path, options: BuildOptions, *, optimised: bool) -> Iterator[Mapping[str, Any]]:
        """Run on zeros; what the profile says of each operator: `op_name`, `provider`, `input_type_shape` …"""
        with TemporaryDirectory() as folder:
            settings = SessionSettings(
                thread_count(None),
                config={"session.x64quantprecision": "1"},  # as it will run
                optimised=optimised,
                profile=str(Path(folder) / "profile"),
            )
            try:
                session = BareSession(graph, settings, self._device)
                session.run(None, _zeros(session, options.batches[0], graph))
                profile = Path(session.end_profiling()).read_bytes()
            except EngineError:
                raise
            except Exception as error:
                reason = one_line(str(error), _LONGEST_REASON)
                raise EngineError(
                    f"{shown(graph)}: ONNX Runtime does not run it on {self._device}: {reason}; build this graph in "
                    "another precision or target"
                ) from error
        for event in json.loads(profile):
            if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
                yield event["args"]


def stored_types(operators: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Operators per type they read or write, of a graph that was run as it is stored.

    On a CPU, ONNX Runtime puts casts around what it computes in float32 instead; those show the stored type.
    """
    counts: Counter[str] = Counter()
    for operator in operators:
        tensors = [*operator.get("input_type_shape", ()), *operator.get("output_type_shape", ())]
        counts.update({_TYPES[name] for tensor in tensors for name in tensor if name in _TYPES})
    return dict(counts)


def worked_types(operators: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Matrix products and convolutions per type in which they were computed."""
    kernels = (operator for operator in operators if any(name in operator["op_name"] for name in _CONTRACTIONS))
    return dict(Counter(_worked_type(operator) for operator in kernels))


def _worked_type(operator: Mapping[str, Any]) -> str:
    if operator["op_name"].startswith("DynamicQuantize"):  # reads float32, multiplies integers
        return "int8"
    first = str(next(iter(operator["input_type_shape"][0])))
    return _TYPES.get(first, first)


def _notes(operators: Iterable[Mapping[str, Any]], provider: str) -> list[str]:
    elsewhere = Counter(operator["provider"] for operator in operators if operator["provider"] != provider)
    return [f"{count} operators run on {name} instead of {provider}" for name, count in sorted(elsewhere.items())]


def _zeros(session: Any, batch: int, graph: Path) -> dict[str, NDArray[Any]]:
    feeds = {}
    for port in session.get_inputs():
        if port.type not in _FEED_TYPES:
            raise EngineError(
                f"{shown(graph)}: found input '{port.name}' of type {port.type}, expected {' or '.join(_FEED_TYPES)}; "
                "export the bundle again"
            )
        sizes = [size if isinstance(size, int) else batch for size in port.shape]
        feeds[port.name] = np.zeros(sizes, _FEED_TYPES[port.type])
    return feeds


def _copy(graph: Path, output: Path) -> None:
    """Copy a graph, and first the weights that stand beside a large one (under the name that the graph gives them)."""
    if output.exists() and output.samefile(graph):
        return
    weights = graph.with_name(f"{graph.name}.data")
    beside = output.with_name(weights.name)
    for source, target in ((weights, beside), (graph, output)):
        if source.exists() and not (target.exists() and target.samefile(source)):
            with atomic_path(target) as temporary:
                shutil.copyfile(source, temporary)
