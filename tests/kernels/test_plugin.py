"""The TensorRT plugin, as far as it goes without a GPU: TensorRT for RTX is here, TensorRT itself is not."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.adapter_formulations import adapter_model, random_tensors
from masksam_export.families.masksam.adapter_nodes import adapter_function
from masksam_kernels.depth_adapter import plugin
from masksam_kernels.errors import KernelError
from masksam_kernels.pack import KernelPack

NO_KERNELS = KernelPack(Path("none"), "none", ())
ATTRIBUTES = {"frames": 3, "inner": 2, "height": 4, "width": 5, "channels": 8}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    return module


@pytest.fixture(scope="module")
def creator(trt: ModuleType) -> Any:
    return plugin.creator_class(trt)(NO_KERNELS)


def fields(trt: ModuleType, values: dict[str, int], epsilon: float | None = 1e-5) -> list[Any]:
    """Alive as long as the list is: TensorRT's own collection does not own them."""
    listed = [
        trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32) for name, value in values.items()
    ]
    if epsilon is not None:
        listed.append(trt.PluginField("epsilon", np.array([epsilon], np.float32), trt.PluginFieldType.FLOAT32))
    return listed


def test_a_plugin_comes_back_from_what_an_engine_keeps_of_it(trt: ModuleType, creator: Any) -> None:
    given = fields(trt, ATTRIBUTES)
    made = creator.create_plugin("adapter", trt.PluginFieldCollection(given), trt.TensorRTPhase.BUILD)
    kept = made.get_fields_to_serialize()
    overwritten = [np.array([-1], np.int32) for _ in range(100)]  # memory that the fields must not point into
    again = creator.create_plugin("adapter", kept, trt.TensorRTPhase.RUNTIME)
    assert len(overwritten) == 100
    for found in (again, made.clone()):
        assert found.sizes == ATTRIBUTES
        assert found.epsilon == pytest.approx(1e-5)
        assert (found.plugin_name, found.plugin_namespace, found.plugin_version) == (
            "DepthConvAdapter3d",
            "masksam",
            "1",
        )


def test_a_node_without_its_attributes_is_named(trt: ModuleType, creator: Any) -> None:
    with pytest.raises(KernelError, match="lacks the attributes inner, epsilon"):
        values = {name: value for name, value in ATTRIBUTES.items() if name != "inner"}
        given = fields(trt, values, epsilon=None)
        creator.create_plugin("adapter", trt.PluginFieldCollection(given), trt.TensorRTPhase.BUILD)


def test_tensorrt_for_rtx_is_told_to_take_the_body(trt: ModuleType) -> None:
    """Its parser ends the process when it has made a plugin, so it must never see one."""
    with pytest.raises(KernelError, match="takes no plugins: build the graphs whose nodes have bodies"):
        plugin.register_plugin(trt, NO_KERNELS)


def test_adapter_nodes_with_bodies_build_for_rtx_gpus_without_a_gpu(trt: ModuleType) -> None:
    tensors = random_tensors(6, 4, 5, 16, seed=0)
    model = adapter_model(tensors, frames=3, inner=1, body=adapter_function())
    network, builder, logger = parsed(trt, model)
    config = builder.create_builder_config()
    targets = (trt.ComputeCapability.SM86, trt.ComputeCapability.SM89, trt.ComputeCapability.SM120)
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    profile = builder.create_optimization_profile()
    profile.set_shape("hidden", (3, 4, 5, 16), (6, 4, 5, 16), (12, 4, 5, 16))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, logger
    assert engine.nbytes > 0


def test_adapter_nodes_without_bodies_need_the_plugin(trt: ModuleType) -> None:
    model = adapter_model(random_tensors(6, 4, 5, 16, seed=0), frames=3, inner=1, body=None)
    with pytest.raises(ValueError, match="DepthConvAdapter3d"):
        parsed(trt, model)


def parsed(trt: ModuleType, model: onnx.ModelProto) -> tuple[Any, Any, Any]:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise ValueError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    return network, builder, logger
