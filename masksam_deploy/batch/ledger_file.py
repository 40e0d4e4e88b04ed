"""`ledger.jsonl`: what became of every scan, a line each, only ever added to; of two lines of a scan the later counts.

Adding a line costs the same however many there are. A line is with the system at once, so that a kill loses none, and
is forced to the disk at once too, unless that would take more than a twentieth of the time: then a power cut can lose
the lines of the last moments, and those scans are done again. A kill can leave half of the last line, which counts as
not written; any other damage is refused. What is read is not trusted: lines are bounded and checked, and of all lines
only their places are held in memory. The file is locked while it is open, so that a second run into the folder is
refused where locks work; nothing but that needs locks.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import DiskFullError, LedgerInUseError, OutputError
from masksam_deploy.base.records import Record
from masksam_deploy.base.temporaries import lock
from masksam_deploy.base.text import shown
from masksam_deploy.batch.report import Entry, Status
from masksam_deploy.bundle.rules import condensed

LEDGER_NAME = "ledger.jsonl"
LINE_LIMIT = 64 * 2**20
"""Bytes. A real line has a few thousand."""
COMPACT_ABOVE = 2**20
"""Bytes of lines that no longer count, below which they are not worth removing."""

WORK_PER_SYNC = 20
"""Forcing lines to the disk waits until so many times what it took the last time have passed."""

_AGAIN = "move it away, or do all scans again with --force"
_CHUNK = 2**20


class _Header(Record):
    ledger: Literal["masksam-deploy infer"] = "masksam-deploy infer"
    schema_version: Literal[1] = 1


class _Place(NamedTuple):
    """Of a line: where it begins, its bytes with the line's end, and what it says."""

    offset: int
    length: int
    status: Status


class LedgerFile:
    """An open ledger; made by `open`, `create` or `replace`. Close it. Threads may share it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._guard = threading.RLock()
        self._places: dict[str, _Place] = {}
        self._end = 0
        self._live = 0
        self._durable = 0
        self._next_sync = 0.0

    @classmethod
    def open(cls, path: Path) -> LedgerFile:
        """Open the ledger that is there.

        Raises:
            OutputError: it is damaged, of another version, no regular file, or cannot be opened.
            LedgerInUseError: another run is at work in the folder.
        """
        ledger = cls(path, _opened(path))
        try:
            ledger._load()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def create(cls, path: Path) -> LedgerFile:
        """Begin a ledger where there is none.

        Raises:
            OutputError: it cannot be written; `DiskFullError` for want of room.
            LedgerInUseError: another run has begun one meanwhile.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            ledger = cls(path, os.open(path, flags, 0o666))
        except FileExistsError as error:
            raise _in_use(path) from error
        except OSError as error:
            raise _refused(path, error) from error
        try:
            if lock(ledger._file.fileno()) is False:
                raise _in_use(path)
            ledger._write_header()
        except LedgerInUseError:
            ledger.close()
            raise
        except BaseException:
            ledger.close()
            with suppress(OSError):
                path.unlink()
            raise
        return ledger

    @classmethod
    def replace(cls, path: Path) -> LedgerFile:
        """Begin a ledger in place of a file that cannot be read as one.

        Raises:
            OutputError: what is there is no file, or it cannot be written.
        """
        with atomic_path(path) as temporary:
            temporary.write_bytes(_line(_Header()))
        return cls.open(path)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Names of the scans, in the order in which they came in."""
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def status(self, name: str) -> Status | None:
        """What the line of a scan says; None if there is none."""
        place = self._places.get(name)
        return place.status if place else None

    def entry(self, name: str) -> Entry:
        """What is known of a scan that has a line.

        Raises:
            OutputError: the line cannot be read any more.
        """
        with self._guard:
            place = self._places[name]
            data = self._read(place)
        entry = self._parsed(data, f"the line of scan {shown(name)}")
        if entry.name != name:
            raise self._unfit(f"found scan {shown(entry.name)} where {shown(name)} was, expected nobody to change it")
        return entry

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines, all or none of them.

        Raises:
            OutputError: they cannot be written; `DiskFullError` for want of room. The file is as before, and readable.
        """
        with self._guard:
            places: dict[str, _Place] = {}
            end = self._end
            try:
                self._cut()
                chunk = bytearray()
                for entry in entries:
                    line = self._bounded(_line(entry), entry.name)
                    places[entry.name] = _Place(end + len(chunk), len(line), entry.status)
                    chunk += line
                    if len(chunk) >= _CHUNK:
                        end += self._write(end, chunk)
                        chunk = bytearray()
                end += self._write(end, chunk)
            except OSError as error:
                with suppress(OSError):
                    self._cut()
                raise _refused(self.path, error) from error
            for name, place in places.items():
                self._take(name, place)
            self._end = end
            if time.perf_counter() >= self._next_sync:
                self.sync()

    def sync(self) -> None:
        """Force all lines to the disk.

        Raises:
            OutputError: the system refuses, as network shares do here and not when a line is added. Lines since the
                last time are gone, and the ledger is of no further use to this run.
        """
        with self._guard:
            if self._durable == self._end:
                return
            started = time.perf_counter()
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._end = self._durable
                with suppress(OSError):
                    self._cut()
                raise _refused(self.path, error) from error
            self._durable, ended = self._end, time.perf_counter()
            self._next_sync = ended + WORK_PER_SYNC * (ended - started)

    def compact(self) -> None:
        """Write the file anew, if more than half of it are lines that no longer count.

        Raises:
            OutputError: it cannot be opened again.
        """
        header = _line(_Header())
        dead = self._end - len(header) - self._live
        if dead <= max(self._live, COMPACT_ABOVE):
            return
        with self._guard:
            try:
                with atomic_path(self.path) as temporary, temporary.open("wb") as file:
                    file.write(header)
                    for place in self._places.values():
                        file.write(self._read(place))
            except OutputError:
                return  # for want of room, or as Windows does not replace an open file: it can stay as it is
            self.close()
            self._file = os.fdopen(_opened(self.path), "r+b", buffering=0)
            self._load()

    def close(self) -> None:
        """Close the file, which gives its lock back; may be called again."""
        self._file.close()

    def _load(self) -> None:
        """Find the place of every line.

        Raises:
            OutputError: one is damaged.
        """
        self._places, self._end, self._live = {}, 0, 0
        try:
            with os.fdopen(self._file.fileno(), "rb", buffering=_CHUNK, closefd=False) as reader:
                reader.seek(0)
                header = reader.readline(LINE_LIMIT + 1)
                if header:
                    self._check_header(header)
                    self._end = len(header)
                    for number, line in enumerate(iter(lambda: reader.readline(LINE_LIMIT + 1), b""), 2):
                        if not self._found(line, f"line {number}"):
                            break
        except OSError as error:
            raise _refused(self.path, error) from error
        self._durable = self._end
        if not header:  # killed between making the file and writing to it
            self._write_header()

    def _found(self, line: bytes, where: str) -> bool:
        """Take a line that was read; False for the last one if it was not written to its end."""
        if not line.endswith(b"\n"):
            if len(line) > LINE_LIMIT:
                raise self._unfit(f"{where}: found more than {LINE_LIMIT} bytes, expected a scan's results")
            return False
        entry = self._parsed(line, where)
        self._take(entry.name, _Place(self._end, len(line), entry.status))
        self._end += len(line)
        return True

    def _take(self, name: str, place: _Place) -> None:
        if earlier := self._places.get(name):
            self._live -= earlier.length
        self._live += place.length
        self._places[name] = place

    def _check_header(self, line: bytes) -> None:
        try:
            _Header.model_validate_json(line, strict=True)
        except ValidationError as error:
            raise self._unfit(f"line 1: {condensed(error)}") from error
        if not line.endswith(b"\n"):
            raise self._unfit("line 1: found half a line, expected the head of a ledger")

    def _parsed(self, line: bytes, where: str) -> Entry:
        try:
            return Entry.model_validate_json(line, strict=True)
        except ValidationError as error:
            raise self._unfit(f"{where}: {condensed(error)}") from error

    def _bounded(self, line: bytes, name: str) -> bytes:
        if len(line) > LINE_LIMIT:
            raise self._unfit(f"scan {shown(name)}: found {len(line)} bytes to write, expected at most {LINE_LIMIT}")
        return line

    def _write_header(self) -> None:
        try:
            self._end = self._write(0, _line(_Header()))
        except OSError as error:
            raise _refused(self.path, error) from error
        self.sync()

    def _write(self, offset: int, data: bytes | bytearray) -> int:
        self._file.seek(offset)
        written = 0
        while written < len(data):
            written += self._file.write(memoryview(data)[written:])
        return written

    def _read(self, place: _Place) -> bytes:
        """A line's bytes; fewer if the file ends before.

        Raises:
            OutputError: the system refuses.
        """
        try:
            self._file.seek(place.offset)
            data = b""
            while len(data) < place.length and (part := self._file.read(place.length - len(data))):
                data += part
        except OSError as error:
            raise _refused(self.path, error) from error
        return data

    def _cut(self) -> None:
        """Remove half a line at the end, which a kill or a full disk left."""
        if os.fstat(self._file.fileno()).st_size != self._end:
            self._file.truncate(self._end)

    def _unfit(self, what: str) -> OutputError:
        return OutputError(f"{shown(self.path)}: {what}; {_AGAIN}")


def _opened(path: Path) -> int:
    """A descriptor of a regular file, locked; links are not followed, and nothing else is opened.

    Raises:
        OutputError: as in `LedgerFile.open`.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        before = path.lstat()
        if not stat.S_ISREG(before.st_mode):
            raise OutputError(f"{shown(path)}: found no regular file, expected the ledger of earlier runs; {_AGAIN}")
        descriptor = os.open(path, flags)
        try:
            same = os.path.samestat(before, os.fstat(descriptor))
            # After locking: another run may have written the file anew meanwhile.
            if lock(descriptor) is False or not same or not os.path.samestat(before, path.lstat()):
                raise _in_use(path)
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise _refused(path, error) from error
    return descriptor


def _line(content: Entry | _Header) -> bytes:
    text = content.model_dump_json(exclude_defaults=isinstance(content, Entry))
    return text.encode("utf-8") + b"\n"


def _in_use(path: Path) -> LedgerInUseError:
    return LedgerInUseError(
        f"{shown(path)}: found another run at work in this folder, expected one at a time; wait for its end, or give "
        "another folder"
    )


def _refused(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{shown(path)}: cannot be written: the disk is full; free some space")
    reason = error.strerror or type(error).__name__
    return OutputError(
        f"{shown(path)}: cannot be opened, read or written ({reason}), expected the ledger of the runs into this "
        "folder; check the permissions and the disk"
    )
