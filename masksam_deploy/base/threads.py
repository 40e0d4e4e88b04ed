"""Threads for array work: NumPy and BLAS let go of the interpreter's lock, so plain threads use all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Team:
    """A few threads that share out independent pieces of one job. Use it as a context manager.

    Args:
        threads: at least 1; one means that the caller does all the work.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"a team of {threads} threads cannot work, expected at least 1")
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Do `work` on every item and return when all are done.

        Pieces must write to different places: then the result does not depend on how many threads there are.
        An error is that of the earliest item that failed, and the rest is left undone.
        """
        if self._pool is None:
            for item in items:
                work(item)
            return
        for _ in self._pool.map(work, items):
            pass

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
