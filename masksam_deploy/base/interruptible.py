"""Calls into native code that signals and time limits can end.

Python handles a signal between two steps of its own, so a call that stays in native code for minutes makes the process
deaf. Here such calls run in a thread beside, while the caller waits where it hears. One thread is kept for each thread
that calls, so that a call costs tens of microseconds more and calls of different threads do not wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

GRACE = 0.5
"""Seconds that a call gets to end once it was told to stop, before its thread is left to itself."""
_LONGEST_WAIT = 0.5
"""Seconds. Where a wait cannot be interrupted (Windows), signals are heard this often."""

_Call = tuple[Callable[[], Any], "Future[Any]"]
_running: set[Future[Any]] = set()
_own = threading.local()


class TimeLimitError(Exception):
    """A call took longer than it may."""


def interruptible(work: Callable[[], T], stop: Callable[[], None] = lambda: None, seconds: float | None = None) -> T:
    """Do `work` in another thread; a signal's handler that raises, and the time limit, end the waiting for it.

    Args:
        work: a call that lets go of the interpreter's lock.
        stop: called when nobody waits for the work any longer, so that it ends early. Without it, or where it takes
            longer than `GRACE`, the work goes on in its thread, which keeps no process from ending.
        seconds: how long it may take; None for as long as it wants.

    Raises:
        TimeLimitError: it took longer.
        BaseException: whatever `work`, or a signal's handler, raises.
    """
    future: Future[T] = Future()
    try:
        _worker().do(work, future)
        return _waited(future, seconds)
    except BaseException:
        if future in _running:
            stop()
            # What the work says now is of no interest; a second interrupt ends this waiting, too.
            with suppress(Exception):
                future.exception(GRACE)
        raise


def still_running() -> bool:
    """Whether a call goes on that was interrupted: then only `os._exit` ends the process safely.

    Python tears itself down under running threads, and native code that comes back to it aborts the process.
    """
    return bool(_running)


def _waited(future: Future[T], seconds: float | None) -> T:
    """The result, as soon as it is there."""
    deadline = None if seconds is None else monotonic() + seconds
    while not future.done():
        left = _LONGEST_WAIT if deadline is None else min(_LONGEST_WAIT, deadline - monotonic())
        if left <= 0:
            raise TimeLimitError
        with suppress(NotYet):
            future.exception(left)
    return future.result()


class _Worker:
    """One thread that makes calls one after the other, as long as this object lives."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name="interruptible", daemon=True)
        self._thread.start()

    def is_free(self) -> bool:
        """Whether it waits for a call: it may be held up by an interrupted one, or have stayed behind at a fork."""
        return self._thread.is_alive() and (self._last is None or self._last.done())

    def do(self, work: Callable[[], T], future: Future[T]) -> None:
        self._last = future
        _running.add(future)
        self._calls.put((work, future))

    def __del__(self) -> None:
        self._calls.put(None)


def _worker() -> _Worker:
    """The calling thread's own."""
    worker: _Worker | None = getattr(_own, "worker", None)
    if worker is None or not worker.is_free():
        worker = _own.worker = _Worker()
    return worker


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        _answer(*call)
        del call  # and what it holds, such as a network's inputs


def _answer(work: Callable[[], T], future: Future[T]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  raised where it is waited for
        _running.discard(future)
        future.set_exception(error)
    else:
        _running.discard(future)
        future.set_result(result)
