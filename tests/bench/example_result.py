"""Results of benchmarks that did not run, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

from masksam_deploy.bench.results import BenchResult, Check, ColdStart, Roofline, Run, ScanTimes, WindowTimes, Work
from masksam_deploy.bench.timing import Timing

GRAPHS = ("encoder", "prompt_generator", "decoder")


def timing(*samples: float) -> Timing:
    return Timing(samples=samples)


def run(name: str, window: Sequence[float], scan: Sequence[float] = (10.0, 10.1)) -> Run:
    """A contender whose graphs take equal shares of a window, and stages fixed shares of a scan."""
    shares = {"read": 0.02, "preprocess": 0.1, "encoder": 0.8, "write": 0.005, "other": 0.075}
    return Run(
        name=name,
        precisions=dict.fromkeys(GRAPHS, "fp32"),
        engine=None,
        providers=dict.fromkeys(GRAPHS, "CPUExecutionProvider"),
        check=Check(passed=True, decided_agreement=1.0, window_dice=1.0),
        windows=WindowTimes(
            whole=timing(*window), graphs={graph: timing(*(sample / 3 for sample in window)) for graph in GRAPHS}
        ),
        scan=ScanTimes(
            whole=timing(*scan),
            stages={stage: timing(*(share * sample for sample in scan)) for stage, share in shares.items()},
        ),
        cold=ColdStart(stages={"import": 0.5, "first_window": 0.7}, peak_rss_bytes=2**28),
    )


def refused(name: str, why: str) -> Run:
    """A contender that disagrees."""
    check = Check(passed=False, problem=why, decided_agreement=0.5, window_dice=0.1)
    return Run(name=name, precisions={"network": "int8"}, engine="e", providers={"network": "X"}, check=check)


def result(*runs: Run, name: str = "balls", roofline: bool = True) -> BenchResult:
    work = {graph: Work(flops=10**9 * (i + 1), bytes=10**8) for i, graph in enumerate(GRAPHS)}
    return BenchResult(
        started_utc="2026-01-31T12:00:00+00:00",
        bundle={"name": name, "manifest_sha256": "ab" * 32},
        input={"name": "case_0", "origin": "validation", "sha256": "cd" * 32, "windows": 3},
        settings={"repeats": 20, "threads": 2, "windows": 3, "scan": {"tta": True, "step": 0.5}},
        machine={"processor": "Some CPU", "cores": "2", "memory": "8.0 GiB", "system": "Linux x86_64"},
        software={"masksam-deploy": "0.1.0", "commit": "0123456789ab"},
        state={"load (1, 5, 15 min)": "0.1, 0.1, 0.1"},
        runs=runs,
        roofline=Roofline(graphs=work, peak_flops_per_s=1e11, peak_bytes_per_s=2e10) if roofline else None,
        roofline_problem=None if roofline else "needs <onnx>",
    )
