"""The GPU through NVIDIA's `cuda-core`: memory, pinned memory, streams and captured graphs.

A thin layer: all that calls the CUDA driver on behalf of the TensorRT backend is here. Written from the API of
cuda-core 1.2; **not yet run on a GPU**.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, MaskSamError
from masksam_deploy.base.memory import available_memory
from masksam_deploy.base.optional import OptionalPackage
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.cuda.plan import MAKE_ROOM
from masksam_deploy.runtimes.tensorrt.engine import is_out_of_memory

ALIGNMENT = 256
"""Of working memory for TensorRT, and the least of it that is allocated; the driver aligns its memory so."""

CUDA_CORE = OptionalPackage("cuda.core", "cuda-core", "gpu", "running TensorRT's engines")


class Gpu:
    """The first GPU that this process sees, through its primary context, as torch and CuPy use it.

    Raises:
        MissingDependencyError: cuda-core is not installed.
        BackendError: there is no driver, or no GPU.
    """

    def __init__(self) -> None:
        self._core = import_cuda_core()
        with reported("opening the GPU"):
            self._device: Any = self._core.Device(0)
            self._device.set_current()
            self.name = str(self._device.name)
            self.index = int(self._device.device_id)

    def make_current(self) -> None:
        """Use it in the calling thread from now on."""
        self._device.set_current()

    def new_stream(self) -> Any:
        """A stream (`cuda.core.Stream`) that runs beside all others."""
        return self._device.create_stream()

    def allocate(self, size: int, stream: Any) -> Any:
        """Memory on the GPU (`cuda.core.Buffer`), ready when the stream gets there."""
        return self._device.allocate(size, stream=stream)

    def allocate_pinned(self, size: int) -> Any:
        """Memory of the host that is never swapped out: copies to and from it run beside everything else."""
        return self._core.LegacyPinnedMemoryResource().allocate(size)

    def borrowed(self, address: int, size: int, owner: object) -> Any:
        """Someone else's memory as a buffer; `owner` lives as long as it."""
        return self._core.Buffer.from_handle(address, size, owner=owner)

    def free_bytes(self) -> int | None:
        """Memory that can be had now; None if nothing says.

        Where GPU and CPU share it (Jetson), CUDA counts the system's file cache as taken, so the system is asked.
        """
        if self._device.properties.integrated:
            return available_memory()
        from cuda.bindings import driver

        status, free, _total = driver.cuMemGetInfo()
        return int(free) if status == driver.CUresult.CUDA_SUCCESS else None

    def capture(self, enqueue: Callable[[int], None]) -> Any:
        """Record what `enqueue(stream handle)` starts, as a graph (`cuda.core.graph.Graph`) that is launched whole.

        Capture has a stream of its own: if it fails, no other stream is left in a bad state.

        Returns:
            The graph, or in words why it cannot be captured.
        """
        builder = self._device.create_graph_builder()
        try:
            builder.begin_building("thread_local")  # other threads may go on allocating
            enqueue(int(builder.stream.handle))
            builder.end_building()
            return builder.complete()
        except Exception as error:  # noqa: BLE001 - whatever it is, the engines run without a graph
            return one_line(str(error), limit=300)
        finally:
            with suppress(Exception):  # ends a capture that is broken, which CUDA reports once more
                builder.close()


def import_cuda_core() -> Any:
    """The module `cuda.core`.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    return CUDA_CORE.load()


class _HostMemory:
    """Lets numpy see a buffer of the host's memory, and holds it as long as an array does."""

    def __init__(self, buffer: Any, shape: tuple[int, ...]) -> None:
        self.buffer = buffer
        self.__array_interface__ = {
            "data": (int(buffer.handle), False),
            "shape": shape,
            "typestr": "<f4",
            "version": 3,
        }


def as_array(buffer: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A buffer of the host's memory as a float32 array that can be written to; it lives as long as the array."""
    return np.asarray(_HostMemory(buffer, shape))


@contextmanager
def reported(doing: str, need: object = None) -> Iterator[None]:
    """Turn whatever CUDA raises into one line.

    Args:
        doing: what is being done.
        need: how much memory all of it takes, if that is known.

    Raises:
        BackendError: in place of any error that is not one of ours.
    """
    try:
        yield
    except MaskSamError:
        raise
    except Exception as error:
        said = one_line(str(error), limit=300)
        if is_out_of_memory(said):
            total = f"; the network needs {need}" if need is not None else ""
            raise BackendError(f"the GPU's memory is used up ({doing}: {said}){total}; {MAKE_ROOM}") from error
        raise BackendError(
            f"the GPU failed ({doing}: {said}), expected a working NVIDIA driver and GPU; check them with "
            "'masksam-deploy doctor'"
        ) from error
