"""Builders of engines: one file per runtime, behind the `Builder` protocol."""

from __future__ import annotations

from masksam_deploy.base.errors import EngineError
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.builder import Builder, BuildOptions, BuiltEngine
from masksam_deploy.runtimes.spec import TARGETS, Precision, Target

__all__ = ["BuildOptions", "Builder", "BuiltEngine", "Precision", "Target", "open_builder"]


def open_builder(target: Target, *, device: Device = "cpu") -> Builder:
    """The builder of a target; imports no runtime yet. `device` is for ONNX Runtime alone: the others mean a GPU.

    Raises:
        EngineError: there is no such target.
    """
    if target == "onnxruntime":
        from masksam_deploy.runtimes.onnxruntime.builder import OnnxRuntimeBuilder

        return OnnxRuntimeBuilder(device)
    if target == "tensorrt":
        from masksam_deploy.runtimes.tensorrt.builder import TensorRTBuilder

        return TensorRTBuilder()
    if target == "rtx":
        from masksam_deploy.runtimes.tensorrt.rtx_builder import RtxBuilder

        return RtxBuilder()
    raise EngineError(f"target '{target}' is unknown; expected {', '.join(TARGETS)}")
