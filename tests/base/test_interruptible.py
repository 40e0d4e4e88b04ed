"""Calls into native code that signals and time limits end."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest

from masksam_deploy.base import interruptible as module
from masksam_deploy.base.interruptible import TimeLimitError, interruptible, still_running


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_results_and_errors_come_back() -> None:
    assert interruptible(lambda: 3) == 3
    for error in (ValueError("x"), TimeoutError("its own"), KeyboardInterrupt("its own")):
        with pytest.raises(type(error), match=str(error)):
            interruptible(failing(error), failing(AssertionError("it was over")), 5)
    assert not still_running()


def test_one_thread_serves_all_calls_of_a_thread() -> None:
    threads = {interruptible(threading.get_ident) for _ in range(20)}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


def test_calls_of_different_threads_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            interruptible(lambda: both.wait(5))
        except BaseException as error:  # noqa: BLE001  shown below
            failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_a_thread_that_ends_takes_its_worker_with_it() -> None:
    workers: list[threading.Thread] = []
    caller = threading.Thread(target=lambda: workers.append(interruptible(threading.current_thread)))
    caller.start()
    caller.join()
    gc.collect()
    workers[0].join(5)
    assert not workers[0].is_alive()


def test_a_call_that_takes_too_long_is_stopped() -> None:
    stopped = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeLimitError):
        interruptible(lambda: stopped.wait(20), stopped.set, 0.1)
    assert stopped.is_set() and not still_running()
    assert time.monotonic() - started < 5


def test_a_call_that_does_not_stop_is_left_to_its_thread() -> None:
    release = threading.Event()
    with pytest.raises(TimeLimitError):
        interruptible(lambda: release.wait(20), seconds=0.1)
    assert still_running()
    assert interruptible(lambda: 4) == 4  # the next call has a thread of its own
    release.set()
    deadline = time.monotonic() + 5
    while still_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not still_running()


def test_what_a_call_held_is_let_go_of() -> None:
    import weakref

    class Held:
        pass

    held = Held()
    seen = weakref.ref(held)
    interruptible(lambda given=held: None)  # type: ignore[misc]
    del held
    deadline = time.monotonic() + 5
    while seen() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert seen() is None
