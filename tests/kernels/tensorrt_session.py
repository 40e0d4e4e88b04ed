"""TensorRT's real Python side with our ahead-of-time plugin, in a process of its own.

Its libraries are not here: three empty ones stand in, and nothing that would call into them is called. Symbolic
expressions are C++ objects of theirs, so `Expressions` stands in for those, with numbers.

    python -m tests.kernels.tensorrt_session FOLDER_OF_LIBRARIES PACK < cases.json > answers.json
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from masksam_kernels.arguments import INPUTS
from masksam_kernels.depth_adapter.aot_plugin import PLUGIN, define_aot_plugin
from masksam_kernels.depth_adapter.plugin import INTEGERS, NAME, NAMESPACE
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import read_pack

LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")


def tensorrt(libraries: Path) -> ModuleType:
    """The module `tensorrt` of NVIDIA's wheel of bindings."""
    for name in LIBRARIES:
        ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    module: ModuleType = tensorrt_bindings
    return module


class Expressions:
    """What TensorRT would compute with symbols, computed with numbers; they travel in capsules, as its pointers do."""

    def __init__(self, trt: ModuleType, symbol: Any) -> None:
        kinds = trt.DimensionOperation
        self.symbol = symbol
        self.operations = {
            kinds.SUM: lambda a, b: a + b,
            kinds.PROD: lambda a, b: a * b,
            kinds.FLOOR_DIV: lambda a, b: a // b,
        }
        api = ctypes.pythonapi
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]

    def constant(self, value: int) -> Any:
        return ctypes.pythonapi.PyCapsule_New(value + 1, None, None)  # a pointer may not be null

    def value(self, expression: Any) -> int:
        return int(ctypes.pythonapi.PyCapsule_GetPointer(expression, None)) - 1

    def operation(self, kind: Any, first: Any, second: Any) -> Any:
        made = self.symbol()
        made._int_expr = self.constant(self.operations[kind](self.value(first), self.value(second)))
        return made


def answer(trt: ModuleType, case: dict[str, Any]) -> dict[str, Any]:
    """What TensorRT is told for one node and profile, through its own template of a plugin."""
    from tensorrt.plugin import _lib, _tensor

    dtype = getattr(trt.DataType, case["dtype"])
    expressions = Expressions(trt, _tensor.SymIntExpr)
    plugin = created(trt, _lib, case)
    outputs = plugin.get_output_data_types([dtype] * len(INPUTS), [4, 1, 2, 1, 1, 1])
    _tensor.SymIntExpr._exprBuilder = expressions
    hidden, channels = tuple(case["shape"]), case["attributes"]["channels"]
    shapes = [hidden, (channels,), (27, channels), (channels,), (channels,), (channels,)]
    plugin.input_descs = [described(_tensor, shape, dtype) for shape in shapes]
    plugin.output_descs = (plugin.register_function(*plugin.input_descs, **plugin.attrs),)
    tensors = [profiled(trt, shape, dtype, case) for shape in (*shapes, hidden)]
    combinations = plugin.get_supported_format_combinations(tensors, len(INPUTS))
    plugin.configure_plugin(tensors[: len(INPUTS)], tensors[len(INPUTS) :])
    (tactic,) = plugin.get_valid_tactics()
    plugin.set_tactic(tactic)
    launch, integers = SimpleNamespace(), Integers()
    plugin.get_launch_params([], tensors, len(INPUTS), launch, integers, expressions)
    symbol, ptx = plugin.get_kernel([t.desc for t in tensors[: len(INPUTS)]], [tensors[-1].desc])
    # TensorRT's holder of an expression cannot be read back in Python, so the numbers are asked for once more.
    _tensor.SymIntExpr._exprBuilder = expressions
    _, _, told, extra = plugin.aot_impl_function(
        *plugin.input_descs, *plugin.attrs.values(), plugin.output_descs, tactic
    )
    return {
        "outputs": [kind.name for kind in outputs],
        "combinations": [[c.type.name, c.format.name] for c in combinations],
        "symbol": symbol,
        "ptx": ptx.decode(),
        "launch": {name: expressions.value(getattr(told, name)._expr) for name in vars(launch)},
        "integers": [expressions.value(value._expr) for value in extra],
        "integers_taken": len(integers),
    }


class Integers(dict[int, Any]):
    """Where TensorRT has the extra arguments put."""

    nbSymExprs = 0  # noqa: N815 - TensorRT's name


def created(trt: ModuleType, lib: ModuleType, case: dict[str, Any]) -> Any:
    """The plugin that TensorRT makes of a node's attributes, given as its ONNX parser gives them."""
    kinds = dict.fromkeys(INTEGERS, (False, np.int32)) | {"epsilon": (False, np.float32)}
    fields = [
        trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)
        for name, value in case["attributes"].items()
    ]
    epsilon = np.array([case["epsilon"]], np.float32)
    fields.append(trt.PluginField("epsilon", epsilon, trt.PluginFieldType.FLOAT32))
    creator = lib._TemplatePluginCreator(NAME, NAMESPACE, kinds)
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    collection = trt.PluginFieldCollection(fields)
    return creator.create_plugin(NAME, NAMESPACE, collection, trt.TensorRTPhase.BUILD, request)


def described(tensor: ModuleType, shape: tuple[int, ...], dtype: Any) -> Any:
    """An input as the plugin's functions see it."""
    description = tensor.TensorDesc(tensor.ShapeExprs.from_tuple(shape), dtype)
    description._immutable = True
    return description


def profiled(trt: ModuleType, shape: tuple[int, ...], dtype: Any, case: dict[str, Any]) -> Any:
    """An input or output as the builder describes it: hidden's rows are open, within the case's bounds."""
    made = trt.DynamicPluginTensorDesc()
    made.desc.type, made.desc.format = dtype, trt.TensorFormat.LINEAR
    least, most = case["rows"] if len(shape) == 4 else (shape[0], shape[0])
    made.desc.dims = trt.Dims([-1, *shape[1:]] if len(shape) == 4 else shape)
    made.min, made.opt, made.max = (trt.Dims([rows, *shape[1:]]) for rows in (least, shape[0], most))
    return made


def main(libraries: Path, pack: Path) -> None:
    trt = tensorrt(libraries)
    import tensorrt.plugin as trtp

    request = json.load(sys.stdin)
    define_aot_plugin(trt, trtp, read_pack(pack), architecture=request["architecture"], lazy=True)
    answers = []
    for case in request["cases"]:
        try:
            answers.append(answer(trt, case))
        except KernelError as error:
            answers.append({"error": str(error)})
    registered = trtp.op.masksam.DepthConvAdapter3d
    names = [registered.input_tensor_names, list(registered.input_attrs), registered.plugin_id == PLUGIN]
    sys.stdout.write(json.dumps({"answers": answers, "registered": names}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
