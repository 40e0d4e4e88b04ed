"""A trained network to a bundle: trace the three parts, check the files, compare them with the network, write."""

from __future__ import annotations

import gc
import logging
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
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

from masksam_deploy.base.errors import ExportError
from masksam_deploy.base.version import __version__
from masksam_deploy.bundle.directory import Bundle, check_target, staging_directory, write_bundle
from masksam_deploy.bundle.manifest import Graph, Manifest, Port, Provenance
from masksam_deploy.bundle.nnunet import recipe_of
from masksam_deploy.bundle.rules import KERNELS_DIRECTORY
from masksam_deploy.engines.gate import Case
from masksam_deploy.runtimes.onnxruntime import runtime_version
from masksam_export.families.masksam.adapter_nodes import DEFAULT_FORMULATION, Adapters, settle_adapters
from masksam_export.families.masksam.bundled_kernels import copy_pack, fitting_pack
from masksam_export.families.masksam.checkpoint import TrainedMaskSAM, release
from masksam_export.families.masksam.graphs import GraphPart, graph_parts
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.passes.convolutions import DEFAULT_CONVOLUTIONS, Convolutions, settle_convolutions
from masksam_export.validation_scans import add_validation
from masksam_export.verify import BATCH_CHECK_LIMIT, example_inputs, reference_outputs, verify_chain

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
    trained: TrainedMaskSAM,
    target: str | Path,
    *,
    force: bool = False,
    consume: bool = False,
    adapters: Adapters = DEFAULT_FORMULATION,
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
    validation: Sequence[Case] = (),
    kernels: Path | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Export a trained network as a bundle directory, verified against the network.

    Args:
        trained: from `load_checkpoint`.
        target: the bundle's directory, by custom `NAME.masksam`.
        force: whether an existing bundle may be replaced.
        consume: free the network's weights as soon as they are not needed; `trained.model` is unusable afterwards.
        adapters: how the depth-convolution adapters appear: in standard operators, in one of three formulations, or as
            one node each with a body; see `passes.adapter_nodes`.
        convolutions: how the 3D convolutions appear: with fewer multiplications for the same function, or as the
            network has them; see `passes.convolutions`.
        validation: small scans that travel with the bundle, to judge engines by.
        kernels: a kernel pack for the bundle to carry, for engines that run the adapters' nodes as kernels.
        progress: called with a line of text at each step.

    Raises:
        ParityError: the graphs disagree with the network; nothing is written.
        ExportError: tracing produced a graph that is invalid or not what was asked for, or the kernels do not fit.
        OutputError: the target exists or cannot be written.
    """
    directory = Path(target)
    check_target(directory, force=force)
    runtime = runtime_version()  # needed to verify: better missing now than after the work
    config, references = trained.config, {}
    pack = None if kernels is None else fitting_pack(kernels, config, adapters)
    with staging_directory(directory) as staging:
        cases = add_validation(staging, list(validation), trained.labels, config.in_channels)
        for name, image in example_inputs(config).items():
            progress(f"running the network on the {name} input")
            references[name] = reference_outputs(trained.model, image)
        graphs = export_graphs(trained.model, staging, adapters=adapters, convolutions=convolutions, progress=progress)
        batched = sum(parameter.numel() for parameter in trained.model.parameters()) <= BATCH_CHECK_LIMIT
        if consume:  # a ViT-H in torch beside the same in ONNX Runtime would take another 3 GB
            release(trained.model)
        decision = trained.labels.decision
        figures = verify_chain(staging, graphs, references, decision, batched=batched, progress=progress)
        if pack is not None:
            copy_pack(pack, staging / KERNELS_DIRECTORY)
        progress("hashing and writing the bundle")
        manifest = Manifest(
            name=_printable(directory.name.removesuffix(".masksam")),
            family="masksam",
            network=_plain(asdict(config)),
            graphs=graphs,
            recipe=recipe_of(trained.preprocessing, mirror_axes=trained.mirror_axes),
            labels=trained.labels,
            provenance=Provenance(
                source_name=_printable(trained.source.name),
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
            ),
            validation=cases,
            files={},
        )
        return write_bundle(staging, manifest, directory, force=force)


def export_graphs(
    model: MaskSAM,
    directory: Path,
    *,
    adapters: Adapters = DEFAULT_FORMULATION,
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
    progress: Progress = lambda _: None,
) -> tuple[Graph, ...]:
    """Trace the three parts into `directory` as checked ONNX files.

    Raises:
        ExportError: a graph is invalid, has other ports than declared, or holds a forbidden operator.
    """
    graphs = []
    with graph_parts(model) as parts:
        for part in parts:
            progress(f"tracing {part.name}")
            graphs.append(export_part(part, directory, adapters=adapters, convolutions=convolutions))
            gc.collect()
    return tuple(graphs)


def export_part(
    part: GraphPart,
    directory: Path,
    *,
    adapters: Adapters = DEFAULT_FORMULATION,
    convolutions: Convolutions = DEFAULT_CONVOLUTIONS,
) -> Graph:
    """Trace one part into `directory` as a checked ONNX file.

    Raises:
        ExportError: the graph is invalid, has other ports than declared, or holds a forbidden operator.
    """
    path = directory / f"{part.name}.onnx"
    _trace(part, path, adapters, convolutions)
    check_graph(path, part.inputs, part.outputs)
    return Graph(name=part.name, file=path.name, inputs=part.inputs, outputs=part.outputs)


def _trace(part: GraphPart, path: Path, adapters: Adapters, convolutions: Convolutions) -> None:
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
    settle_adapters(program.model, adapters)
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


def _printable(name: str) -> str:
    """A file name as JSON can hold it: names that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    """Tuples to lists, all the way down, as JSON will have them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
