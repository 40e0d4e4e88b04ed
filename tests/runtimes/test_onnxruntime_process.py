"""Whatever a graph does to ONNX Runtime, this process says so in one line and goes on."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")


from masksam_deploy.base.errors import BackendError, MemoryLimitError, NetworkCrashError
from masksam_deploy.base.isolation import Workers
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.runtimes import GraphChain, open_chain
from masksam_deploy.runtimes.onnxruntime import (
    OnnxRuntimeSession,
    RuntimeProcess,
    process,
)
from tests.engines.small_bundle import PATCH, make_bundle, write_ball_scans
from tests.runtimes.test_onnxruntime_limits import MAIN

IMAGE = np.random.default_rng(0).random((1, 1, *PATCH), np.float32)
Plant = Callable[[str], None]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "balls.masksam")


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.skipif(sys.platform != "linux", reason="forks")), False])
def plant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Lets workers, forked or new interpreters, misbehave."""
    workers = Workers("tests.runtimes.planted_runtime", forks=request.param)

    def planted(deed: str) -> None:
        monkeypatch.setenv("PLANTED", deed)
        monkeypatch.setattr(process, "_FORKED", workers)

    yield planted
    workers.stop()


@pytest.mark.parametrize("when", ["load", "run"])
@pytest.mark.parametrize(("deed", "how"), [("crash", "SIGSEGV"), ("leave", "it ended without an answer")])
def test_a_crash_of_the_runtime_is_an_error_of_its_graph(
    bundle: Bundle, plant: Plant, deed: str, how: str, when: str
) -> None:
    plant(f"{deed} at {when}")
    with pytest.raises(NetworkCrashError) as caught:
        open_chain(bundle, threads=1)(IMAGE)
    message = str(caught.value)
    assert message.startswith(f"graph 'encoder' did not {when} in ONNX Runtime: {how}, expected it to run")
    assert "\n" not in message


def test_a_network_that_crashed_says_so_ever_after_and_a_new_one_works(bundle: Bundle, plant: Plant) -> None:
    plant("crash at second run")
    with open_chain(bundle, threads=1) as chain:
        first = chain(IMAGE).copy()
        with pytest.raises(NetworkCrashError, match="SIGSEGV"):
            chain(IMAGE)
        with pytest.raises(NetworkCrashError, match=r"^the worker .* has ended: SIGSEGV; make a new Segmenter$"):
            chain(IMAGE)
    with open_chain(bundle, threads=1) as again:
        np.testing.assert_array_equal(again(IMAGE), first)


@pytest.mark.parametrize("when", ["load", "run"])
def test_too_little_memory_in_the_worker_is_told_apart(bundle: Bundle, plant: Plant, when: str) -> None:
    plant(f"memory at {when}")
    with pytest.raises(MemoryLimitError, match="too little memory"):
        open_chain(bundle, threads=1)(IMAGE)


def test_a_run_that_cannot_be_stopped_is_killed(bundle: Bundle, plant: Plant) -> None:
    plant("endless at run")
    with open_chain(bundle, threads=1) as chain:
        chain.limit_runs(0.2)
        started = time.monotonic()
        with pytest.raises(BackendError, match=r"took more than 0\.2 s to run"):
            chain(IMAGE)
        assert time.monotonic() - started < 20
        with pytest.raises(NetworkCrashError, match="it took too long"):
            chain(IMAGE)


@pytest.mark.parametrize("lie", ["negative", "objects", "texts", "huge", "more", "none"])
def test_what_a_worker_says_is_not_believed(bundle: Bundle, plant: Plant, lie: str) -> None:
    plant(f"lie at {lie}")
    with open_chain(bundle, threads=1) as chain, pytest.raises((NetworkCrashError, MemoryLimitError)):
        chain(IMAGE)


@pytest.mark.skipif(sys.platform != "linux", reason="there is a forking server on Linux only")
def test_both_kinds_of_workers_give_the_same_bytes(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_chain(bundle, threads=1) as chain:
        forked = chain(IMAGE).copy()
    monkeypatch.setattr(process, "_FORKED", process._SPAWNED)
    with open_chain(bundle, threads=1) as chain:
        assert chain(IMAGE).tobytes() == forked.tobytes()


@pytest.mark.skipif(sys.platform != "linux", reason="there is a forking server on Linux only")
def test_a_run_over_many_scans_ends_cleanly_when_its_network_crashes(bundle: Bundle, tmp_path: Path) -> None:
    scans, results = tmp_path / "scans", tmp_path / "results"
    write_ball_scans(scans, range(3))
    runs = 64 * 3  # of a scan: windows, graphs
    code = (
        "from masksam_deploy.runtimes.onnxruntime import process; import os, signal\n"
        "real, runs = process.RuntimeProcess.run, []\n"
        "def run(self, *given):\n"
        "    runs.append(1)\n"
        f"    if len(runs) == 2 * {runs} + 10: os.kill(self._worker.pid, signal.SIGKILL)\n"
        "    return real(self, *given)\n"
        "process.RuntimeProcess.run = run\n"
    )
    base = ["infer", str(scans), "-b", str(bundle.path), "-o", str(results)]
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{MAIN}", *base], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended
    assert "stopped after 2 of 3 scans" in ended.stderr or "stopped after 1 of 3 scans" in ended.stderr, ended.stderr
    assert "go on with --resume" in ended.stderr
    assert "SIGKILL" in ended.stderr
    resumed = subprocess.run(
        [sys.executable, "-c", f"import sys\n{MAIN}", *base, "--resume"], capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed
    assert len(list(results.glob("*.nii.gz"))) == 3


def test_results_of_earlier_runs_stay_as_they_were(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs[0]
    session = OnnxRuntimeSession(graph, bundle.graph_path(graph.name), threads=1)
    first = session.run({"image": IMAGE})["features"]
    kept = first.copy()
    session.run({"image": IMAGE + 1})
    session.close()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("number", "part"), [(errno.EMFILE, "ulimit -n"), (errno.EFBIG, "ulimit -f"), (errno.ENFILE, "file descriptor")]
)
def test_limits_of_files_are_not_taken_for_limits_of_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, number: int, part: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(process, "SharedArray", refused)
    with open_chain(bundle, threads=1) as chain, pytest.raises(BackendError, match=part) as caught:
        chain(IMAGE)
    assert "memory" not in str(caught.value) or number == errno.EFBIG


def test_windows_of_other_sizes_follow_each_other(bundle: Bundle) -> None:
    with open_chain(bundle, threads=1) as chain:
        one = chain(IMAGE).copy()
        two = chain(np.concatenate([IMAGE, IMAGE])).copy()
        np.testing.assert_allclose(two, np.concatenate([one, one]), atol=1e-5)
        np.testing.assert_array_equal(chain(IMAGE), one)


def test_several_threads_share_a_network(bundle: Bundle) -> None:
    with open_chain(bundle, threads=1) as chain, ThreadPoolExecutor(4) as threads:
        alone = [chain(IMAGE + n).copy() for n in range(8)]
        together = list(threads.map(lambda n: chain(IMAGE + n), range(8)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def worker_of(chain: GraphChain) -> int:
    processes: list[RuntimeProcess] = [session._process for _, session in chain._stages]  # type: ignore[attr-defined]
    assert len(set(map(id, processes))) == 1  # one for all graphs
    pid = processes[0]._worker.pid
    assert pid is not None
    return pid


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_worker_outlives_its_network(bundle: Bundle) -> None:
    chain = open_chain(bundle, threads=1)
    pid = worker_of(chain)
    assert chain.peak_memory()
    chain.close()
    assert is_gone(pid)
    with pytest.raises(BackendError, match="the network is closed"):
        chain(IMAGE)
    forgotten = open_chain(bundle, threads=1)
    pid = worker_of(forgotten)
    del forgotten
    gc.collect()
    assert is_gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_worker_outlives_its_process(bundle: Bundle) -> None:
    code = (
        "import os, sys; from masksam_deploy.runtimes import open_chain\n"
        "from masksam_deploy.bundle.directory import Bundle\n"
        "chain = open_chain(Bundle.load(sys.argv[1]))\n"
        "print(chain._stages[0][1]._process._worker.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, bundle.path], capture_output=True, text=True, check=False)
    assert is_gone(int(ended.stdout))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_process_that_its_host_forks_leaves_the_network_alone(bundle: Bundle) -> None:
    with open_chain(bundle, threads=1) as chain:
        first = chain(IMAGE).copy()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                chain(IMAGE)
            except BackendError as error:
                code = 0 if "forked from" in str(error) else 2
            finally:
                chain.close()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        np.testing.assert_array_equal(chain(IMAGE), first)


def run_code(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A host program of its own, with a network `chain` and an `image`."""
    start = (
        "import os, signal, sys, threading, time, numpy\n"
        "from masksam_deploy.runtimes import open_chain; from masksam_deploy.bundle.directory import Bundle\n"
        "from masksam_deploy.base.errors import BackendError, NetworkCrashError\n"
        f"image = numpy.ones((1, 1, *{PATCH}), numpy.float32)\n"
        "chain = open_chain(Bundle.load(sys.argv[1]), threads=1)\n"
    )
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_is_forked_while_the_network_runs_does_not_wait_for_it(bundle: Bundle) -> None:
    code = """
from masksam_deploy.runtimes.onnxruntime import process
running, go_on = threading.Event(), threading.Event()
real = process.RuntimeProcess._ask
def ask(*given):
    running.set()
    go_on.wait()
    return real(*given)
process.RuntimeProcess._ask = ask
thread = threading.Thread(target=chain, args=(image,))
thread.start()
running.wait()
process.RuntimeProcess._ask = real
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        chain(image)
    except BackendError as error:
        assert "forked from" in str(error)
        chain.close()
        os._exit(0)
    os._exit(1)
go_on.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), chain(image).shape)
"""
    ended = run_code(code, bundle.path)
    assert ended.stdout.startswith("0 (1,"), ended


def test_a_handler_of_a_signal_can_close_a_network_that_runs(bundle: Bundle) -> None:
    code = """
def close(*_):
    try:
        chain(image)
    except BackendError as error:
        print(error)
    chain.close()
signal.signal(signal.SIGINT, close)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True: chain(image)
except (NetworkCrashError, BackendError) as error:
    print(error)
"""
    ended = run_code(code, bundle.path)
    assert ended.returncode == 0, ended
    assert "closed" in ended.stdout.splitlines()[-1], ended


def test_an_interrupted_network_is_closed(bundle: Bundle) -> None:
    code = (
        "import signal, sys, time, numpy, threading, os\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the tests may run where it is ignored
        "from masksam_deploy.runtimes import open_chain; from masksam_deploy.bundle.directory import Bundle\n"
        "from masksam_deploy.base.errors import NetworkCrashError\n"
        f"image = numpy.ones((1, 1, *{PATCH}), numpy.float32)\n"
        "chain = open_chain(Bundle.load(sys.argv[1]), threads=1)\n"
        "threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    while True: chain(image)\n"
        "except KeyboardInterrupt: pass\n"
        "try: chain(image)\n"
        "except NetworkCrashError as error: print(error)\n"
        "else: print('between two runs')\n"
    )
    command = [sys.executable, "-c", code, str(bundle.path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "a signal interrupted it" in ended.stdout or "between two runs" in ended.stdout, ended
    assert ended.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="processors are bound on Linux")
def test_a_worker_runs_where_its_process_may(bundle: Bundle) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        with open_chain(bundle) as chain:
            assert os.sched_getaffinity(worker_of(chain)) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_network_is_not_blamed_where_no_worker_can_be_started(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def new(self) -> None:
            raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process, "_FORKED", Full())
    with pytest.raises(BackendError, match="no process can be started"):
        open_chain(bundle)
    assert signal.getsignal(signal.SIGINT) is not None
