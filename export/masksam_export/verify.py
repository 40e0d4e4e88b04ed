"""Does the exported chain compute what the network computes? Checked on every export, before a bundle exists.

Graphs run one after another, each on what the one before gave. Where a port differs from the network's only in places
that rounding decides (`Reference.may_differ`), the graphs after it are compared on the network's own values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from masksam_deploy.base.errors import ExportError, ParityError
from masksam_deploy.bundle.manifest import Decision, Graph
from masksam_deploy.metrics.parity import compare_scores, max_abs_error
from masksam_deploy.runtimes.base import IMAGE, SCORES, Device
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession
from masksam_export.families.base import DEFAULT_TOLERANCES, Float, Mask, Reference, Tolerances

Progress = Callable[[str], None]

BATCH_CHECK_LIMIT = 50_000_000
"""Parameters. Larger networks are not also run with two windows in one batch: that doubles the memory."""


@dataclass
class _Check:
    """One input's figures, filled while its graphs run."""

    name: str
    reference: Reference
    decision: Decision
    tolerances: Tolerances
    figures: dict[str, JsonValue] = field(default_factory=dict)
    chain: dict[str, Float] = field(default_factory=dict)


def verify_chain(
    directory: Path,
    graphs: Iterable[Graph],
    references: Mapping[str, Reference],
    decision: Decision,
    *,
    batched: bool,
    tolerances: Tolerances = DEFAULT_TOLERANCES,
    device: Device = "cpu",
    progress: Progress = lambda _: None,
) -> dict[str, JsonValue]:
    """Run the graphs in ONNX Runtime and compare every port with the network's.

    Each graph is loaded once and freed before the next, so that a large network needs little more than its
    largest graph.

    Args:
        directory: where the graphs' files lie.
        graphs: in the order in which they chain.
        references: what the network computes, by the input's name.
        decision: the rule by which class scores become labels.
        batched: whether also to run all inputs as one batch.
        tolerances: how far the graphs may be from the network.
        device: where ONNX Runtime runs.
        progress: called with a line of text at each step.

    Returns:
        The figures, by input name, for the bundle's provenance.

    Raises:
        ExportError: a reference lacks a port, or one of its masks has another shape than its port.
        ParityError: the graphs disagree with the network.
    """
    checks = [_Check(name, reference, decision, tolerances) for name, reference in references.items()]
    if batched:
        checks.append(_Check("batch", _stack(list(references.values())), decision, tolerances))
    graphs = list(graphs)
    for check in checks:
        _require_ports(check, graphs)
        check.chain[IMAGE] = check.reference.ports[IMAGE]
    for graph in graphs:
        progress(f"verifying {graph.name} in ONNX Runtime")
        session = OnnxRuntimeSession(graph, directory / graph.file, device=device, lean=True)
        for check in checks:
            outputs = session.run({port.name: check.chain[port.name] for port in graph.inputs})
            tied = _compare(check, graph, outputs)
            # After a tie both sides continue from the same values.
            source: Mapping[str, Float] = check.reference.ports if tied else outputs
            check.chain.update({name: source[name] for name in outputs})
        session.close()
    return {check.name: check.figures for check in checks}


def _require_ports(check: _Check, graphs: Sequence[Graph]) -> None:
    """A family's mistake is better named than met as a `KeyError` after minutes."""
    ports, masks = check.reference.ports, check.reference.may_differ
    needed = {IMAGE, *(port.name for graph in graphs for port in graph.outputs)}
    problems = [f"no port '{name}'" for name in sorted(needed - ports.keys())]
    problems += [
        f"a mask of shape {mask.shape} for port '{name}'"
        for name, mask in sorted(masks.items())
        if name not in ports or mask.shape != ports[name].shape
    ]
    if problems:
        raise ExportError(
            f"the family's reference for the {check.name} input: found {', '.join(problems)}, expected every port of "
            "the graphs, and masks of their ports' shapes; correct the family's reference"
        )


def _compare(check: _Check, graph: Graph, outputs: Mapping[str, Float]) -> bool:
    """Judge what a graph gave; whether any of it differs in places where it may."""
    tied = False
    for name, value in outputs.items():
        expected, may_differ = check.reference.ports[name], check.reference.may_differ.get(name)
        check.figures[f"{name}_max_abs_error"] = max_abs_error(value, expected)
        judged = value
        if may_differ is not None and value.shape == expected.shape:
            ties = may_differ & ~(np.abs(value - expected) <= _allowed(check, name))
            check.figures[f"{name}_ties"] = int(ties.sum())
            tied = tied or bool(ties.any())
            judged = np.where(may_differ & np.isfinite(value), expected, value)
        if name == SCORES:
            _judge_scores(check, judged)
        else:
            _judge_feature(check, graph, name, judged)
    return tied


def _allowed(check: _Check, name: str) -> float:
    """The largest difference that rounding explains on a port."""
    if name in check.reference.whole:
        return 0.0
    if name == SCORES:
        return check.tolerances.scores
    return check.tolerances.features * max(1.0, float(np.abs(check.reference.ports[name]).max(initial=0.0)))


def _judge_feature(check: _Check, graph: Graph, name: str, value: Float) -> None:
    expected, allowed = check.reference.ports[name], _allowed(check, name)
    error = max_abs_error(value, expected)
    if error <= allowed:
        return
    wrong = int((value != expected).sum()) if name in check.reference.whole and value.shape == expected.shape else None
    found = f"maximum error {error:.3g}, allowed {allowed:.3g}" if wrong is None else f"{wrong} values are not equal"
    raise ParityError(
        f"graph '{graph.name}' disagrees with the network on '{name}' for the {check.name} input: {found}"
        f"{' away from its thresholds' if name in check.reference.may_differ else ''}; no bundle was written"
    )


def _judge_scores(check: _Check, scores: Float) -> None:
    limits = check.tolerances
    parity = compare_scores(scores, check.reference.ports[SCORES], check.decision, tie_margin=limits.tie_margin)
    check.figures[f"{check.decision}_agreement"] = parity.agreement
    check.figures[f"{check.decision}_agreement_without_ties"] = parity.decided_agreement
    if not (parity.max_abs_error <= limits.scores and parity.decided_agreement >= limits.agreement):
        raise ParityError(
            f"the exported graphs disagree with the network for the {check.name} input: maximum error of the class "
            f"scores {parity.max_abs_error:.3g} (allowed {limits.scores:g}), same class on "
            f"{parity.decided_agreement:.4%} of the voxels (needed {limits.agreement:.2%}); no bundle was written"
        )


def _stack(references: Sequence[Reference]) -> Reference:
    """Several inputs as one batch; windows do not influence each other."""
    first = references[0]
    masks: dict[str, Mask] = {name: _joined([r.may_differ[name] for r in references]) for name in first.may_differ}
    return Reference(
        ports={name: _joined([r.ports[name] for r in references]) for name in first.ports},
        may_differ=masks,
        whole=first.whole,
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays, axis=0)
