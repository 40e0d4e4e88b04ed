"""From a typed ONNX file to an engine: what TensorRT and TensorRT for RTX share.

Their Python modules have one API; it comes in as `trt`. Networks are strongly typed: each layer works in the type that
the graph gives it, on TensorRT 10.3 … 11 and RTX alike. What kernels were chosen is still read back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksam_deploy.base.atomic import atomic_path, check_writable
from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.runtimes.builder import (
    BuildOptions,
    BuiltEngine,
    Progress,
    check_engine_precision,
    check_graph_precision,
)
from masksam_deploy.runtimes.spec import Precision
from masksam_deploy.runtimes.tensorrt.inspector import read_back
from masksam_deploy.runtimes.tensorrt.log import Log, open_log
from masksam_deploy.runtimes.tensorrt.serialize import serialize

_CONTRACTIONS = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"})
# What may stand between a dequantised tensor and the product that reads it.
_TRANSPARENT = frozenset({"SHUFFLE", "IDENTITY", "CAST", "SQUEEZE", "UNSQUEEZE"})
_TYPES = {"FLOAT": "fp32", "HALF": "fp16"}
_LONGEST_REASON = 400


@dataclass(frozen=True)
class Recipe:
    """What differs between the two: their name in messages, how they are configured, what comes after a build."""

    name: str
    configure: Callable[[Any, Log], None]
    """Given the builder's configuration."""
    finish: Callable[[Any], tuple[str, ...]]
    """Given the configuration after the build; returns notes."""
    facts: Mapping[str, str]


def build_engine(
    trt: Any,
    recipe: Recipe,
    graph: Path,
    output: Path,
    precision: Precision,
    options: BuildOptions,
    progress: Progress,
) -> BuiltEngine:
    """See `Builder.build`."""
    check_writable(output)
    started = time.monotonic()
    log = open_log(trt)
    log.clear()
    builder = _new_builder(trt, recipe, log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, recipe, graph, network, log)
    in_graph = contraction_types(network)
    check_graph_precision(in_graph, precision, shown(graph))
    config = builder.create_builder_config()
    # TF32 keeps 10 bits of the mantissa: what the graph protects in float32 must stay float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    _add_profile(builder, network, config, options, graph)
    recipe.configure(config, log)
    plan = serialize(trt, builder, network, config, progress)
    if plan is None:
        raise EngineError(_failure(recipe, graph, log))
    found = read_back(trt, log, plan)
    if found.layers is not None and not found.layers.get("fused"):
        check_engine_precision(found.layers, precision, f"what {recipe.name} built from {shown(graph)}")
    with atomic_path(output) as temporary:
        temporary.write_bytes(plan)
    return BuiltEngine(
        file=output,
        seconds=time.monotonic() - started,
        bytes=plan.nbytes,
        precision_in_graph=in_graph,
        precision_found=found.layers,
        not_read_back=found.reason,
        facts=recipe.facts,
        notes=recipe.finish(config),
    )


def contraction_types(network: Any) -> dict[str, int]:
    """How many matrix products and convolutions of a parsed network work in which type.

    One is `int8` if its operands come out of DequantizeLinear nodes: those are what TensorRT fuses with it.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(slot).name: layer for layer in layers for slot in range(layer.num_outputs)}
    return dict(Counter(_type_of(layer, makers) for layer in layers if layer.type.name in _CONTRACTIONS))


def _type_of(layer: Any, makers: Mapping[str, Any]) -> str:
    operands = [layer.get_input(slot) for slot in range(min(2, layer.num_inputs))]
    stored = {_stored_type(tensor, makers) for tensor in operands if tensor is not None}
    return stored.pop() if len(stored) == 1 else _type_name(operands[0])


def _stored_type(tensor: Any, makers: Mapping[str, Any]) -> str:
    """The type before dequantisation, if there is one."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in _TRANSPARENT:
        layer = makers.get(layer.get_input(0).name)
    if layer is not None and layer.type.name == "DEQUANTIZE":
        return _type_name(layer.get_input(0))
    return _type_name(tensor)


def _type_name(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return _TYPES.get(name, name.lower())


def _new_builder(trt: Any, recipe: Recipe, log: Log) -> Any:
    try:
        return trt.Builder(log)
    except TypeError as error:  # what a null pointer becomes in the bindings
        raise EngineError(
            f"{recipe.name} does not start: {log.last_error() or one_line(str(error))}; check the GPU driver with "
            "'masksam-deploy doctor'"
        ) from error


def _parse(trt: Any, recipe: Recipe, graph: Path, network: Any, log: Log) -> None:
    parser = trt.OnnxParser(network, log)
    # From the file, so that weights beside it (above 2 GiB) are found.
    if not parser.parse_from_file(str(graph)):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise EngineError(
            f"{shown(graph)}: {recipe.name} does not take it: {'; '.join(errors) or log.last_error()}; "
            "export the bundle again with this version of masksam-deploy"
        )


def _parser_error(parser_error: Any) -> str:
    functions = "".join(f" in {name}" for name in parser_error.local_function_stack())
    node = (
        f"node '{parser_error.node_name()}' ({parser_error.node_operator()}){functions}: "
        if parser_error.node_operator()
        else ""
    )
    return f"{node}{parser_error.code().name}: {one_line(parser_error.desc(), _LONGEST_REASON)}"


def _add_profile(builder: Any, network: Any, config: Any, options: BuildOptions, graph: Path) -> None:
    """Say how large the one dynamic dimension, the first of each input, may be."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        first, *others = tensor.shape
        if min(others, default=1) < 0:
            raise EngineError(
                f"{shown(graph)}: found input '{tensor.name}' with the sizes {tuple(tensor.shape)}, expected only the "
                "first (the number of windows) to be open (-1); export the bundle again"
            )
        if first < 0:
            profile.set_shape(tensor.name, *((windows, *others) for windows in options.batches))
    config.add_optimization_profile(profile)


def _failure(recipe: Recipe, graph: Path, log: Log) -> str:
    reason = log.last_error() or "it gave no reason"
    advice = (
        "allow more with --workspace" if "workspace" in reason else "build this graph in another precision or target"
    )
    return f"{shown(graph)}: {recipe.name} cannot build it: {one_line(reason, _LONGEST_REASON)}; {advice}"
