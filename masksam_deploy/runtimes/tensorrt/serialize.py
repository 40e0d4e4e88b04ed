"""The long step: an engine from a network, with progress, and stoppable."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock
from typing import Any, Protocol

from masksam_deploy.runtimes.builder import Progress

_INTERVAL_S = 0.2


class Monitor(Protocol):
    """A `trt.IProgressMonitor` that remembers, and can say stop."""

    def stop(self) -> None:
        """End the build at its next step."""

    def state(self) -> tuple[str, int, int]:
        """The innermost phase, how many of its steps are done, how many there are."""


def serialize(trt: Any, builder: Any, network: Any, config: Any, progress: Progress) -> Any:
    """Build and return the engine's bytes (`IHostMemory`); None if TensorRT failed.

    TensorRT works in a thread of its own, so that this one stays free for signals (which Python hands to the main
    thread only) and for `progress`. Whatever is raised here stops the build at its next step, and goes on. (The steps
    of TensorRT for RTX are coarse: all kernels are one.)
    """
    monitor = new_monitor(trt)
    config.progress_monitor = monitor
    started = time.monotonic()
    with ThreadPoolExecutor(1, "engine-build") as threads:
        building = threads.submit(builder.build_serialized_network, network, config)
        try:
            while wait([building], _INTERVAL_S).not_done:
                phase, done, total = monitor.state()
                progress(f"{phase} ({time.monotonic() - started:.0f} s)", done, total)
        except BaseException:
            monitor.stop()  # leaving the block waits for the thread
            raise
        return building.result()


def new_monitor(trt: Any) -> Monitor:
    """One for one build."""

    class Counting(trt.IProgressMonitor):  # type: ignore[misc]
        """Remembers the phases that are under way, innermost last; TensorRT calls it from any thread."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, tuple[int, int]] = {}
            self._lock = Lock()
            self._going_on = True

        def phase_start(self, phase_name: str, _: str | None, num_steps: int) -> None:
            """Called by TensorRT."""
            with self._lock:
                self._phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called by TensorRT; False makes it stop."""
            with self._lock:
                total = self._phases.get(phase_name, (0, step + 1))[1]
                self._phases[phase_name] = (step + 1, total)
            return self._going_on

        def phase_finish(self, phase_name: str) -> None:
            """Called by TensorRT."""
            with self._lock:
                self._phases.pop(phase_name, None)

        def stop(self) -> None:
            """See `Monitor`."""
            self._going_on = False

        def state(self) -> tuple[str, int, int]:
            """See `Monitor`."""
            with self._lock:
                name, (done, total) = next(reversed(self._phases.items()), ("Between phases", (0, 0)))
            return name, done, total

    monitor: Monitor = Counting()
    return monitor
