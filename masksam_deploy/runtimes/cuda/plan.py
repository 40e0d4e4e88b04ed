"""What a chain of engines needs on the GPU: tensors, memory, and how many windows fit. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from masksam_deploy.base.errors import BackendError, MemoryLimitError
from masksam_deploy.base.memory import size_text
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes.base import IMAGE, SCORES

SLOTS = 2
"""Windows under way at once: one is computed while another one's image goes up, or its scores come down."""
_ITEM_BYTES = {"float32": 4, "float16": 2}


@dataclass(frozen=True)
class GpuOptions:
    """How a network runs on the GPU.

    Attributes:
        batch: windows at once; None for what the engines were tuned for (`--batches`).
        max_vram: bytes of GPU memory that the network may take; fewer windows run at once to keep to it.
        cuda_graph: whether to try to capture all engines as one CUDA graph.
        keep_kernels: whether what TensorRT for RTX compiles is kept beside the engine.
    """

    batch: int | None = None
    max_vram: int | None = None
    cuda_graph: bool = True
    keep_kernels: bool = True


@dataclass(frozen=True)
class BufferPlan:
    """The tensors between and around the graphs, each one once: ports of the same name are one tensor.

    Attributes:
        shapes: tensor -> its shape without the first dimension, the number of windows.
        window_bytes: tensor -> bytes of one window.
    """

    shapes: dict[str, tuple[int, ...]]
    window_bytes: dict[str, int]

    @property
    def staged(self) -> tuple[str, ...]:
        """What crosses between host and GPU, and so exists once a slot."""
        return (IMAGE, SCORES)

    @property
    def resident(self) -> tuple[str, ...]:
        """What never leaves the GPU, and exists once."""
        return tuple(name for name in self.shapes if name not in self.staged)

    def device_bytes(self, batch: int) -> int:
        """Bytes of all tensors on the GPU."""
        once = sum(self.window_bytes[name] for name in self.resident)
        return batch * (once + SLOTS * sum(self.window_bytes[name] for name in self.staged))


@dataclass(frozen=True)
class Need:
    """GPU memory of a network, in bytes. CUDA's own context (some hundred MiB) and code come on top.

    Attributes:
        batch: windows at once.
        weights: of all engines: the sizes of their files.
        scratch: what TensorRT works in; the engines run one after another, and share it.
        tensors: images, scores and all that passes from graph to graph.
    """

    batch: int
    weights: int
    scratch: int
    tensors: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.scratch + self.tensors

    def __str__(self) -> str:
        return (
            f"{size_text(self.total)} of GPU memory with {self.batch} window(s) at once (weights "
            f"{size_text(self.weights)}, working memory {size_text(self.scratch)}, tensors {size_text(self.tensors)})"
        )


def plan_buffers(graphs: Sequence[Graph]) -> BufferPlan:
    """Which tensors a chain of graphs (of a checked manifest) has.

    Raises:
        BackendError: a tensor has a type that engines do not exchange.
    """
    ports = {port.name: port for graph in graphs for port in (*graph.inputs, *graph.outputs)}
    for port in ports.values():
        if port.dtype not in _ITEM_BYTES:
            raise BackendError(
                f"tensor '{port.name}': found type {port.dtype}, expected {' or '.join(_ITEM_BYTES)}; run this bundle "
                "with --backend onnxruntime"
            )
    shapes = {name: _window_shape(port) for name, port in ports.items()}
    return BufferPlan(shapes, {name: prod(shape) * _ITEM_BYTES[ports[name].dtype] for name, shape in shapes.items()})


def choose_batch(least: int, wanted: int, need: Callable[[int], Need], limit: int | None) -> Need:
    """The most windows at once, up to `wanted`, that stay within the limit.

    Args:
        least: fewest windows that the engines take.
        wanted: most windows to try.
        need: of a number of windows.
        limit: bytes; None for no limit.

    Raises:
        MemoryLimitError: not even `least` do; says what is needed.
    """
    for batch in range(wanted, least - 1, -1):
        found = need(batch)
        if limit is None or found.total <= limit:
            return found
    raise MemoryLimitError(
        f"this engine needs {found}, allowed are {size_text(limit or 0)}; raise --max-vram, or build an engine in a "
        "smaller precision or for fewer windows (--batches)"
    )


def require_free(needed: int, free: int | None, what: str) -> None:
    """Refuse what the GPU has no room for now, before anything is allocated.

    Args:
        needed: bytes.
        free: bytes, as the driver or the system says; None if neither does.
        what: is needed.

    Raises:
        BackendError: says both figures.
    """
    if free is not None and needed > free:
        raise BackendError(f"{what} needs {size_text(needed)} of GPU memory, free are {size_text(free)}; {MAKE_ROOM}")


MAKE_ROOM = "end other programs that use this GPU, or allow fewer windows at once with --max-vram"


def _window_shape(port: Port) -> tuple[int, ...]:
    return tuple(int(size) for size in port.shape[1:])
