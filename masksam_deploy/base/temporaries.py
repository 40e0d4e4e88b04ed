"""Temporary files and folders beside what is written, and the removal of those that a killed process left.

A process that is killed cannot remove its temporaries, so the next one in the same folder does. It must be sure that
nobody writes to them any more: the name tells machine, boot and process of the owner, and the owner holds a lock
(`flock`) that the system releases at its death. Only what bears such a name, is of the right kind and of the same user,
belongs to this machine, has an owner that no longer runs and can be locked is removed; where the owner ran among other
processes than this one sees (another container), also only if it is older than a minute. Where locks do not work
(Windows, some network shares) the name says `unlocked` instead, and nothing of that name is ever touched.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.text import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".masksam-"
"""Begins the name of a temporary file."""
BUILDING = ".building-"
"""Begins the name of a folder in which an engine is built."""
SET_ASIDE = "replaced"
"""Marks what was renamed to make way: a folder `.NAME.replaced-*`, or a folder of that name in a `.NAME.staging-*`."""
SETTLED_SECONDS = 60
"""Younger ones of other containers are left alone: their owner may not have come to locking them."""

_UNKNOWN = "0" * 8
_OWNER = r"(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<space>[0-9a-f]{8})-(?P<pid>[0-9]{1,10})-[0-9a-f]{8}"
_FILES = re.compile(rf"{re.escape(FILE)}{_OWNER}(\.[^.]+){{0,2}}", re.DOTALL)
_FOLDERS = re.compile(rf"(\..+\.staging-|{re.escape(BUILDING)}){_OWNER}", re.DOTALL)
_ASIDE = re.compile(rf"\.(?P<name>.+)\.({SET_ASIDE}|staging)-{_OWNER}", re.DOTALL)

_guard = threading.Lock()
_cleaned: set[str] = set()
_shares: dict[int, bool] = {}
"""Device -> whether a locked file can be written through another handle there; SMB locks are mandatory."""


class Temporary:
    """A hidden name for one file or folder. Nothing exists before one of the `create` methods is called.

    Attributes:
        path: of the file or folder. It changes if creating shows that locks do not work in that folder.
    """

    def __init__(self, folder: Path, before: str, after: str = "") -> None:
        self.path = folder / f"{before}{_owner()}{after}"
        self._unlocked = folder / f"{before}unlocked-{secrets.token_hex(8)}{after}"
        self._both = (self.path, self._unlocked)
        self._descriptor: int | None = None

    def create_file(self) -> None:
        """Make an empty file with the permissions that the umask gives, and lock it.

        Raises:
            OSError: the system refuses.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._keep(descriptor if _lock(descriptor) and _others_may_write(descriptor, self.path) else None, descriptor)
        self._rename_if_unlocked()

    def create_folder(self) -> None:
        """Make an empty folder with the permissions that the umask gives, and lock it.

        Raises:
            OSError: the system refuses.
        """
        self.path.mkdir()
        self._lock_folder(self.path)
        self._rename_if_unlocked()

    def take_over(self, folder: Path) -> None:
        """Rename a folder that is there to `path`; it is locked before it bears that name.

        Raises:
            FileNotFoundError: it is not there.
            OSError: the system refuses.
        """
        self._lock_folder(folder)
        if self._descriptor is None:
            self.path = self._unlocked
        folder.rename(self.path)

    def release(self) -> None:
        """Give the lock back; what has the name then still counts as fresh for a minute."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.utime(self.path)
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the file or folder, if it still has the name, and give the lock back; errors are passed over."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)  # before: NFS keeps a removed file that is open
        for path in self._both:  # an interrupt can come between a renaming and its bookkeeping
            remove_any(path)

    def _lock_folder(self, folder: Path) -> None:
        if fcntl is None:
            return
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except PermissionError:
            return
        self._keep(descriptor if _lock(descriptor) else None, descriptor)

    def _keep(self, locked: int | None, descriptor: int) -> None:
        self._descriptor = locked
        if locked is None:
            os.close(descriptor)

    def _rename_if_unlocked(self) -> None:
        # Nobody may take it for abandoned later only because locking works again.
        if self._descriptor is None:
            self.path.rename(self._unlocked)
            self.path = self._unlocked


@contextmanager
def speaking_of(temporary: Path, target: Path) -> Iterator[None]:
    """Let errors that name a temporary, or something in it, name what was asked for."""
    try:
        yield
    except MaskSamError as error:
        error.args = tuple(_renamed(part, temporary, target) for part in error.args)
        raise
    except OSError as error:
        for place in ("filename", "filename2"):
            if isinstance(value := getattr(error, place), (str, bytes)):
                setattr(error, place, _renamed(value, temporary, target))
        raise


def clean(folder: Path) -> None:
    """Remove what killed processes left in a folder, at this process's first call for it; errors are passed over.

    What was set aside is not touched; see `settle`.
    """
    place = os.path.abspath(folder)  # noqa: PTH100 - resolve() asks the disk, and two names only mean a second look
    with _guard:
        known = place in _cleaned
        _cleaned.add(place)
    if known:
        return
    for path, owner in _named(folder, _FILES, _FOLDERS):
        with _abandoned(path, owner, stat.S_ISREG if owner.re is _FILES else stat.S_ISDIR) as dead:
            if dead and not os.path.lexists(path / SET_ASIDE):
                remove_any(path)


def settle(target: Path) -> None:
    """Give `target` back the folder that a killed process set aside; remove what was set aside if `target` is there.

    Of several the latest comes back, which made way last. Errors are passed over: then it stays as it is.
    """
    found = [(path, owner) for path, owner in _named(target.parent, _ASIDE) if owner["name"] == target.name]
    with suppress(OSError):
        # Renaming is what changed its status last.
        found.sort(key=lambda item: item[0].lstat().st_ctime_ns, reverse=True)
    for path, owner in found:
        content = path if f".{SET_ASIDE}-" in path.name.removeprefix(f".{target.name}") else path / SET_ASIDE
        with _abandoned(path, owner, stat.S_ISDIR) as dead:
            if not dead or not os.path.lexists(content):
                continue
            with suppress(OSError):
                if not os.path.lexists(target):
                    content.rename(target)
                remove_any(path)


def abandoned_in(folder: Path, before: str, after: str) -> Iterator[Path]:
    """Folders `BEFORE*AFTER` whose owner is dead, each locked until the next one is asked for."""
    for path, owner in _named(folder, re.compile(f"{re.escape(before)}{_OWNER}{re.escape(after)}")):
        with _abandoned(path, owner, stat.S_ISDIR) as dead:
            if dead:
                yield path


def remove_any(path: Path) -> None:
    """Remove a file or a folder with all in it, links not followed; errors are passed over."""
    with suppress(OSError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            # An interrupt during the first pass must not leave the rest behind.
            shutil.rmtree(path, ignore_errors=True)


def lock(descriptor: int) -> bool | None:
    """Lock an open file against other processes that ask.

    Returns:
        Whether it is locked now; None where locks do not work.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as ENOLCK or ENOSYS, on network shares
        return None
    return True


def _lock(descriptor: int) -> bool:
    return lock(descriptor) is True


def _others_may_write(descriptor: int, path: Path) -> bool:
    """Whether writers that open the path themselves, as ITK does, get past our lock."""
    device = os.fstat(descriptor).st_dev
    if device not in _shares:
        try:
            with path.open("r+b", buffering=0) as other:
                other.write(b"\0")
                other.truncate(0)
        except OSError:
            return False
        _shares[device] = True
    return _shares[device]


def _named(folder: Path, *patterns: re.Pattern[str]) -> list[tuple[Path, re.Match[str]]]:
    """What in a folder bears a temporary's name; nothing where locks cannot tell whose is alive."""
    found = []
    if fcntl is not None:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                owners = (pattern.fullmatch(entry.name) for pattern in patterns)
                found += [(folder / entry.name, owner) for owner in owners if owner]
    return found


@contextmanager
def _abandoned(path: Path, owner: re.Match[str], is_kind: Callable[[int], bool]) -> Iterator[bool]:
    """Whether a temporary's owner is provably dead; if so, it is locked for as long as the body runs."""
    descriptor = None
    try:
        with suppress(OSError):
            descriptor = _seized(path, owner, is_kind)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _seized(path: Path, owner: re.Match[str], is_kind: Callable[[int], bool]) -> int | None:
    """An open, locked descriptor of what a dead process left; None of anything else."""
    before = path.lstat()
    if not is_kind(before.st_mode) or before.st_uid != os.getuid():
        return None
    settled = time.time() - before.st_mtime >= SETTLED_SECONDS
    if not (settled or _ran_among_ours(owner)) or not _may_be_dead(owner):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if os.path.samestat(before, os.fstat(descriptor)) and _lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _may_be_dead(owner: re.Match[str]) -> bool:
    """Whether a lock can tell: the owner ran on this machine, and no process has its number now."""
    same_host = owner["host"] == _host() != _UNKNOWN
    same_boot = owner["boot"] == _boot() != _UNKNOWN
    if same_host and not same_boot and _UNKNOWN not in (owner["boot"], _boot()):
        return True  # the machine was started again since
    return (same_host or same_boot) and not _is_running(int(owner["pid"]))


def _ran_among_ours(owner: re.Match[str]) -> bool:
    """Whether this process would see the owner if it still ran."""
    return owner["boot"] == _boot() != _UNKNOWN and owner["space"] == _space() != _UNKNOWN


def _is_running(pid: int) -> bool:
    """Whether another process has the number; of this process's own, only the lock can tell."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _owner() -> str:
    return f"{_host()}-{_boot()}-{_space()}-{os.getpid()}-{secrets.token_hex(4)}"


@lru_cache(maxsize=1)
def _host() -> str:
    """Names this machine, before and after a new start."""
    machine = _read("/etc/machine-id")
    if not machine and sys.platform.startswith("linux"):  # as in containers, many of which have one name
        return _UNKNOWN
    return _short_hash(f"{platform.node()}\n{machine}")


@lru_cache(maxsize=1)
def _boot() -> str:
    """Names the running system, whose locks all its processes and containers share."""
    boot = _read("/proc/sys/kernel/random/boot_id")
    return _short_hash(boot) if boot else _UNKNOWN


@lru_cache(maxsize=1)
def _space() -> str:
    """Names the processes that this one sees, by their numbers: those of its container."""
    with suppress(OSError):
        return _short_hash(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115  it names no file
    return _UNKNOWN


def _read(path: str) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _renamed(value: object, temporary: Path, target: Path) -> object:
    """`value` with the temporary's name, which nothing else bears, replaced by that of what was asked for."""
    if not isinstance(value, (str, bytes)) or not temporary.name:
        return value
    names = [(str(temporary), str(target)), (temporary.name, target.name)]
    if isinstance(value, bytes):
        for name, asked in names:
            value = value.replace(os.fsencode(name), os.fsencode(asked))
        return value
    for name, asked in names:
        for spelt in (name, shown(name)):
            value = value.replace(spelt, shown(asked))
    return value
