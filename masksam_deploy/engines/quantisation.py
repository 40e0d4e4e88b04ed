"""INT8 with explicit quantisation: ONNX Runtime's tools do the arithmetic, this file chooses the nodes and the data."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from masksam_deploy.engines.graph_types import GraphIndex, Shape, copied, save_model, tensor_shapes
from masksam_deploy.runtimes.onnxruntime import BareSession, SessionSettings, import_runtime, thread_count

Calibrator: TypeAlias = Literal["percentile", "entropy"]
Runtime: TypeAlias = Literal["onnxruntime", "tensorrt"]
Feeds: TypeAlias = Mapping[str, NDArray[np.float32]]
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

PERCENTILE = 99.999
ENTROPY_BINS = 512
"""ONNX Runtime's default of 128 leaves the search no choice at 128 quantised bins."""
_DEQUANTISED = "_DequantizeLinear_Output"
GROUP_BYTES = 2**30
"""Of activations that leave the runtime at a time while histograms are made."""
SAMPLED_VALUES = 2**21
"""Of a larger activation evenly spaced rows are looked at, about so many values a window: enough for a percentile, and
the full-size ViT-B encoder need not run over and over because its activations do not fit into memory at once."""
_FEWEST_ROWS = 16
SMALLEST_SUM = 32
SMALLEST_OUTPUT = 16
"""Products over fewer terms, or into fewer channels, cost less than quantising their inputs."""


def quantisable(index: GraphIndex, protected: Collection[str]) -> list[str]:
    """Names of the nodes for which int8 pays and is safe: Linears and dense convolutions off the protected paths."""
    return [node.name for node in index.graph.node if node.name not in protected and _pays(index, node)]


def activation_ranges(
    model: ModelProto,
    nodes: Collection[str],
    windows: Callable[[], Iterable[Feeds]],
    calibrator: Calibrator = "percentile",
    *,
    threads: int | None = None,
) -> dict[str, tuple[float, float]]:
    """The range of every tensor that quantised nodes read or write, symmetric around 0.

    Args:
        model: in float32, nodes named.
        nodes: to be quantised.
        windows: gives the graph's inputs, window by window, as often as asked.
        calibrator: percentile of the magnitude, or least entropy.
        threads: for the graph; by default all cores.

    Returns:
        Tensor name -> lowest and highest value.
    """
    index = GraphIndex(model)
    tensors = _tensors_of(index, nodes)
    ranges: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory(prefix="masksam-int8-") as folder:
        path = Path(folder) / "model.onnx"
        looked_at, shapes = copied(model), tensor_shapes(model)
        convolved = _convolved(index, nodes)
        samples = {name: _sampled(looked_at, name, shapes.get(name, ()), name in convolved) for name in tensors}
        save_model(looked_at, path)
        del looked_at
        for group in _groups(samples.values()):
            found = _measured(_calibrator(path, group, calibrator, threads), group, windows)
            ranges.update({name: found[sample.name] for name, sample in samples.items() if sample.name in found})
    return ranges


def quantise(
    model: ModelProto, nodes: Collection[str], ranges: Ranges, *, runtime: Runtime = "onnxruntime"
) -> ModelProto:
    """The graph with quantise/dequantise pairs before the given nodes.

    Weights are symmetric per output channel, activations symmetric per tensor, unsigned ones around 128; biases stay
    in float32. Whoever else reads a tensor, the residual stream above all, still reads it in float32.

    Args:
        model: in float32, nodes named; not modified.
        nodes: from `quantisable`.
        ranges: from `activation_ranges`.
        runtime: what the graph is for. TensorRT takes signed activations only. ONNX Runtime on x86 multiplies
            unsigned ones: signed ones it converts itself, but not those that several layers read, and leaves these
            layers in float32. It computes a convolution in int8 only between two quantised tensors, so that for it
            the results of convolutions are quantised too.
    """
    quantization = _tools()
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    limits = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    on_cpu = runtime == "onnxruntime"
    copy = copied(model)
    _untie_weights(copy, nodes)
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QUInt8 if on_cpu else quantization.QuantType.QInt8,
        tensors_range=TensorsData(quantization.CalibrationMethod.MinMax, limits),
        nodes_to_quantize=sorted(nodes),
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,  # TensorRT takes no int32 biases
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", *([] if on_cpu else ["Conv"])],
        },
    )
    with contextlib.redirect_stdout(io.StringIO()):
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: ModelProto = quantizer.model.model
    _give_back(model, result, nodes, conv_outputs=on_cpu)
    return result


def _untie_weights(model: ModelProto, nodes: Collection[str]) -> None:
    """Give every quantised node a weight of its own: ONNX Runtime's exact int8 sums refuse one that two nodes share."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        if node.name not in nodes:
            continue
        name = node.input[1]
        if name in taken:
            own = TensorProto()
            own.CopyFrom(weights[name])
            own.name = f"{name}__{node.name}"
            model.graph.initializer.append(own)
            node.input[1] = own.name
        taken.add(name)


def _give_back(model: ModelProto, quantised: ModelProto, nodes: Collection[str], *, conv_outputs: bool) -> None:
    """Let nodes that are not quantised read float32 again: the tool replaces a tensor for all who read it."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = {tensor.name for tensor in quantised.graph.initializer}
    convolved = [node for node in model.graph.node if conv_outputs and node.name in nodes and node.op_type == "Conv"]
    results = {name for node in convolved for name in node.output}
    for node in quantised.graph.node:
        if node.name in nodes or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for place, name in enumerate(node.input):
            original = name.removesuffix(_DEQUANTISED)
            if original == name or original in results:
                continue
            node.input[place] = original
            if original in weights and original not in kept:
                quantised.graph.initializer.append(weights[original])
                kept.add(original)


def _pays(index: GraphIndex, node: NodeProto) -> bool:
    if node.op_type == "ConvTranspose" or not index.weighted(node) or node.input[1] not in index.weights:
        return False
    shape = list(index.weights[node.input[1]].dims)
    if node.op_type == "Conv":
        outputs, terms = shape[0], prod(shape[1:])
    elif len(shape) == 2:
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        outputs, terms = shape if transposed else shape[::-1]
    else:
        return False  # a table of positions, one matrix per row
    return bool(terms >= SMALLEST_SUM and outputs >= SMALLEST_OUTPUT)


def _tensors_of(index: GraphIndex, nodes: Collection[str]) -> list[str]:
    """Activations that get a scale, in the graph's order, each once."""
    wanted: dict[str, None] = {}
    for node in index.graph.node:
        if node.name in nodes:
            wanted[node.input[0]] = None
            if node.op_type == "Conv":
                wanted[node.output[0]] = None
    return list(wanted)


@dataclass(frozen=True)
class _Sample:
    """What is looked at in a tensor's place, or the tensor itself; bytes a window."""

    name: str
    bytes: int


def _sampled(model: ModelProto, tensor: str, shape: Shape, convolved: bool) -> _Sample:
    """Let `model` give every n-th row of a large tensor, along its longest axes that are not the channels'."""
    # A product's terms are its input's last axis; a convolution's channels are the second.
    strides = _strides(shape, 1 if convolved else len(shape) - 1)
    if not strides:
        return _Sample(tensor, 4 * prod(shape))
    name = f"{tensor}/sampled"
    last = np.iinfo(np.int64).max
    settings = {
        "from": [0] * len(strides),
        "to": [last] * len(strides),
        "axes": list(strides),
        "strides": list(strides.values()),
    }
    for kind, values in settings.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{name}/{kind}"))
    model.graph.node.append(helper.make_node("Slice", [tensor, *(f"{name}/{kind}" for kind in settings)], [name], name))
    return _Sample(name, 4 * prod(shape) // prod(strides.values()))


def _strides(shape: Shape, channels: int) -> dict[int, int]:
    """Axis -> every which row leaves about `SAMPLED_VALUES` of a tensor; odd, so as not to keep step with windows."""
    strides = {}
    left = -(-prod(shape) // SAMPLED_VALUES)
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        stride = min(left | 1, shape[axis] // _FEWEST_ROWS - 1 | 1)
        if axis != channels and left > 1 and stride > 1:
            strides[axis] = stride
            left = -(-left // stride)
    return strides


def _convolved(index: GraphIndex, nodes: Collection[str]) -> set[str]:
    """Tensors that convolutions among the nodes read or write."""
    convolutions = [node for node in index.graph.node if node.op_type == "Conv" and node.name in nodes]
    return {name for node in convolutions for name in (node.input[0], node.output[0])}


def _groups(samples: Iterable[_Sample]) -> Iterator[set[str]]:
    """Tensors that may leave the runtime together."""
    group: set[str] = set()
    held = 0
    for sample in samples:
        if group and held + sample.bytes > GROUP_BYTES:
            yield group
            group, held = set(), 0
        group.add(sample.name)
        held += sample.bytes
    if group:
        yield group


def _measured(
    calibrator: Any, tensors: set[str], windows: Callable[[], Iterable[Feeds]]
) -> dict[str, tuple[float, float]]:
    with contextlib.redirect_stdout(io.StringIO()):
        for feeds in windows():  # one by one: what a call collects is in memory at once
            calibrator.collect_data(_Reader(feeds))
        data = calibrator.compute_data()
    ranges = {}
    for name in tensors:
        low, high = data[name].range_value
        reach = max(abs(float(low)), abs(float(high)))
        ranges[name] = (-reach, reach)
    return ranges


def _calibrator(path: Path, tensors: set[str], method: Calibrator, threads: int | None) -> Any:
    """ONNX Runtime's calibrator, held to the threads and to the tensors that are needed.

    It would keep every product of attention, and take all cores.
    """
    _tools()
    from onnxruntime.quantization.calibrate import EntropyCalibrater, PercentileCalibrater

    base = PercentileCalibrater if method == "percentile" else EntropyCalibrater
    options = {"percentile": PERCENTILE} if method == "percentile" else {"num_bins": ENTROPY_BINS}

    class Chosen(base):  # type: ignore[misc,valid-type]
        def select_tensors_to_calibrate(self, model: ModelProto) -> Any:
            return tensors, {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors}

        def create_inference_session(self) -> None:
            settings = SessionSettings(thread_count(threads), optimised=False)
            self.infer_session = BareSession(Path(self.augmented_model_path), settings)

    large = path.with_name(f"{path.name}.data").exists()
    made = Chosen(
        path,
        augmented_model_path=str(path.with_name("augmented.onnx")),
        symmetric=True,
        use_external_data_format=large,
        **options,
    )
    made.augment_graph()
    made.create_inference_session()
    return made


class _Reader:
    """One window, in the form that the calibrator reads."""

    def __init__(self, feeds: Feeds) -> None:
        self._left: list[Feeds] = [feeds]

    def get_next(self) -> Feeds | None:
        return self._left.pop() if self._left else None


def _tools() -> Any:
    """ONNX Runtime's quantisation package, with the telemetry switched off first."""
    import_runtime()
    from onnxruntime import quantization

    return quantization
