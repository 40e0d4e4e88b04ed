"""Whatever a library does while it reads a scan, this process refuses that scan and goes on."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksam_deploy.base.errors import MemoryLimitError, ScanError
from masksam_deploy.base.isolation import SharedArray, Wire, WireError, Workers, server, workers
from masksam_deploy.base.isolation.shared import map_shared
from masksam_deploy.base.isolation.wire import LONGEST
from masksam_deploy.io import isolated_scan, read_volume
from masksam_deploy.io.isolated_scan import IsolatedScan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is a forking server on Linux only")


@pytest.fixture(params=["forked", "spawned"])
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Readers that misbehave, in workers that are forked or started."""
    readers = Workers("tests.io.planted_readers", forks=request.param == "forked")
    monkeypatch.setattr(isolated_scan, "READERS", readers)
    yield
    readers.stop()


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    """The real ones, with a server of their own."""
    own = Workers("masksam_deploy.io.scan_worker")
    monkeypatch.setattr(isolated_scan, "READERS", own)
    yield own
    own.stop()


def server_of(readers: Workers) -> subprocess.Popen[bytes]:
    assert readers._server is not None
    assert readers._server._process is not None
    return readers._server._process


def refusal(path: Path) -> str:
    path.write_bytes(b"something")
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 2000
    return message


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("when", ["open", "read"])
@pytest.mark.parametrize(
    ("deed", "part"),
    [
        ("crash", "the reader crashed on it (SIGSEGV)"),
        ("loop", "the reader crashed on it (it took too long)"),
        ("sleep", "the reader crashed on it (it took too long)"),
        ("leave", "the reader crashed on it (it ended without an answer)"),
        ("nonsense", "the reader crashed on it"),
        ("fail", "found something that the reader was not made for (KeyError: 'xxx"),
    ],
)
def test_what_befalls_a_worker_is_a_refusal_of_its_scan(
    data: Path, tmp_path: Path, when: str, deed: str, part: str
) -> None:
    started = time.monotonic()
    assert part in refusal(tmp_path / f"{when}-{deed}.nii")
    assert time.monotonic() - started < 20
    # And the next one is read.
    assert read_volume(data / "dicom" / "oblique").array.shape == (1, 3, 50, 100)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("when", ["open", "read"])
def test_a_worker_gets_no_more_memory_than_its_scan_needs(tmp_path: Path, when: str) -> None:
    path = tmp_path / f"{when}-memory.nii"
    path.write_bytes(b"something")
    with pytest.raises(MemoryLimitError, match="reading it takes more memory"):
        read_volume(path)


@pytest.mark.parametrize("forks", [True, False])
def test_both_kinds_of_workers_read_the_same(data: Path, monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    monkeypatch.setattr(isolated_scan, "READERS", Workers("masksam_deploy.io.scan_worker", forks=forks))
    volume = read_volume([data / "dicom" / "oblique", data / "dicom" / "oblique"])
    np.testing.assert_array_equal(volume.array[0], volume.array[1])
    assert volume.array.flags.writeable
    assert volume.array.flags.c_contiguous
    assert len(volume.warnings) == 1  # both channels say the same


def test_a_server_that_was_killed_is_started_again(data: Path, readers: Workers) -> None:
    first = read_volume(data / "dicom" / "oblique").array
    server = server_of(readers)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    np.testing.assert_array_equal(read_volume(data / "dicom" / "oblique").array, first)


def test_scans_are_read_by_several_threads_at_once(data: Path) -> None:
    folders = [data / "dicom" / name for name in ("oblique", "head_flipped", "float_rescale", "cine_mr_ed")] * 3
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(read_volume, folders))
    for folder, volume in zip(folders, together, strict=True):
        np.testing.assert_array_equal(volume.array, read_volume(folder).array)


def test_no_process_and_no_file_is_left_behind(data: Path) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        read_volume(data / "dicom" / "oblique")
    assert (
        len(list(Path("/proc/self/fd").iterdir())) <= files + 2
    )  # the server's connection, if these were the first scans
    code = (
        "import os, sys; from masksam_deploy.io import read_volume\n"
        "from masksam_deploy.io.isolated_scan import READERS\n"
        "read_volume(sys.argv[1]); print(READERS._server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(data / "dicom" / "oblique")], capture_output=True, text=True, check=False
    )
    server = int(ended.stdout)
    for _ in range(100):
        if not Path(f"/proc/{server}").exists() or "Z" in Path(f"/proc/{server}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    raise AssertionError("the server outlived its process")


def test_a_process_that_got_the_number_of_a_dead_worker_is_left_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IsolatedScan(data / "dicom" / "oblique") as scan:
        number = scan._worker.pid
        assert number is not None
        os.kill(number, signal.SIGKILL)
        while Path(f"/proc/{number}").exists():
            time.sleep(0.01)
        time.sleep(0.2)  # until the server, which has waited for it, has told so
        killed: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
        with pytest.raises(ScanError, match="SIGKILL"), SharedArray((1, *scan.geometry.shape_zyx)) as memory:
            scan.read_into(memory, 0)
    assert killed == []


def test_a_worker_whose_connection_another_process_keeps_open_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = Workers("tests.io.planted_readers")
    monkeypatch.setattr(isolated_scan, "READERS", readers)
    monkeypatch.setattr(isolated_scan, "seconds_to_open", lambda _: (1, 1))
    started = time.monotonic()
    assert "the reader crashed on it" in refusal(tmp_path / "open-heir.nii")
    assert time.monotonic() - started < 15
    readers.stop()


def test_a_server_without_free_file_descriptors_keeps_its_workers(data: Path, readers: Workers) -> None:
    resource = pytest.importorskip("resource")
    with IsolatedScan(data / "dicom" / "oblique") as scan, SharedArray((1, *scan.geometry.shape_zyx)) as memory:
        pid = server_of(readers).pid
        _, second, *_ = sorted(set(range(100)) - {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()})
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # One more fits, and a worker needs two.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (second, limits[1]))
        with pytest.raises(ScanError, match="no process can be started"):
            IsolatedScan(data / "dicom" / "oblique")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with IsolatedScan(data / "dicom" / "oblique"):
            scan.read_into(memory, 0)


def test_an_interrupt_while_a_worker_starts_leaves_nothing_open(
    data: Path, readers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    read_volume(data / "dicom" / "oblique")
    gc.collect()  # files that earlier tests left to the collector would be closed in between
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(workers, "_number_from", interrupted)
        with pytest.raises(KeyboardInterrupt):
            readers.new()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_scan_that_is_given_up_ends_its_worker(data: Path) -> None:
    with IsolatedScan(data / "dicom" / "oblique") as scan:
        number = scan._worker.pid
        assert number is not None
        assert Path(f"/proc/{number}").exists()
    assert not Path(f"/proc/{number}").exists()


def test_shared_memory_is_seen_by_both_and_outlives_its_name() -> None:
    with SharedArray((2, 3, 4)) as shared:
        other = map_shared(shared.path, shared.shape)
        other[1, 2, 3] = 7
        array = shared.array
    assert array[1, 2, 3] == 7
    with pytest.raises(OSError, match="No such file"):
        map_shared(shared.path, shared.shape)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02\0\0",
        b"\x02\0\0\0{",
        b"\x02\0\0\0[]",
        b"\x04\0\0\0nope",
        b"\xff\xff\xff\xff{}",
        b"\x02\0\0\0\xff\xff",
    ],
)
def test_what_is_no_message_is_no_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "said"
    file.write_bytes(content)
    with file.open("rb") as reader, (tmp_path / "asked").open("wb") as writer:
        wire = Wire(reader, writer)
        with pytest.raises(WireError):
            wire.receive()
        with pytest.raises(WireError):
            wire.send({"message": "x" * LONGEST})


def test_nested_messages_are_no_message(tmp_path: Path) -> None:
    content = b'{"a":' * 100_000
    file = tmp_path / "said"
    file.write_bytes(len(content).to_bytes(4, "little") + content)
    with file.open("rb") as reader, pytest.raises(WireError):
        Wire(reader, reader).receive()


@pytest.mark.parametrize("planted", ["forked"], indirect=True)
@pytest.mark.usefixtures("planted")
def test_temporary_files_of_killed_workers_go_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    refusal(tmp_path / "open-litter.nii")
    isolated_scan.READERS.stop()
    assert not list((tmp_path / "temporary").iterdir())


def test_a_server_that_is_told_to_end_removes_its_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: Workers
) -> None:
    # A service manager sends its signal to all processes of the service.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with IsolatedScan(data / "dicom" / "oblique") as scan:
        assert list(tmp_path.iterdir())
        server_of(readers).terminate()
        server_of(readers).wait(5)
        assert not list(tmp_path.iterdir())
        assert scan.geometry.size_xyz == (100, 50, 3)


def test_a_limit_on_the_size_of_files_is_named(data: Path) -> None:
    code = (
        "import resource, sys; from masksam_deploy.io import read_volume\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); read_volume(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(data / "dicom" / "oblique")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "expected at least 60000 bytes; raise the limit (ulimit -f)" in said


def without_workers() -> None:
    """The real server where the system starts no more processes."""

    def fork() -> int:
        raise BlockingIOError

    os.fork = fork
    server.main()


def that_ends() -> None:
    """A server that finds no memory for its libraries."""
    sys.exit(1)


@pytest.mark.parametrize("entry", ["without_workers", "that_ends"])
def test_a_scan_is_not_blamed_where_no_worker_can_be_started(
    data: Path, monkeypatch: pytest.MonkeyPatch, readers: Workers, entry: str
) -> None:
    started = workers._python

    def python(_: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return started(__name__, *arguments, **options, entry=entry)

    with monkeypatch.context() as planted:
        planted.setattr(workers, "_python", python)
        for _ in range(2):
            with pytest.raises(ScanError, match="no process can be started to read it") as caught:
                read_volume(data / "dicom" / "oblique")
            assert "damaged" not in str(caught.value)
        readers.stop()
    assert read_volume(data / "dicom" / "oblique").array.size


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_process_that_its_host_forks_while_a_reader_starts_reads_with_its_own(data: Path, readers: Workers) -> None:
    read_volume(data / "dicom" / "oblique")
    assert readers._server is not None
    with readers._server._lock:  # as if another thread were just starting a reader
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if read_volume(data / "dicom" / "oblique").array.size else 2
                readers.stop()
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_volume(data / "dicom" / "oblique").array.size


@pytest.mark.skipif(sys.platform != "linux", reason="memory is sealed on Linux")
def test_a_worker_cannot_take_shared_memory_away() -> None:
    with SharedArray((1000,)) as shared, Path(shared.path).open("r+b") as file:
        for size in (0, 10**6):
            with pytest.raises(OSError, match="not permitted"):
                os.ftruncate(file.fileno(), size)
        assert shared.array.sum() == 0


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_shared_memory_holds_any_array(shape: tuple[int, ...], dtype: str) -> None:
    with SharedArray(shape, dtype) as shared:
        values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
        map_shared(shared.path, shape, dtype)[...] = values
        np.testing.assert_array_equal(shared.array, values)


def run_apart(code: str, folder: Path) -> str:
    """What a program of its own prints, with `read_volume` and the folder as `scan`."""
    head = "import signal, sys; from masksam_deploy.io import read_volume; scan = sys.argv[1]\n"
    ended = subprocess.run(
        [sys.executable, "-c", head + code, str(folder)], capture_output=True, text=True, check=False, timeout=30
    )
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("forks", [True, False])
def test_signals_that_a_host_blocks_or_ignores_are_not_blocked_in_workers(data: Path, forks: bool) -> None:
    code = (
        "from masksam_deploy.io import isolated_scan; from masksam_deploy.base.isolation import Workers\n"
        f"isolated_scan.READERS = Workers('masksam_deploy.io.scan_worker', forks={forks})\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "print(read_volume(scan).array.shape)\n"
        "with isolated_scan.IsolatedScan(isolated_scan.Path(scan)) as opened:\n"
        "    worker = opened._worker.pid\n"
        "    print([line.split()[1] for line in open(f'/proc/{worker}/status') if line[:6] in ('SigBlk', 'SigIgn')])\n"
    )
    shape, masks = run_apart(code, data / "dicom" / "oblique").splitlines()
    assert shape == "(1, 3, 50, 100)"
    blocked, ignored = (int(mask.strip("[]',"), 16) for mask in masks.split())
    assert blocked == 0
    assert not ignored >> (signal.SIGXCPU - 1) & 1


def test_a_scan_is_refused_while_the_interpreter_ends(data: Path) -> None:
    # Threads that are started then never begin.
    code = (
        "import builtins\n"
        "class Late:\n"
        "    def __del__(self):\n"
        "        try: read_volume(scan)\n"
        "        except Exception as error: print(type(error).__name__, error)\n"
        "builtins.late = Late()\n"
    )
    said = run_apart(code, data / "dicom" / "oblique")
    assert said.startswith("ScanError ")
    assert "found that the program is ending" in said
    assert said.count("\n") == 1
