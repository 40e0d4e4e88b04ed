"""A trained network to a bundle: trace its parts, check the files, compare them with the network, write."""

from __future__ import annotations

import gc
import logging
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnxscript
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
)
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from pydantic import JsonValue

from masksam_deploy.base.errors import ExportError
from masksam_deploy.base.text import plain_text
from masksam_deploy.base.version import __version__
from masksam_deploy.bundle.directory import Bundle, check_target, staging_directory, write_bundle
from masksam_deploy.bundle.manifest import Graph, Manifest, Measured, Port, Provenance
from masksam_deploy.engines.gate import Case
from masksam_deploy.runtimes.onnxruntime import runtime_version
from masksam_export.families.base import Rewrite, Trained
from masksam_export.families.parts import GraphPart, release
from masksam_export.passes.convolutions import DEFAULT_CONVOLUTIONS, Convolutions, settle_convolutions
from masksam_export.validation_scans import add_validation
from masksam_export.verify import BATCH_CHECK_LIMIT, verify_chain

OPSET = 20
UNLIMITED = 2**60
EMBED_LIMIT = 2**30
"""Bytes. Graphs with more weights keep them in a file beside them: protobuf ends at 2 GiB, and a mapped file
need not be held in memory twice."""

# Control flow and data-dependent shapes: nothing that an ahead-of-time engine could not build from.
FORBIDDEN_OPS = frozenset(
    [
        "Loop",
        "If",
        "Scan",
        "NonZero",
        "ScatterND",
        "ScatterElements",
        "Shape",
        "Size",
        "Range",
        "ConstantOfShape",
        "Expand",
        "SequenceConstruct",
        "SequenceAt",
        "Unique",
        "Compress",
    ]
)

Progress = Callable[[str], None]


def export_bundle(
    trained: Trained,
    target: str | Path,
    *,
    force: bool = False,
    consume: bool = False,
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
    validation: Sequence[Case] = (),
    measured: Measured | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Export a trained network as a bundle directory, verified against the network.

    Args:
        trained: from a family of networks.
        target: the bundle's directory, by custom `NAME.masksam`.
        force: whether an existing bundle may be replaced.
        consume: free the network's weights as soon as they are not needed; `trained.module` is unusable afterwards.
        convolutions: how the 3D convolutions appear: with fewer multiplications for the same function, or as the
            network has them; see `passes.convolutions`.
        validation: small scans that travel with the bundle, to judge engines by.
        measured: what this network was measured to cost in faster ways to run it.
        progress: called with a line of text at each step.

    Raises:
        ParityError: the graphs disagree with the network; nothing is written.
        ExportError: tracing produced a graph that is invalid or not what was asked for, or extra files do not fit.
        OutputError: the target exists or cannot be written.
    """
    directory = Path(target)
    check_target(directory, force=force)
    runtime = runtime_version()  # needed to verify: better missing now than after the work
    with staging_directory(directory) as staging:
        cases = add_validation(staging, list(validation), trained.labels, len(trained.recipe.channels))
        graphs, figures = _verified_graphs(trained, staging, convolutions, consume, progress)
        trained.extra_files(staging)
        progress("hashing and writing the bundle")
        manifest = Manifest(
            name=plain_text(directory.name.removesuffix(".masksam")),
            family=trained.family,
            network=trained.network,
            graphs=graphs,
            recipe=trained.recipe,
            labels=trained.labels,
            measured=measured,
            provenance=_provenance(trained, figures, runtime),
            validation=cases,
            files={},
        )
        return write_bundle(staging, manifest, directory, force=force)


def _verified_graphs(
    trained: Trained, staging: Path, convolutions: Convolutions, consume: bool, progress: Progress
) -> tuple[tuple[Graph, ...], dict[str, JsonValue]]:
    """The graphs, and the figures of their agreement with the network."""
    references = {}
    for name, image in trained.examples().items():
        progress(f"running the network on the {name} input")
        references[name] = trained.reference(image)
    with trained.parts() as parts:
        graphs = export_graphs(parts, staging, rewrites=trained.rewrites, convolutions=convolutions, progress=progress)
    batched = sum(parameter.numel() for parameter in trained.module.parameters()) <= BATCH_CHECK_LIMIT
    if consume:  # a ViT-H in torch beside the same in ONNX Runtime would take another 3 GB
        release(trained.module)
    figures = verify_chain(
        staging,
        graphs,
        references,
        trained.labels.decision,
        batched=batched,
        tolerances=trained.tolerances,
        progress=progress,
    )
    return graphs, figures


def _provenance(trained: Trained, figures: dict[str, JsonValue], runtime: str) -> Provenance:
    return Provenance(
        source_name=plain_text(trained.source.name),
        source_sha256=trained.sha256,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        tools={
            "masksam-deploy": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
            "onnxruntime": runtime,
            "python": platform.python_version(),
        },
        parity=figures,
    )


def export_graphs(
    parts: Iterable[GraphPart],
    directory: Path,
    *,
    rewrites: Sequence[Rewrite] = (),
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
    progress: Progress = lambda _: None,
) -> tuple[Graph, ...]:
    """Trace parts into `directory` as checked ONNX files.

    Args:
        parts: in the order in which they chain.
        directory: where `NAME.onnx` of each part is written.
        rewrites: applied to each traced graph before constants are folded.
        convolutions: how the 3D convolutions appear.
        progress: called with a line of text at each step.

    Raises:
        ExportError: a graph is invalid, has other ports than declared, or holds a forbidden operator.
    """
    graphs = []
    for part in parts:
        progress(f"tracing {part.name}")
        graphs.append(export_part(part, directory, rewrites=rewrites, convolutions=convolutions))
        gc.collect()
    return tuple(graphs)


def export_part(
    part: GraphPart,
    directory: Path,
    *,
    rewrites: Sequence[Rewrite] = (),
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
) -> Graph:
    """Trace one part into `directory` as a checked ONNX file; see `export_graphs`.

    Raises:
        ExportError: the graph is invalid, has other ports than declared, or holds a forbidden operator.
    """
    path = directory / f"{part.name}.onnx"
    _trace(part, path, rewrites, convolutions)
    check_graph(path, part.inputs, part.outputs)
    return Graph(name=part.name, file=path.name, inputs=part.inputs, outputs=part.outputs)


def _trace(part: GraphPart, path: Path, rewrites: Sequence[Rewrite], convolutions: Convolutions) -> None:
    # Two windows: with one, tracing would take the batch for a constant.
    examples = tuple(torch.zeros(2, *(int(size) for size in port.shape[1:])) for port in part.inputs)
    batch = torch.export.Dim("B", min=1)
    dynamic: tuple[Any, ...] = tuple({0: batch} for _ in examples)
    if part.variadic:
        dynamic = (dynamic,)
    with _quiet():
        program = torch.onnx.export(
            part.eval(),
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=[port.name for port in part.inputs],
            output_names=[port.name for port in part.outputs],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx traced no graph for '{part.name}'")
    for rewrite in rewrites:
        rewrite(program.model)
    fold_constants(program.model, input_size_limit=UNLIMITED, output_size_limit=UNLIMITED)
    settle_convolutions(program.model, convolutions)
    _tidy(program.model)
    program.model.graph.name = part.name
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
    program.save(path, external_data=size > EMBED_LIMIT)


def _tidy(model: onnx_ir.Model) -> None:
    """Keep constants as weights, tied ones once; drop source paths of this machine."""
    remove_unused_nodes(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass(size_limit=UNLIMITED)(model)
    ClearMetadataAndDocStringPass()(model)


def check_graph(path: Path, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> None:
    """Refuse a graph that is invalid ONNX, has other ports, or holds a forbidden operator.

    Raises:
        ExportError: says which.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"'{path.name}' is no valid ONNX: {str(error).splitlines()[0]}") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    forbidden = sorted({node.op_type for node in graph.node} & FORBIDDEN_OPS)
    if forbidden:
        raise ExportError(f"'{path.name}' holds {', '.join(forbidden)}; expected static shapes and no control flow")
    for side, declared, found in (("inputs", inputs, graph.input), ("outputs", outputs, graph.output)):
        ports = {value.name: _shape(value) for value in found}
        expected = {port.name: port.shape for port in declared}
        if ports != expected:
            raise ExportError(f"'{path.name}' has {side} {ports}, expected {expected}")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        return ("not float32",)
    return tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals and about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
