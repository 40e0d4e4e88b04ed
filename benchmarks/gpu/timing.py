"""Times of calls on a GPU: single calls between events, or many calls in one CUDA graph."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.place import on_gpu

CALLS_IN_A_GRAPH = 8


def wait() -> None:
    """Until the GPU has done all that was asked of it."""
    if on_gpu():
        torch.cuda.synchronize()


def free() -> None:
    """Give unused memory back and forget its peak."""
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected, in float64."""
    expected = expected.double()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def median_ms(run: Callable[[], object], repeats: int = 20, warm: int = 3) -> dict[str, float]:
    """Time single calls.

    Args:
        run: what is timed.
        repeats: how many calls are timed.
        warm: how many calls come before on a GPU.

    Returns:
        The median, the fastest and the slowest call in milliseconds.
    """
    for _ in range(warm if on_gpu() else 0):
        run()
    wait()
    times = [_one_ms(run) for _ in range(repeats)]
    found = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
    return {name: round(ms, 4) for name, ms in found.items()}


def _one_ms(run: Callable[[], object]) -> float:
    if not on_gpu():
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def graphed(run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
    """Capture a function as one CUDA graph.

    Returns:
        What replays it, and its static output; on a CPU, the function itself and its output.
    """
    if not on_gpu():
        return run, run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    torch.cuda.synchronize()
    return graph.replay, output


def per_call_us(run: Callable[[Tensor], object], buffers: Sequence[Tensor], rounds: int = 7) -> float:
    """Time a call without launch gaps.

    Args:
        run: what is timed, called on each buffer in turn.
        buffers: where they exceed the cache together, every call finds it cold.
        rounds: how often the graph of all calls is timed.

    Returns:
        Microseconds of one call, the median over the rounds.
    """
    calls = max(len(buffers), CALLS_IN_A_GRAPH if on_gpu() else 1)

    def all_calls() -> None:
        for index in range(calls):
            run(buffers[index % len(buffers)])

    replay, _ = graphed(all_calls)
    return round(1000 * median_ms(replay, rounds if on_gpu() else 1, warm=2)["median_ms"] / calls, 3)
