"""Which nodes of a graph keep float32 when the others go to a smaller type, and why.

Rules from the network (what overflows or jumps in half precision in ViT/SAM: norms, softmax, the threshold from which
boxes are made, position encodings) and from tensors' measured ranges on real scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import NodeProto

from masksam_deploy.bundle.rules import SCORES_PORT
from masksam_deploy.engines.graph_types import MOVEMENT, GraphIndex

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
HEADROOM = 4.0
"""A tensor stays in float32 if calibration scans bring it within this factor of fp16's limits."""

SENSITIVE = {
    "norm": ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
    "softmax": ("Softmax", "LogSoftmax"),
    "reduction": ("ReduceMean", "ReduceSum", "ReduceL2", "AveragePool", "GlobalAveragePool"),
    "function": ("Sigmoid", "Sin", "Cos", "Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
}
"""Operators that keep float32 wherever they are: they add up many terms, or leave fp16's range on the way."""
_COMPARISONS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Sign")
_CHOICES = ("Floor", "Ceil", "Round", "ArgMax", "ArgMin", "TopK", "NonMaxSuppression")
DISCONTINUOUS = frozenset([*_COMPARISONS, *_CHOICES])
POSITIONS = frozenset(["Sin", "Cos"])


def protected_by_structure(index: GraphIndex) -> dict[str, str]:
    """Node name -> reason, for what must stay in float32 whatever the values are."""
    reasons: dict[str, str] = {}
    for reason, nodes in (
        ("box and threshold path", _threshold_path(index)),
        ("position encoding", index.upstream(_of_type(index, POSITIONS))),
        ("class scores", _score_path(index)),
    ):
        for name in nodes:
            reasons.setdefault(name, reason)
    for kind, types in SENSITIVE.items():
        for node in _of_type(index, frozenset(types)):
            reasons.setdefault(node.name, kind)
    return reasons


def protected_by_range(index: GraphIndex, ranges: Mapping[str, float]) -> dict[str, str]:
    """Node name -> reason, for producers and consumers of tensors that fp16 cannot hold with `HEADROOM` to spare.

    Args:
        index: of the graph.
        ranges: largest magnitude of each computed tensor, measured.
    """
    magnitudes = dict(ranges) | {name: _magnitude(index, name) for name in index.weights if index.is_float(name)}
    reasons: dict[str, str] = {}
    for name, largest in magnitudes.items():
        why = _out_of_range(largest)
        if why is None or (why.startswith("stays") and _is_vector(index, name)):
            continue
        producer = index.producer.get(name)
        for node in [*([producer] if producer else []), *index.consumers[name]]:
            if node.op_type not in MOVEMENT or why.startswith("reaches"):
                reasons.setdefault(node.name, f"'{name}' {why}")
    return reasons


def _out_of_range(largest: float) -> str | None:
    if not np.isfinite(largest) or largest * HEADROOM > FP16_MAX:
        return f"reaches {largest:.3g}, fp16 ends at {FP16_MAX:.0f}"
    if 0 < largest < FP16_SMALLEST_NORMAL * HEADROOM:
        return f"stays below {largest:.3g}, where fp16 loses digits"
    return None


def _is_vector(index: GraphIndex, name: str) -> bool:
    """A bias: it is added to what is larger, so that its lost digits would not have counted."""
    return name in index.weights and len(index.weights[name].dims) < 2


def _magnitude(index: GraphIndex, name: str) -> float:
    values = onnx.numpy_helper.to_array(index.weights[name])
    return float(np.abs(values).max(initial=0.0))


def _threshold_path(index: GraphIndex) -> Iterator[str]:
    """From the last weights before a threshold or a rounding, through it, to the graph's outputs."""
    jumps = list(_of_type(index, DISCONTINUOUS))
    weighted = frozenset(node.name for node in index.graph.node if index.weighted(node))
    yield from index.upstream(jumps, until=weighted)
    yield from index.downstream(jumps)


def _score_path(index: GraphIndex) -> Iterator[str]:
    """What follows the last weights before the class scores: softmax, sigmoid and their product."""
    last = index.producer.get(SCORES_PORT)
    if last is None:
        return
    weighted = frozenset(node.name for node in index.graph.node if index.weighted(node))
    yield from (name for name in index.upstream([last], until=weighted) if name not in weighted)


def _of_type(index: GraphIndex, types: frozenset[str]) -> Iterator[NodeProto]:
    return (node for node in index.graph.node if node.op_type in types)
