"""Reading an engine back: which types its layers work in.

The inspector's JSON differs between versions: up to TensorRT 10 a tensor has one text `Format/Datatype` (`Half`,
`Row major linear FP32`, `Thirty-two wide channel vectorized row major Int8 format.`), from 11 on `DataType` beside
`Format`. Written from NVIDIA's documentation; **not yet run on a GPU**.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.tensorrt.log import Log

# The first that is found in a tensor's description; BFloat16 before Float.
_PATTERNS = (
    ("bf16", re.compile(r"BF16|BFloat16", re.IGNORECASE)),
    ("fp16", re.compile(r"FP16|Half", re.IGNORECASE)),
    ("fp8", re.compile(r"FP8|Float8", re.IGNORECASE)),
    ("int8", re.compile(r"Int8", re.IGNORECASE)),
    ("fp32", re.compile(r"FP32|Float", re.IGNORECASE)),
)
_TYPE_KEYS = ("DataType", "Format/Datatype", "Format/DataType")
# Layers that only move or hold numbers say nothing about arithmetic.
_MOVES = frozenset({"Reformat", "Constant", "NoOp", "Shuffle", "Cast"})


@dataclass(frozen=True)
class ReadBack:
    """`layers`: type -> number of layers (`fused` for what hides several in one); or None, for a `reason`."""

    layers: dict[str, int] | None
    reason: str | None = None


def read_back(trt: Any, log: Log, plan: Any) -> ReadBack:
    """Load an engine and list the types of its layers. That needs a GPU which the engine was built for."""
    gpus = find_gpus()
    if not gpus.devices:
        return ReadBack(None, f"an engine can be read back only on a GPU: {gpus.problem}")
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ReadBack(None, f"the engine does not load on this machine: {one_line(log.last_error())}")
    # Memory is left to the caller, who gives none: nothing will run.
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    inspector = engine.create_engine_inspector()
    if context is not None:
        _set_best_shapes(trt, engine, context)
        # Without shapes, the types of tensors that depend on them are not given.
        inspector.execution_context = context
    return layer_types(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def layer_types(information: str) -> ReadBack:
    """Types of layers from the inspector's JSON (built with detailed profiling)."""
    layers = json.loads(information).get("Layers", [])
    known = Counter(_layer_type(entry) for entry in layers if isinstance(entry, dict))
    del known[""]
    if not known:
        return ReadBack(None, "the inspector gave names of layers, but no types")
    return ReadBack(dict(known))


def _set_best_shapes(trt: Any, engine: Any, context: Any) -> None:
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])


def _layer_type(entry: Mapping[str, Any]) -> str:
    """The type of a layer's first input that has one; empty for layers without arithmetic."""
    kind, name = str(entry.get("LayerType", "")), str(entry.get("Name", ""))
    if kind in _MOVES:
        return ""
    if "ForeignNode[" in name or kind.lower() == "myelin":
        return "fused"
    for operand in entry.get("Inputs", []):
        text = " ".join(str(operand[key]) for key in _TYPE_KEYS if key in operand)
        found = next((type_name for type_name, pattern in _PATTERNS if pattern.search(text)), "")
        if found:
            return found
    return ""
