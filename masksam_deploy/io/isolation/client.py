"""This process's side: a scan whose headers and voxels are read by a worker."""

from __future__ import annotations

import atexit
import errno
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from masksam_deploy.errors import MaskSamError, MemoryLimitError, ScanError
from masksam_deploy.io.isolation.limits import seconds_to_decode, seconds_to_open
from masksam_deploy.io.isolation.server import NEW, STATUS
from masksam_deploy.io.isolation.shared import SharedArray
from masksam_deploy.io.isolation.wire import Message, Wire, WireError
from masksam_deploy.paths import check_name
from masksam_deploy.text import one_line, shown
from masksam_deploy.volume import Geometry, NiftiForms

_ERRORS: dict[str, type[MaskSamError]] = {"ScanError": ScanError, "MemoryLimitError": MemoryLimitError}
_PATIENCE = 2
"""How much longer than a worker may take its answer is waited for."""
_LONGEST_ERROR = 12_000
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


class _Worker(Protocol):
    """A process that serves one scan."""

    wire: Wire

    def kill(self) -> None:
        """End it, whatever it does."""

    def ended(self) -> int | None:
        """Its exit code, negative after a signal, once it has ended; None where nothing tells."""


class _ForkedWorker:
    """Forked by the server."""

    def __init__(self, server: _Server) -> None:
        ours, its = socket.socketpair()
        self._status, tells = os.pipe()
        try:
            with its:
                server.ask(its.fileno(), tells)
        except BaseException:
            ours.close()
            os.close(self._status)
            raise
        finally:
            os.close(tells)
        with ours:
            self.wire = Wire(ours.makefile("rb"), ours.makefile("wb"))
        self._code: int | None = None
        self._number = _number_from(self._status)
        if self._number is None:
            self.wire.close()
            os.close(self._status)
            raise OSError(errno.EAGAIN, "the reading process ended at once, or could not be forked")

    def kill(self) -> None:
        """See `_Worker`."""
        if self._number is not None:
            with suppress(ProcessLookupError):
                os.kill(self._number, signal.SIGKILL)

    def ended(self) -> int | None:
        """See `_Worker`."""
        self._number = None
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


class _SpawnedWorker:
    """A process of its own, where there is no forking server."""

    def __init__(self) -> None:
        self._process = _python("masksam_deploy.io.isolation.worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("a process without pipes")
        self.wire = Wire(self._process.stdout, self._process.stdin)

    def kill(self) -> None:
        """See `_Worker`."""
        self._process.kill()

    def ended(self) -> int | None:
        """See `_Worker`."""
        return self._process.wait()


class _Server:
    """The process that forks; started on first use, and again if it ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = os.getpid()

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
        if self._owner == os.getpid():
            with self._lock:
                self._stop()

    def _running(self) -> socket.socket:
        if self._owner != os.getpid():  # forked: the server belongs to the other process
            self._control, self._process, self._owner = None, None, os.getpid()
        if self._control is None:
            ours, its = socket.socketpair()
            with its:
                self._process = _python("masksam_deploy.io.isolation.server", str(its.fileno()), pass_fd=its.fileno())
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


_SERVER = _Server()
_FORKS = sys.platform == "linux"
atexit.register(_SERVER.stop)


def start_reading() -> None:
    """Begin to load what reads scans, so that the first one needs not wait for it."""
    if _FORKS:
        _SERVER.start()


@dataclass(frozen=True)
class _Described:
    """What a worker says of a scan, checked."""

    geometry: Geometry
    warnings: tuple[str, ...]


class IsolatedScan:
    """One channel of a scan, opened by a worker: its grid is known, its voxels are read when asked for.

    A context manager; leaving it ends the worker.

    Args:
        path: a file, or a folder with a DICOM series.

    Raises:
        ScanError: it cannot be read, or not safely; or the libraries that read it crashed on it.
        MemoryLimitError: reading it takes more memory than a scan may.
    """

    def __init__(self, path: Path) -> None:
        check_name(path, ScanError)
        self.name = shown(path)
        if sys.is_finalizing():  # a thread that is started now never runs
            raise ScanError(f"{self.name}: found that the program is ending, expected it to run; read scans earlier")
        try:
            self._worker: _Worker = _ForkedWorker(_SERVER) if _FORKS else _SpawnedWorker()
        except OSError as error:
            raise ScanError(
                f"{self.name}: found that no process can be started to read it ({error.strerror}), expected one; "
                "close other programs, or raise the limits of memory, files and processes"
            ) from error
        try:
            answer = self._ask({"path": os.fsencode(path).hex()}, seconds_to_open(_MOST_FILES)[1])
            described = self._checked(answer)
        except BaseException:
            self.close()
            raise
        self.geometry, self.warnings = described.geometry, described.warnings

    def read_into(self, memory: SharedArray, index: int) -> None:
        """Have the voxels written to `memory.array[index]`, `[Z, Y, X]` float32.

        Raises:
            ScanError, MemoryLimitError: as on opening.
        """
        request: Message = {"memory": memory.path, "index": index, "count": memory.shape[0]}
        answer = self._ask(request, seconds_to_decode(4 * math.prod(self.geometry.size_xyz))[1])
        if answer != {"done": True}:
            raise self._crashed()

    def close(self) -> None:
        """End the worker."""
        self._worker.kill()
        self._worker.wire.close()
        with suppress(OSError):
            self._worker.ended()

    def __enter__(self) -> IsolatedScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: Message, seconds: int) -> Message:
        timer = threading.Timer(_PATIENCE * seconds, self._worker.kill)
        timer.daemon = True
        timer.start()
        try:
            self._worker.wire.send(request)
            answer = self._worker.wire.receive()
        except WireError:
            raise self._crashed() from None
        finally:
            timer.cancel()
        if "error" in answer:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: Message) -> MaskSamError:
        kind = str(answer.get("error"))
        message = one_line(str(answer.get("message")), _LONGEST_ERROR)
        if kind in _ERRORS:
            return _ERRORS[kind](message)
        if kind == "MemoryError":
            return MemoryLimitError(
                f"{self.name}: found that reading it takes more memory than a scan of its size may, expected less; the "
                "file is damaged or hostile, copy it again"
            )
        if kind == "OSError":
            return ScanError(f"{self._where(answer)}: cannot be read: {message}; check the path and permissions")
        return ScanError(
            f"{self.name}: found something that the reader was not made for ({one_line(kind)}: {one_line(message)}), "
            "expected a scan; check the file, and report it if it is a good one"
        )

    def _where(self, answer: Message) -> str:
        """In a folder, or of a header and its voxels, one file may be the unreadable one."""
        try:
            return shown(os.fsdecode(bytes.fromhex(str(answer["path"]))))
        except (KeyError, ValueError):
            return self.name

    def _crashed(self) -> ScanError:
        self._worker.kill()  # if it is still there, it does not answer as it should
        self._worker.wire.close()
        with suppress(OSError):
            return ScanError(
                f"{self.name}: the reader crashed on it ({_how(self._worker.ended())}), expected a scan; the file is "
                "damaged or hostile, copy it again"
            )
        return ScanError(f"{self.name}: the reader crashed on it, expected a scan; copy it again")

    def _checked(self, answer: Message) -> _Described:
        try:
            return _Described(_geometry(answer["geometry"]), _texts(answer["warnings"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._crashed() from None


_MOST_FILES = 20_000
"""Of a DICOM folder, as far as waiting for its headers is concerned: 6 hours are enough for any."""


def _how(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return "it ended without an answer"
    if hasattr(signal, "SIGXCPU") and code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "it took too long"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


_Number = TypeVar("_Number", int, float)


def _numbers(value: object, count: int, kind: type[_Number]) -> tuple[_Number, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise ValueError("not a list of numbers")
    return tuple(kind(item) for item in value)


def _geometry(value: object) -> Geometry:
    """A grid from its JSON.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is none.
    """
    if not isinstance(value, dict):
        raise TypeError("not a grid")
    x, y, z = _numbers(value["size_xyz"], 3, int)
    dx, dy, dz = _numbers(value["spacing_xyz"], 3, float)
    ox, oy, oz = _numbers(value["origin_lps"], 3, float)
    forms = value["nifti_forms"]
    return Geometry(
        (x, y, z),
        (dx, dy, dz),
        (ox, oy, oz),
        _numbers(value["direction_lps"], 9, float),
        None if forms is None else _forms(forms),
    )


def _forms(value: object) -> NiftiForms:
    if not isinstance(value, dict):
        raise TypeError("not the forms of a NIfTI header")
    b, c, d = _numbers(value["quaternion"], 3, float)
    x, y, z = _numbers(value["offset"], 3, float)
    return NiftiForms(
        qform_code=int(value["qform_code"]),
        sform_code=int(value["sform_code"]),
        qfac=float(value["qfac"]),
        quaternion=(b, c, d),
        offset=(x, y, z),
        sform=_numbers(value["sform"], 12, float),
    )


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list of warnings")
    return tuple(one_line(str(item), 1000) for item in value[:200])


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
