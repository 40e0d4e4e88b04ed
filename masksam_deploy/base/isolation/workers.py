"""This process's side: starts workers, talks to them, and ends them."""

from __future__ import annotations

import atexit
import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import spawn
from typing import Protocol

from masksam_deploy.base.isolation.server import NEW, STATUS
from masksam_deploy.base.isolation.wire import Wire

if sys.platform == "linux":
    import fcntl
    import termios

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
_FORKS = sys.platform == "linux"


class Worker(Protocol):
    """A process that answers requests."""

    wire: Wire

    @property
    def pid(self) -> int | None:
        """The number of the process; None once it has been waited for."""

    def kill(self) -> None:
        """End it, whatever it does."""

    def ended(self) -> int | None:
        """Wait for its end. Its exit code, negative after a signal; None where nothing tells."""


class Workers:
    """Makes workers of one kind.

    Args:
        module: what they do, see the package's docstring.
        forks: whether a server forks them; by default where that is safe.
    """

    def __init__(self, module: str, *, forks: bool = _FORKS) -> None:
        self._module = module
        self._server = _Server(module) if forks else None

    def start(self) -> None:
        """Begin to load what workers need, so that the first one needs not wait for it."""
        if self._server is not None:
            self._server.start()

    def new(self) -> Worker:
        """A fresh worker.

        Raises:
            OSError: no process can be started.
        """
        return _SpawnedWorker(self._module) if self._server is None else _ForkedWorker(self._server)

    def stop(self) -> None:
        """End the server with all workers that it forked; a later worker starts another one."""
        if self._server is not None:
            self._server.stop()


def end(worker: Worker) -> int | None:
    """Kill a worker and wait for it.

    Returns:
        how it ended, see `Worker.ended`.
    """
    worker.kill()
    worker.wire.close()
    with suppress(OSError):
        return worker.ended()
    return None


def how_it_ended(code: int | None) -> str:
    """How a process ended, in words.

    Args:
        code: see `Worker.ended`.
    """
    if code is None or code >= 0:
        return "it ended without an answer"
    if hasattr(signal, "SIGXCPU") and code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "it took too long"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class _ForkedWorker:
    """Forked by the server."""

    def __init__(self, server: _Server) -> None:
        self._connection, its = socket.socketpair()
        self._status, tells = os.pipe()
        self._code: int | None = None
        try:
            try:
                with its:
                    server.ask(its.fileno(), tells)
            finally:
                os.close(tells)
            self.pid = _number_from(self._status)
            if self.pid is None:
                raise OSError(errno.EAGAIN, "the worker process ended at once, or could not be forked")
        except BaseException:  # a worker that was forked finds its connection closed, and ends
            self._connection.close()
            os.close(self._status)
            raise
        with self._connection:  # which stays open for as long as these two are
            self.wire = Wire(self._connection.makefile("rb"), self._connection.makefile("wb"))

    def kill(self) -> None:
        """See `Worker`."""
        pid, status = self.pid, self._status  # another thread may be waiting for its end
        if pid is not None and not _has_told(status):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):  # a process that it forked may hold the other end
            self._connection.shutdown(socket.SHUT_RDWR)

    def ended(self) -> int | None:
        """See `Worker`."""
        self.pid = None
        status, self._status = self._status, -1
        if status >= 0:
            try:
                self._code = _number_from(status)
            finally:
                os.close(status)
        return self._code


def _number_from(status: int) -> int | None:
    """What the server tells next of a worker; None if the server has ended."""
    content = os.read(status, STATUS.size)
    return int(STATUS.unpack(content)[0]) if len(content) == STATUS.size else None


def _has_told(status: int) -> bool:
    """Whether the server has told a worker's end, and so waited for it: its number may be another process's by now."""
    if sys.platform != "linux":  # no server forks there
        return False
    told = bytearray(struct.calcsize("i"))
    try:
        fcntl.ioctl(status, termios.FIONREAD, told)
    except (OSError, ValueError):
        return True  # it was read, and closed
    (count,) = struct.unpack("i", told)
    return int(count) >= STATUS.size


class _SpawnedWorker:
    """A new interpreter, where there is no forking server."""

    def __init__(self, module: str) -> None:
        pipe = subprocess.PIPE
        self._process = _python("masksam_deploy.base.isolation.spawned", module, stdin=pipe, stdout=pipe)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("a process without pipes")
        self.wire = Wire(self._process.stdout, self._process.stdin)

    @property
    def pid(self) -> int | None:
        """See `Worker`."""
        return self._process.pid if self._process.returncode is None else None

    def kill(self) -> None:
        """See `Worker`."""
        self._process.kill()

    def ended(self) -> int | None:
        """See `Worker`."""
        return self._process.wait()


class _Server:
    """The process that forks; started on first use, and again if it ended."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Let it load its libraries while this process does something else."""
        with self._lock:
            self._running()

    def ask(self, connection: int, status: int) -> None:
        """Let it fork a worker.

        Raises:
            OSError: it cannot be started.
        """
        with self._lock:
            try:
                socket.send_fds(self._running(), [NEW], [connection, status])
            except OSError:  # it was killed, as by the system for want of memory
                self._stop()
                socket.send_fds(self._running(), [NEW], [connection, status])

    def stop(self) -> None:
        """End it with all its workers."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """Its number, while it runs."""
        return None if self._process is None else self._process.pid

    def _forget(self) -> None:
        """In a process that this one forked: the server, and whoever held the lock, belong to the other one."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()  # or the server would not notice the end of its own process
        self._process = self._control = None

    def _running(self) -> socket.socket:
        if self._control is None:
            ours, its = socket.socketpair()
            with its:
                self._process = _python(
                    "masksam_deploy.base.isolation.server", self._module, str(its.fileno()), pass_fd=its.fileno()
                )
            self._control = ours
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


def _python(
    module: str,
    *arguments: str,
    entry: str = "main",
    pass_fd: int | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a function of a module of ours in a new interpreter that finds the same packages.

    It is no member of the terminal's group: Ctrl-C is for this process, which then ends it. Names of files are UTF-8
    there whatever the locale says, as that is how they are given to C++ libraries.
    """
    code = f"import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from {module} import {entry}; {entry}()"
    executable = spawn.get_executable() or sys.executable
    if not executable:
        raise OSError(errno.ENOENT, "sys.executable names no Python")
    # Entries of sys.path that are no texts are passed over by Python, too.
    packages = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
    return subprocess.Popen(
        [os.fsdecode(executable), "-c", code, packages, *arguments],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.DEVNULL if stdout is None else stdout,
        stderr=subprocess.DEVNULL,
        pass_fds=() if pass_fd is None else (pass_fd,),
        start_new_session=True,
        env=os.environ | _ONE_THREAD | {"PYTHONUTF8": "1"},
    )
