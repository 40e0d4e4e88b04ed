"""Engines of TensorRT and TensorRT for RTX as one network on the GPU.

Images go up, class scores come down, each through pinned memory; all that passes between the engines stays on the GPU.
A whole run of all engines is captured as one CUDA graph where the driver takes it, else they are started one after the
other: `providers` says which. What plans and checks is tested everywhere; the rest is **not yet run on a GPU**.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from masksam_deploy.base.errors import BackendError
from masksam_deploy.bundle.manifest import Graph
from masksam_deploy.runtimes.base import Device, Image, Scores, precision_in_words
from masksam_deploy.runtimes.cuda.buffers import Gpu, reported
from masksam_deploy.runtimes.cuda.plan import SLOTS, GpuOptions, Need, choose_batch, plan_buffers, require_free
from masksam_deploy.runtimes.cuda.runs import DeviceScores, GpuRuns, Run
from masksam_deploy.runtimes.tensorrt import rtx_contexts as rtx
from masksam_deploy.runtimes.tensorrt.engine import LoadedEngine, new_context, new_runtime
from masksam_deploy.runtimes.tensorrt.log import open_log

_Taken = TypeVar("_Taken")


@dataclass(frozen=True)
class EngineFiles:
    """A stored engine whose files were compared with their hashes.

    Attributes:
        runtime: its name and version, for people.
        paths: graph name -> file.
        hashes: graph name -> SHA-256 of the file.
        precisions: graph name -> such as fp16.
        name: of the engine.
        rebuild: the command that builds it again.
        host_code: whether it carries a TensorRT of its own that has to be run (built with --version-compatible).
        kernels: where TensorRT for RTX keeps what it compiles; None to keep nothing.
    """

    runtime: str
    paths: Mapping[str, Path]
    hashes: Mapping[str, str]
    precisions: Mapping[str, str]
    name: str
    rebuild: str
    host_code: bool = False
    kernels: Path | None = None


class TensorRTChain:
    """See `Network`. Call it from one thread at a time.

    Args:
        trt: `tensorrt` or `tensorrt_rtx_bindings`.
        graphs: of the bundle, in order.
        files: one engine per graph.
        options: how they run.

    Raises:
        MissingDependencyError: cuda-core is not installed.
        MemoryLimitError: it needs more than the options allow.
        BackendError: no GPU, or one without room; an engine does not load, is of another graph, or does not run.
    """

    device: Device = "cuda"

    def __init__(
        self,
        trt: Any,
        graphs: Sequence[Graph],
        files: EngineFiles,
        options: GpuOptions | None = None,
    ) -> None:
        options = options or GpuOptions()
        self.engine: str | None = files.name
        self.precisions = dict(files.precisions)
        self._runtime = files.runtime
        self._max_vram = options.max_vram
        self._plan = plan_buffers(graphs)
        self._gpu = Gpu()
        self._engines: list[LoadedEngine] = []
        self._caches: dict[str, rtx.KernelCache] = {}
        self._runs: GpuRuns | None = None
        try:
            with reported("loading engines"):
                self._load(trt, graphs, files)
                self.need = self._fit(files.name, options)
            self.batch = self.need.batch
            self._runs = GpuRuns(self._gpu, self._plan, self.need)
            self.without_graph = self._warm_up(self._runs, options.cuda_graph)
        except BaseException:
            self.close()
            raise

    @property
    def precision(self) -> str:
        """See `Network`."""
        return precision_in_words(self.precisions)

    @property
    def providers(self) -> dict[str, str]:
        """What runs each graph, and how: as one CUDA graph or, for a reason, one after the other."""
        how = "one CUDA graph" if self.without_graph is None else f"no CUDA graph: {self.without_graph}"
        return {loaded.graph.name: f"{self._runtime} on {self._gpu.name}, {how}" for loaded in self._engines}

    def __call__(self, image: Image | object) -> Scores:
        """See `Network`; the scores are valid until the next call but one.

        Args:
            image: float32 `[B, C, T, P, P]`, B up to `batch`: a numpy array, or a tensor on the GPU (`device_image`).
        """
        return self.result(self.submit(image))

    def predict_all(self, images: Iterator[Image]) -> Iterator[Scores]:
        """See `Network`: while one image is computed, the next goes up and the scores before come down."""
        return self._ahead(images, self.result)

    def predict_on_gpu(self, images: Iterator[Image]) -> Iterator[DeviceScores]:
        """See `ScoresOnGpu`: while one image is computed, the next goes up."""
        return self._ahead(images, lambda run: self._open_runs().result_on_gpu(run))

    def spare_vram(self) -> int | None:
        """See `ScoresOnGpu`."""
        free = self._gpu.free_bytes()
        if self._max_vram is None:
            return free
        allowed = max(0, self._max_vram - self.need.total)
        return allowed if free is None else min(free, allowed)

    def _ahead(self, images: Iterator[Image], take: Callable[[Run], _Taken]) -> Iterator[_Taken]:
        waiting: deque[Run] = deque()
        try:
            for image in images:
                if len(waiting) == SLOTS:
                    yield take(waiting.popleft())
                waiting.append(self.submit(image))
            while waiting:
                yield take(waiting.popleft())
        finally:
            for run in waiting:  # the caller stopped early, or a run failed
                with suppress(BackendError):
                    self.result(run)

    def submit(self, image: Image | object) -> Run:
        """Start a run; see `GpuRuns.submit`."""
        return self._open_runs().submit(image)

    def result(self, run: Run) -> Scores:
        """Wait for a run; see `GpuRuns.result`."""
        return self._open_runs().result(run)

    def close(self) -> None:
        """See `Network`."""
        if self._runs is not None:
            self._runs.close()
        self._runs = None
        for loaded in self._engines:
            loaded.close()
        self._caches = {}

    def _open_runs(self) -> GpuRuns:
        if self._runs is None:
            raise BackendError("the network is closed; make a new Segmenter")
        return self._runs

    def _load(self, trt: Any, graphs: Sequence[Graph], files: EngineFiles) -> None:
        self._weights = sum(path.stat().st_size for path in files.paths.values())
        require_free(self._weights, self._gpu.free_bytes(), f"loading engine '{files.name}'")
        log = open_log(trt)
        runtime = new_runtime(trt, log, host_code=files.host_code)
        self._caches = _caches(trt, files)
        for graph in graphs:
            loaded = LoadedEngine(
                trt,
                runtime,
                log,
                graph,
                files.paths[graph.name],
                rebuild=files.rebuild,
                new_context=partial(_new_context, trt, cache=self._caches.get(graph.name)),
            )
            self._engines.append(loaded)

    def _fit(self, name: str, options: GpuOptions) -> Need:
        """Settle how many windows run at once."""
        least = max(loaded.windows.least for loaded in self._engines)
        most = min(loaded.windows.most for loaded in self._engines)
        wanted = options.batch or min(loaded.windows.best for loaded in self._engines)
        if not least <= wanted <= most:
            raise BackendError(
                f"found a batch of {wanted} windows, expected {least} to {most}, as the engines were built; build them "
                "with other --batches, or ask for another batch"
            )
        need = choose_batch(least, wanted, self._need_of, options.max_vram)
        rest = need.scratch + need.tensors
        require_free(rest, self._gpu.free_bytes(), f"running engine '{name}' with {need.batch} window(s) at once")
        return need

    def _need_of(self, batch: int) -> Need:
        scratch = max(loaded.set_windows(batch) for loaded in self._engines)
        return Need(batch, self._weights, scratch, self._plan.device_bytes(batch))

    def _warm_up(self, runs: GpuRuns, cuda_graph: bool) -> str | None:
        """Run once, keep what was compiled, capture; returns why there is no CUDA graph."""
        for loaded in self._engines:
            loaded.set_memory(int(runs.scratch.handle), int(runs.scratch.size))
        runs.start_with(self._enqueue)
        with reported("keeping what was compiled"):
            for cache in self._caches.values():
                cache.save()
        return runs.capture() if cuda_graph else "switched off"

    def _enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        for loaded in self._engines:
            loaded.enqueue(addresses, stream)


def _is_rtx(trt: Any) -> bool:
    return hasattr(trt, "DynamicShapesKernelSpecializationStrategy")


def _caches(trt: Any, files: EngineFiles) -> dict[str, rtx.KernelCache]:
    if files.kernels is None or not _is_rtx(trt):
        return {}
    return {name: rtx.KernelCache(files.kernels / f"{name}.kernels", files.hashes[name]) for name in files.paths}


def _new_context(trt: Any, engine: Any, *, cache: rtx.KernelCache | None) -> tuple[Any, object]:
    return rtx.new_context(trt, engine, cache) if _is_rtx(trt) else (new_context(trt, engine), None)
