"""The node `masksam::DepthConvAdapter3d` as an ahead-of-time TensorRT plugin: the engine holds the kernel itself.

TensorRT takes the PTX while it builds and starts it alone afterwards, so such an engine needs neither Python nor this
package. It needs TensorRT >= 10.9 and networks made with `PREFER_AOT_PYTHON_PLUGINS`. NVIDIA calls `tensorrt.plugin`
experimental; its Python side is what the tests run. **No engine has been built yet**: TensorRT's libraries and a GPU
were not at hand.

Against `plugin.py`, the same node as IPluginV3: that one needs Python wherever the engine runs, but checks every
launch. One process registers one of them.
"""

from __future__ import annotations

from inspect import Parameter, Signature
from types import GenericAlias, ModuleType
from typing import Any

import numpy as np

from masksam_kernels.arguments import INPUTS, float32_bits
from masksam_kernels.depth_adapter.plugin import INTEGERS, NAME, NAMESPACE, VERSION
from masksam_kernels.device import check_sizes
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import KernelPack
from masksam_kernels.ptx import without_scratch

PLUGIN = f"{NAMESPACE}::{NAME}"
TACTICS = [1]
TYPE_NAMES = {"fp16": "FP16", "bf16": "BF16", "fp32": "FP32"}
# Arrays of one value, as parsers give them: TensorRT's own conversion to int and float fails since NumPy 2.4.
ATTRIBUTES: dict[str, Any] = {
    **dict.fromkeys(INTEGERS, np.ndarray[Any, np.dtype[np.int32]]),
    "epsilon": np.ndarray[Any, np.dtype[np.float32]],
}


def register_aot_plugin(trt: ModuleType, pack: KernelPack, *, architecture: int) -> None:
    """Make the node known to the parsers and builders of this process.

    Args:
        trt: the module `tensorrt`; `tensorrt.plugin` is imported.
        pack: where the PTX comes from.
        architecture: of the GPU that the engine is built for, such as 87 for sm_87.

    Raises:
        KernelError: this TensorRT is too old, or the node has a plugin in this process already.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        raise KernelError(f"{trt.__name__} {trt.__version__} takes no ahead-of-time plugins, TensorRT >= 10.9 does")
    if trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is not None:
        raise KernelError(f"this process has a plugin for {PLUGIN} already: register one, in a process of its own")
    import tensorrt.plugin as trtp

    define_aot_plugin(trt, trtp, pack, architecture=architecture)


def define_aot_plugin(
    trt: ModuleType, trtp: ModuleType, pack: KernelPack, *, architecture: int, lazy: bool = False
) -> None:
    """Hand the three functions of the plugin to `tensorrt.plugin`, which checks their signatures.

    Args:
        trt: the module `tensorrt`.
        trtp: the module `tensorrt.plugin`.
        pack: where the PTX comes from.
        architecture: as 87 for sm_87.
        lazy: leave TensorRT's registry alone until a network takes the plugin.
    """
    described = [(name, trtp.TensorDesc) for name in INPUTS] + list(ATTRIBUTES.items())
    outputs = ("outputs", GenericAlias(tuple, (trtp.TensorDesc,)))
    dtypes = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16", trt.DataType.FLOAT: "fp32"}

    def describe(hidden: Any, *weights: Any, **attributes: Any) -> Any:
        del weights, attributes
        return hidden.like()

    def choose(*arguments: Any) -> Any:
        sizes, _ = attributes_of(arguments)
        held = held_dtypes(pack, architecture, sizes["channels"])
        types = "|".join(TYPE_NAMES[dtype] for dtype in held)
        return [trtp.AutoTuneCombination(", ".join([types] * (len(INPUTS) + 1)), "LINEAR", TACTICS)]

    def implement(*arguments: Any) -> Any:
        sizes, epsilon = attributes_of(arguments)
        hidden = arguments[0]
        _check_shapes(hidden.shape, sizes)
        kernel = pack.find(architecture, sizes["channels"], dtypes[hidden.dtype])
        launch = trtp.KernelLaunchParams()
        blocks = -(-sizes["height"] * sizes["width"] // kernel.pixels)
        launch.grid_x = hidden.shape_expr[0] // sizes["frames"] * blocks
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        integers = [sizes[name] for name in ("frames", "inner", "height", "width")] + [float32_bits(epsilon)]
        extra = trtp.SymIntExprs.from_tuple(tuple(trtp.SymInt32(value) for value in integers))
        return kernel.symbol, without_scratch(pack.ptx(kernel), kernel.name), launch, extra

    sign(describe, described, trtp.TensorDesc)
    sign(choose, [*described, outputs], GenericAlias(list, (trtp.AutoTuneCombination,)))
    returned = GenericAlias(tuple, (str, str, trtp.KernelLaunchParams, trtp.SymIntExprs))
    sign(implement, [*described, outputs, ("tactic", int)], returned)
    trtp.register(PLUGIN, lazy_register=lazy)(describe)
    trtp.autotune(PLUGIN)(choose)
    trtp.aot_impl(PLUGIN)(implement)


def sign(function: Any, parameters: list[tuple[str, Any]], returned: Any) -> None:
    """Gives a function the signature that TensorRT reads; its types exist only where TensorRT is."""
    listed = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in parameters]
    function.__signature__ = Signature(listed, return_annotation=returned)


def attributes_of(arguments: tuple[Any, ...]) -> tuple[dict[str, int], float]:
    """The node's integers and its epsilon, out of what TensorRT passes: inputs, attributes, and more."""
    values = arguments[len(INPUTS) : len(INPUTS) + len(ATTRIBUTES)]
    named = {name: value.reshape(-1)[0] for name, value in zip(ATTRIBUTES, values, strict=True)}
    return {name: int(named[name]) for name in INTEGERS}, float(named["epsilon"])


def held_dtypes(pack: KernelPack, architecture: int, channels: int) -> list[str]:
    """Tensor types for which the pack has the kernel.

    Raises:
        KernelError: it has none.
    """
    held = [
        kernel.dtype
        for kernel in pack.kernels
        if (kernel.architecture, kernel.channels, kernel.activate) == (architecture, channels, True)
    ]
    return held or [pack.find(architecture, channels, "fp16").dtype]  # which raises, and says what there is


def _check_shapes(shape: Any, sizes: dict[str, int]) -> None:
    """Whether the profile's smallest, usual and largest tensors are what the node's attributes say.

    Raises:
        KernelError: they are not, or the kernel cannot take them.
    """
    for rows, *image in (shape.min, shape.opt, shape.max) if shape.is_dynamic else (tuple(shape),):
        expected = [sizes["height"], sizes["width"], sizes["channels"]]
        if image != expected:
            raise KernelError(f"a {NAME} node is for images of {expected}, its profile has {image}")
        check_sizes(rows, sizes["frames"], sizes["inner"], *image)
