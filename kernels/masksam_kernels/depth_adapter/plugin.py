"""The node `masksam::DepthConvAdapter3d` as a TensorRT plugin (IPluginV3), for TensorRT >= 10.

The plugin starts kernels of a pack through the CUDA driver on TensorRT's stream. **It has not been run yet**: TensorRT
and a GPU were not at hand. TensorRT for RTX (1.7.1) takes no plugins: its Python networks cannot hold one, and its
parser ends the process as soon as it has made one. There, the node's body is built instead.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from masksam_kernels.arguments import INPUTS
from masksam_kernels.device import LoadedMiddle
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import KernelPack

NAME = "DepthConvAdapter3d"
NAMESPACE = "masksam"
VERSION = "1"
INTEGERS = ("frames", "inner", "height", "width", "channels")


def register_plugin(trt: ModuleType, pack: KernelPack) -> None:
    """Make the node known to parsers and engines of this process; later calls replace the pack.

    Args:
        trt: the module `tensorrt`.
        pack: where the kernels come from when an engine runs.

    Raises:
        KernelError: this TensorRT takes no plugins, or not this one.
    """
    if not hasattr(trt.INetworkDefinition, "add_plugin_v3"):
        raise KernelError(
            f"{trt.__name__} {trt.__version__} takes no plugins: build the graphs whose nodes have bodies"
        )
    registry = trt.get_plugin_registry()
    known = registry.get_creator(NAME, VERSION, NAMESPACE)
    if known is not None:
        known.pack = pack
        return
    if not registry.register_creator(creator_class(trt)(pack), NAMESPACE):
        raise KernelError(f"TensorRT {trt.__version__} did not take the plugin {NAMESPACE}::{NAME}")


def creator_class(trt: ModuleType) -> Any:
    """TensorRT's classes exist only where it is installed, so ours are made from the module."""
    plugin_class = _plugin_class(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[name-defined,misc]
        """Makes plugins from a node's attributes."""

        def __init__(self, pack: KernelPack) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self.pack = pack
            self.fields = [trt.PluginField(name, b"", trt.PluginFieldType.INT32) for name in INTEGERS]
            self.fields.append(trt.PluginField("epsilon", b"", trt.PluginFieldType.FLOAT32))
            self.field_names = trt.PluginFieldCollection(self.fields)  # points into the fields, owns none

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            """One plugin per node."""
            del name, phase
            values = {field.name: field.data.reshape(-1)[0] for field in fields if len(field.data)}
            missing = [key for key in (*INTEGERS, "epsilon") if key not in values]
            if missing:
                raise KernelError(f"a {NAME} node lacks the attributes {', '.join(missing)}")
            sizes = {key: int(values[key]) for key in INTEGERS}
            return plugin_class(self, sizes, float(values["epsilon"]))

    return Creator


def _plugin_class(trt: ModuleType) -> Any:
    import numpy as np

    dtypes = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16", trt.DataType.FLOAT: "fp32"}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[name-defined,misc]
        """One adapter's middle."""

        def __init__(self, creator: Any, sizes: dict[str, int], epsilon: float) -> None:
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.num_outputs = 1
            self.plugin_name = NAME
            self.plugin_namespace = NAMESPACE
            self.plugin_version = VERSION
            self.creator = creator
            self.sizes = sizes
            self.epsilon = epsilon
            self.fields = [
                trt.PluginField(name, np.array([size], np.int32), trt.PluginFieldType.INT32)
                for name, size in sizes.items()
            ]
            self.fields.append(trt.PluginField("epsilon", np.array([epsilon], np.float32), trt.PluginFieldType.FLOAT32))
            self.loaded: dict[str, LoadedMiddle] = {}

        def get_capability_interface(self, kind: Any) -> Any:
            """Core, build and runtime are one object."""
            del kind
            return self

        def clone(self) -> Any:
            """A plugin with the same attributes; it loads kernels of its own."""
            return type(self)(self.creator, dict(self.sizes), self.epsilon)

        def get_fields_to_serialize(self) -> Any:
            """What an engine keeps of the plugin."""
            return trt.PluginFieldCollection(self.fields)  # which points into them: the plugin keeps them alive

        def get_output_data_types(self, input_types: list[Any]) -> list[Any]:
            """As hidden."""
            return [input_types[0]]

        def get_output_shapes(self, inputs: list[Any], shape_inputs: list[Any], builder: Any) -> list[Any]:
            """As hidden."""
            del shape_inputs, builder
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, position: int, tensors: list[Any], input_count: int) -> bool:
            """Linear layout, all tensors of one type that the pack has kernels for."""
            del input_count
            mine, first = tensors[position].desc, tensors[0].desc
            held = {k.dtype for k in self.creator.pack.kernels if k.channels == self.sizes["channels"] and k.activate}
            return mine.format == trt.TensorFormat.LINEAR and mine.type == first.type and dtypes.get(first.type) in held

        def configure_plugin(self, inputs: list[Any], outputs: list[Any]) -> None:
            """Nothing depends on the profile."""

        def get_valid_tactics(self) -> list[int]:
            """One: the pack's."""
            return [1]

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        def on_shape_change(self, inputs: list[Any], outputs: list[Any]) -> None:
            """Loads the kernel: here nothing is captured, and TensorRT's device is current."""
            del outputs
            dtype = dtypes[inputs[0].type]
            if dtype not in self.loaded:
                self.loaded[dtype] = LoadedMiddle(self.creator.pack, channels=self.sizes["channels"], dtype=dtype)

        def attach_to_context(self, context: Any) -> Any:
            """Every execution context has a plugin of its own."""
            del context
            return self.clone()

        def enqueue(
            self,
            input_descriptions: list[Any],
            output_descriptions: list[Any],
            inputs: list[int],
            outputs: list[int],
            workspace: int,
            stream: int,
        ) -> None:
            """Start the kernel."""
            del output_descriptions, workspace
            from cuda.core import Stream

            sizes = {key: size for key, size in self.sizes.items() if key != "channels"}
            self.loaded[dtypes[input_descriptions[0].type]](
                Stream.from_handle(stream),
                **dict(zip(INPUTS, inputs, strict=True)),
                out=outputs[0],
                rows=int(input_descriptions[0].dims[0]),
                eps=self.epsilon,
                **sizes,
            )

    return Plugin
