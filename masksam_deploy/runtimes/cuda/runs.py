"""Runs of a network on the GPU: memory allocated once, two streams, and one CUDA graph for all engines.

Knows nothing of TensorRT: what starts the engines comes in. **Not yet run on a GPU.**
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.runtimes.base import IMAGE, SCORES, Scores
from masksam_deploy.runtimes.cuda.buffers import ALIGNMENT, Gpu, as_array, reported
from masksam_deploy.runtimes.cuda.device_input import device_image
from masksam_deploy.runtimes.cuda.plan import SLOTS, BufferPlan, Need

Enqueue: TypeAlias = Callable[[Mapping[str, int], int], None]
"""Starts all engines: addresses of all tensors on the GPU, and the handle of a stream."""


@dataclass
class Run:
    """One run under way, and the memory that belongs to it: images and scores, on the host and on the GPU."""

    addresses: dict[str, int]
    pinned: dict[str, Any]
    on_gpu: dict[str, Any]
    image: NDArray[np.float32]
    scores: NDArray[np.float32]
    graph: Any = None
    computed: Any = None
    windows: int = 0
    """0 if it is not under way."""
    borrowed: list[object] = field(default_factory=list)
    """The caller's memory that is read."""


@dataclass(frozen=True)
class DeviceScores:
    """Class scores on the GPU, float32 `[B, K, T, P, P]`, for whatever reads `__cuda_array_interface__` (CuPy, torch).

    All work on them is done: there is no stream to wait for.
    """

    address: int
    shape: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"data": (self.address, False), "shape": self.shape, "typestr": "<f4", "version": 3, "stream": None}


class GpuRuns:
    """Starts runs and waits for them, at most two at a time: one is computed while the other's data are copied.

    All engines run on one stream, so that they share their tensors and their working memory; copies have another.

    Args:
        gpu: where.
        plan: the tensors.
        need: windows at once, and the working memory.

    Raises:
        BackendError: there is no room.
    """

    def __init__(self, gpu: Gpu, plan: BufferPlan, need: Need) -> None:
        self._gpu = gpu
        self._plan = plan
        self._need = need
        self._freed = ExitStack()
        self._runs: list[Run] = []
        self._streams: list[Any] = []
        self._enqueue: Enqueue | None = None
        try:
            with reported("allocating memory", need):
                self._compute, self._copies = self._new_stream(), self._new_stream()
                self.scratch = self._new_buffer(max(need.scratch, ALIGNMENT))
                resident = {name: int(self._new_buffer(self._bytes(name)).handle) for name in plan.resident}
                self._runs = [self._new_run(resident) for _ in range(SLOTS)]
                self._compute.sync()  # what was allocated in its order is ready for the other stream as well
        except BaseException:
            self.close()
            raise

    def start_with(self, enqueue: Enqueue) -> None:
        """Say what runs, and run it once with every memory: that compiles and allocates what is left.

        Raises:
            BackendError: it does not run.
        """
        self._enqueue = enqueue
        for _ in range(SLOTS):
            self.result(self.submit(self._noise(0)))

    def capture(self) -> str | None:
        """Try to launch each run as one CUDA graph from now on, which has to give the same scores to the bit.

        Returns:
            None if so; else why not, and the engines are started one after the other as before.
        """
        image, other = self._noise(0), self._noise(1)
        plain = [self.result(self.submit(image)).copy() for _ in range(SLOTS)]
        for _ in range(SLOTS):  # nothing of those runs may be left: a graph that does less would pass
            self.result(self.submit(other))
        reason = self._captured()
        again = [self.result(self.submit(image)) for _ in range(SLOTS)]
        if all(np.array_equal(*pair, equal_nan=True) for pair in zip(plain, again, strict=True)):
            return reason
        for run in self._runs:
            run.graph = None
        return "it gave other scores than the engines one after the other"

    def submit(self, image: object) -> Run:
        """Start a run and return at once.

        Args:
            image: float32 `[B, C, T, P, P]`: a numpy array, or a tensor on the GPU (see `device_image`).

        Raises:
            BackendError: the image does not fit, two runs are under way, or the GPU refuses.
        """
        run = self._next_run()
        with reported("starting a run", self._need):
            self._gpu.make_current()
            windows = self._upload(run, image) if isinstance(image, np.ndarray) else self._borrow(run, image)
            self._compute.wait(self._copies)
            if run.graph is not None:
                run.graph.launch(self._compute)
            else:
                self._start(run, int(self._compute.handle))
            run.computed = self._compute.record(run.computed)
            run.windows = windows
        return run

    def result(self, run: Run) -> Scores:
        """Wait for a run. The scores' memory is used again by the next run but one.

        Raises:
            BackendError: the run failed on the GPU.
        """
        windows = self._finishing(run)
        with reported("running the network", self._need):
            self._gpu.make_current()
            self._copies.wait(run.computed)
            run.pinned[SCORES].copy_from(run.on_gpu[SCORES], stream=self._copies)
            self._copies.sync()
        run.borrowed.clear()
        return run.scores[:windows]

    def result_on_gpu(self, run: Run) -> DeviceScores:
        """Wait for a run and leave its scores where they are. Their memory is used again by the next run but one.

        Raises:
            BackendError: the run failed on the GPU.
        """
        windows = self._finishing(run)
        with reported("running the network", self._need):
            self._gpu.make_current()
            run.computed.sync()
        run.borrowed.clear()
        return DeviceScores(int(run.on_gpu[SCORES].handle), (windows, *self._plan.shapes[SCORES]))

    def close(self) -> None:
        """Wait for what is under way and free all memory."""
        self._runs = []
        _quietly(self._gpu.make_current)
        for stream in self._streams:
            _quietly(stream.sync)
        self._streams = []
        self._freed.close()

    @staticmethod
    def _finishing(run: Run) -> int:
        """How many windows a run has; from now on it is not under way."""
        if not run.windows:
            raise BackendError("found no run under way, expected one to wait for; call submit first")
        windows, run.windows = run.windows, 0
        return windows

    def _next_run(self) -> Run:
        if not self._runs:
            raise BackendError("the network is closed; make a new Segmenter")
        # In turn, so that scores stay valid while the next run is under way.
        run = self._runs[0]
        if run.windows:
            raise BackendError(f"found {SLOTS} runs under way, expected fewer; take the oldest result first")
        self._runs.append(self._runs.pop(0))
        return run

    def _start(self, run: Run, stream: int) -> None:
        assert self._enqueue is not None  # `start_with` comes first
        self._enqueue(run.addresses, stream)

    def _upload(self, run: Run, image: NDArray[Any]) -> int:
        """Copy an image from the host; what is left of the batch is zeros. Returns how many windows it has."""
        windows = self._checked(image.shape)
        run.image[:windows] = image
        run.image[windows:] = 0
        run.on_gpu[IMAGE].copy_from(run.pinned[IMAGE], stream=self._copies)
        return windows

    def _borrow(self, run: Run, image: object) -> int:
        """The same from the GPU's own memory."""
        found = device_image(image, self._plan.shapes[IMAGE], self._gpu.index, int(self._copies.handle))
        windows = self._checked((found.windows, *self._plan.shapes[IMAGE]))
        target = run.on_gpu[IMAGE]
        if windows < self._need.batch:
            target.fill(0, stream=self._copies)
        part = self._gpu.borrowed(int(target.handle), found.bytes, target)
        part.copy_from(self._gpu.borrowed(found.address, found.bytes, found.owner), stream=self._copies)
        run.borrowed = [found.owner]
        return windows

    def _checked(self, shape: tuple[int, ...]) -> int:
        expected, batch = self._plan.shapes[IMAGE], self._need.batch
        if shape[1:] != expected or not 1 <= shape[0] <= batch:
            raise BackendError(
                f"found an image of shape {shape}, expected 1 to {batch} windows of {expected}; cut it accordingly"
            )
        return shape[0]

    def _captured(self) -> str | None:
        """Capture every run; if one cannot be, none is kept, and the reason is returned."""
        graphs = []
        for run in self._runs:
            graph = self._gpu.capture(partial(self._start, run))
            if isinstance(graph, str):
                return graph
            self._freed.callback(_quietly, graph.close)
            graphs.append(graph)
        for run, graph in zip(self._runs, graphs, strict=True):
            run.graph = graph
        return None

    def _noise(self, seed: int) -> NDArray[np.float32]:
        shape = (self._need.batch, *self._plan.shapes[IMAGE])
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def _bytes(self, name: str) -> int:
        return self._need.batch * self._plan.window_bytes[name]

    def _new_stream(self) -> Any:
        stream = self._gpu.new_stream()
        self._streams.append(stream)
        self._freed.callback(_quietly, stream.close)
        return stream

    def _new_buffer(self, size: int) -> Any:
        buffer = self._gpu.allocate(size, self._compute)
        self._freed.callback(_quietly, buffer.close)
        return buffer

    def _new_run(self, resident: Mapping[str, int]) -> Run:
        on_gpu = {name: self._new_buffer(self._bytes(name)) for name in self._plan.staged}
        pinned = {name: self._gpu.allocate_pinned(self._bytes(name)) for name in self._plan.staged}
        image, scores = (as_array(pinned[name], (self._need.batch, *self._plan.shapes[name])) for name in pinned)
        addresses = dict(resident) | {name: int(buffer.handle) for name, buffer in on_gpu.items()}
        return Run(addresses, pinned, on_gpu, image, scores)


def _quietly(free: Callable[[], object]) -> None:
    """Wait for or free something; after an error on the GPU that fails as well, and says nothing new."""
    with suppress(Exception):
        free()
