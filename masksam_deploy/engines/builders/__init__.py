"""Builders of engines: one file per runtime, behind the `Builder` protocol."""

from __future__ import annotations

from masksam_deploy.backends.base import Device
from masksam_deploy.engines.builders.base import Builder, BuildOptions, BuiltEngine
from masksam_deploy.engines.spec import TARGETS, Precision, Target
from masksam_deploy.errors import EngineError

__all__ = ["BuildOptions", "Builder", "BuiltEngine", "Precision", "Target", "open_builder"]


def open_builder(target: Target, *, device: Device = "cpu") -> Builder:
    """The builder of a target; imports no runtime yet. `device` is for ONNX Runtime alone: the others mean a GPU.

    Raises:
        EngineError: there is no such target.
    """
    if target == "onnxruntime":
        from masksam_deploy.engines.builders.onnxruntime import OnnxRuntimeBuilder

        return OnnxRuntimeBuilder(device)
    if target == "tensorrt":
        from masksam_deploy.engines.builders.tensorrt import TensorRTBuilder

        return TensorRTBuilder()
    if target == "rtx":
        from masksam_deploy.engines.builders.rtx import RtxBuilder

        return RtxBuilder()
    raise EngineError(f"target '{target}' is unknown; expected {', '.join(TARGETS)}")
