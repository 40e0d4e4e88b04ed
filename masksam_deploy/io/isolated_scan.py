"""A scan whose headers and voxels are read by a worker process: see `isolation`.

Elsewhere than on Linux every scan starts a process, which costs about a third of a second.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from pathlib import Path
from types import TracebackType

from masksam_deploy.base.errors import MaskSamError, MemoryLimitError, ScanError
from masksam_deploy.base.isolation import Message, SharedArray, WireError, Workers
from masksam_deploy.base.isolation.workers import end, how_it_ended
from masksam_deploy.base.paths import check_name
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.volume import Geometry
from masksam_deploy.io.scan_facts import geometry_from, warnings_from
from masksam_deploy.io.scan_limits import seconds_to_decode, seconds_to_open

_ERRORS: dict[str, type[MaskSamError]] = {"ScanError": ScanError, "MemoryLimitError": MemoryLimitError}
_PATIENCE = 2
"""How much longer than a worker may take its answer is waited for."""
_LONGEST_ERROR = 12_000


READERS = Workers("masksam_deploy.io.scan_worker")


def start_reading() -> None:
    """Begin to load what reads scans, so that the first one needs not wait for it."""
    READERS.start()


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
            self._worker = READERS.new()
        except OSError as error:
            raise ScanError(
                f"{self.name}: found that no process can be started to read it ({error.strerror}), expected one; "
                "close other programs, or raise the limits of memory, files and processes"
            ) from error
        try:
            answer = self._ask({"path": os.fsencode(path).hex()}, seconds_to_open(_MOST_FILES)[1])
            self.geometry, self.warnings = self._checked(answer)
        except BaseException:
            self.close()
            raise

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
        end(self._worker)

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
        """What is said of a worker that died, or does not answer as it should."""
        return ScanError(
            f"{self.name}: the reader crashed on it ({how_it_ended(end(self._worker))}), expected a scan; the file is "
            "damaged or hostile, copy it again"
        )

    def _checked(self, answer: Message) -> tuple[Geometry, tuple[str, ...]]:
        try:
            return geometry_from(answer["geometry"]), warnings_from(answer["warnings"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise self._crashed() from None


_MOST_FILES = 20_000
"""Of a DICOM folder, as far as waiting for its headers is concerned: 6 hours are enough for any."""
