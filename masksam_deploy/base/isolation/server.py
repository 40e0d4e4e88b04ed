"""Linux: a process that has loaded the libraries, and forks a fresh worker for each use.

A fork costs milliseconds where a new process costs a third of a second; and no scan meets memory that another one left.
The server itself opens no untrusted file. It has one thread, so that forking is safe.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType

from masksam_deploy.base.isolation.limits import reset_signals
from masksam_deploy.base.isolation.wire import Wire

NEW = b"new"
"""With two file descriptors: the worker's connection, and where to tell its number and how it ended."""
STATUS = struct.Struct("<i")


def main() -> None:
    """Fork workers for as long as the process that started this one keeps the connection open."""
    reset_signals()
    signal.signal(signal.SIGTERM, _leave)
    module = import_module(sys.argv[1])
    for name in module.PRELOAD:
        import_module(name)
    with socket.socket(fileno=int(sys.argv[2])) as control, _temporary_files():
        _Server(control, module.serve).run()


@contextmanager
def _temporary_files() -> Iterator[None]:
    """A folder for the temporary files of all workers: one that is killed leaves its own; all go at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="masksam-workers-")
    except OSError:  # the worker that needs one will say so
        yield
        return
    with folder as name:
        tempfile.tempdir = name
        yield


class _Server:
    def __init__(self, control: socket.socket, serve: Callable[[Wire], None]) -> None:
        self._control = control
        self._serve = serve
        self._told: dict[int, int] = {}  # worker -> where to tell how it ended

    def run(self) -> None:
        woken, wakes = socket.socketpair()
        for end in (woken, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        with selectors.DefaultSelector() as selector, woken, wakes:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is woken:
                        with suppress(BlockingIOError):
                            woken.recv(4096)
                        self._reap()
                    elif not self._accept():
                        self._kill_all()
                        return

    def _accept(self) -> bool:
        """Fork a worker; False once the other side has left."""
        try:
            message, fds, _, _ = socket.recv_fds(self._control, len(NEW), 2)
        except OSError:
            return False
        if message != NEW:
            return False
        if len(fds) != 2:  # no room for them: the other side learns of no worker
            for fd in fds:
                os.close(fd)
            return True
        connection, status = fds
        try:
            worker = os.fork()
        except OSError:  # the other side learns of no worker
            os.close(connection)
            os.close(status)
            return True
        if worker == 0:
            os.close(status)  # a worker that was taken over cannot tell its own end
            self._become_worker(connection)
        os.close(connection)
        self._told[worker] = status
        _tell(status, worker)
        return True

    def _become_worker(self, connection: int) -> None:
        """In the forked process: never returns."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self._control.close()
            for other in self._told.values():
                os.close(other)
            with socket.socket(fileno=connection) as own:
                self._serve(Wire(own.makefile("rb"), own.makefile("wb")))
            code = 0
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._told:
            try:
                worker, how = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if worker == 0:
                return
            status = self._told.pop(worker, None)
            if status is not None:
                _tell(status, os.waitstatus_to_exitcode(how))
                os.close(status)

    def _kill_all(self) -> None:
        for worker in self._told:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def _tell(status: int, number: int) -> None:
    with suppress(OSError):  # nobody may want to know any more
        os.write(status, STATUS.pack(number))


def _nothing(_: int, __: FrameType | None) -> None:
    """Without a handler, a child's end would not wake the selector."""


def _leave(_: int, __: FrameType | None) -> None:
    """Told to end, as with all processes of a service: the folder of temporary files goes."""
    sys.exit(0)
