"""What an engine is asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.runtimes.base import Device

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
Target: TypeAlias = Literal["onnxruntime", "tensorrt", "rtx"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt", "rtx")


@dataclass(frozen=True)
class EngineSpec:
    """Where engines will run, and in which precision each graph.

    Attributes:
        target: the runtime.
        precisions: graph name -> precision, for every graph of the bundle.
        device: for ONNX Runtime; the others run on a GPU.
    """

    target: Target
    precisions: Mapping[str, Precision]
    device: Device = "cpu"

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        target: Target,
        precision: Precision,
        overrides: Mapping[str, Precision] | None = None,
        *,
        device: Device = "cpu",
    ) -> EngineSpec:
        """One precision for all graphs, but for those named.

        Raises:
            EngineError: a graph is named that the bundle does not have.
        """
        names = [graph.name for graph in bundle.manifest.graphs]
        unknown = sorted(set(overrides or {}) - set(names))
        if unknown:
            raise EngineError(f"found graph {shown(unknown[0])}, expected one of {', '.join(names)}")
        return cls(target, {name: (overrides or {}).get(name, precision) for name in names}, device)

    @property
    def is_the_bundle_itself(self) -> bool:
        """Whether nothing would change: ONNX Runtime runs the bundle's float32 graphs as they are."""
        return self.target == "onnxruntime" and set(self.precisions.values()) == {"fp32"}

    @property
    def on_gpu(self) -> bool:
        """Whether the engine computes in half precision what is half precision; ONNX Runtime on a CPU does not."""
        return self.target != "onnxruntime" or self.device != "cpu"

    @property
    def rest(self) -> Precision:
        """What an int8 graph computes in where it is not int8: a CPU gains nothing from fp16."""
        return "fp16" if self.on_gpu else "fp32"

    def fallback(self, precision: Precision) -> Precision | None:
        """The next larger precision; None if there is none."""
        if precision == "int8" and self.rest != "fp32":
            return self.rest
        return None if precision == "fp32" else "fp32"


def label(precisions: Mapping[str, Precision]) -> str:
    """One word if all graphs share a precision, else `mixed`."""
    different = set(precisions.values())
    return next(iter(different)) if len(different) == 1 else "mixed"
