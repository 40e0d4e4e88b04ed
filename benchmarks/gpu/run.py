"""All that there is to measure on a machine with an NVIDIA GPU, the most valuable first, within a limit of time.

    python -m benchmarks.gpu.run                            # the plan `first`, 540 seconds
    python -m benchmarks.gpu.run second --seconds 300
    python -m benchmarks.gpu.run environment kernel_check   # steps by their names
    DRY=1 python -m benchmarks.gpu.run all                  # tiny sizes on the CPU: whether every script works

Every step is a process with a limit of its own and may fail; what it had by then is in the output folder (OUT, or
`runs/gpu`). The exit code is 1 if a step failed. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DRY = os.environ.get("DRY") == "1"
REPOSITORY = Path(__file__).parents[2]
SITE = Path(os.environ.get("SITE") or Path(tempfile.gettempdir()) / "masksam-gpu-site")
OUT = Path(os.environ.get("OUT") or REPOSITORY / "runs" / "gpu").absolute()
LEAST_SECONDS = 15
"""A step begins only if so many seconds are left."""
DRY_FACTOR = 8
TAIL = 8
SANITIZER = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
PROFILER = (
    "ncu",
    "--clock-control",
    "none",
    "-k",
    "regex:middle",
    "-c",
    "4",
    "--set",
    "full",
    "--csv",
    "--page",
    "details",
)


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        seconds: the most that it may take.
        command: arguments of Python.
        under: a tool that the process runs under; none in a dry run.
        environment: further variables.
    """

    seconds: int
    command: tuple[str, ...]
    under: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a step; `exit_code` is None if no time was left for it."""

    step: str
    exit_code: int | None
    seconds: float


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """One of this folder."""
    return ("-m", f"benchmarks.gpu.{name}", *arguments)


def tests(selection: str) -> tuple[str, ...]:
    """Some of the project's tests, by a name of `project`."""
    return script("run_tests", selection)


STEPS: dict[str, Step] = {
    "install": Step(60, script("install", str(SITE))),
    "environment": Step(60, script("environment")),
    "kernel_check": Step(90, script("kernel_check")),
    "vit_b": Step(110, script("windows", "acdc")),
    "vit_h": Step(150, script("windows", "amos")),
    "vit_h_256": Step(120, script("windows", "synapse")),
    "vit_b_compiled": Step(200, script("windows", "acdc", "--compile")),
    "vit_h_compiled": Step(240, script("windows", "amos", "--compile")),
    "kernel_speed": Step(100, script("kernel_speed")),
    "tune": Step(90, script("kernel_speed", "--tune")),
    "sanitizer": Step(90, script("kernel_check", "--one"), SANITIZER, (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)),
    "profile": Step(60, script("kernel_check", "--profile"), (*PROFILER, "--log-file", str(OUT / "ncu.csv"))),
    "machinery": Step(60, tests("machinery")),
    "gpu_tests": Step(90, tests("gpu")),
    "kernel_tests": Step(100, tests("kernels")),
}
PLANS: dict[str, tuple[str, ...]] = {
    "first": (
        "install",
        "environment",
        "kernel_check",
        "vit_b",
        "vit_h",
        "kernel_speed",
        "machinery",
        "sanitizer",
        "gpu_tests",
        "vit_b_compiled",
    ),
    "second": ("install", "vit_h_compiled", "profile", "vit_b_compiled", "kernel_tests", "vit_h_256", "tune"),
    "all": tuple(STEPS),
}


def main() -> None:
    """Run a plan, sum up, end with what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", default=["first"], choices=[*PLANS, *STEPS], metavar="PLAN_OR_STEP")
    parser.add_argument("--seconds", type=int, default=540, help="for all steps together. Default: 540")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    names = [name for word in arguments.steps for name in PLANS.get(word, (word,))]
    outcomes = run_steps(names, arguments.seconds)
    (OUT / "steps.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    summed_up = subprocess.run([sys.executable, *script("summary")], cwd=REPOSITORY, env=environment(), check=False)
    failed = [outcome.step for outcome in outcomes if outcome.exit_code]
    if failed:
        print(f"failed: {', '.join(failed)}; the reasons are in {OUT / 'log.txt'}")
    sys.exit(1 if failed or summed_up.returncode else 0)


def run_steps(names: Sequence[str], seconds: float) -> list[Outcome]:
    """One after another, until the time is up."""
    end = time.monotonic() + seconds
    outcomes = []
    for name in names:
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"== {name}: no time left", flush=True)
            outcomes.append(Outcome(name, None, 0))
            continue
        outcomes.append(run_step(name, min(left, STEPS[name].seconds * (DRY_FACTOR if DRY else 1))))
    return outcomes


def run_step(name: str, seconds: float) -> Outcome:
    """In a process group of its own, which is ended when its time is up (exit code 124)."""
    step = STEPS[name]
    command = [*(() if DRY else step.under), sys.executable, *step.command]
    print(f"== {name}: at most {seconds:.0f} s", flush=True)
    started = time.monotonic()
    with (OUT / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"== {name}\n")
        log.flush()
        code = _run(command, {**environment(), **dict(step.environment)}, seconds, log.fileno())
    outcome = Outcome(name, code, round(time.monotonic() - started, 1))
    print(f"== {name}: exit code {code} after {outcome.seconds} s", flush=True)
    if code:
        lines = (OUT / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(line[:300] for line in lines[-TAIL:]), flush=True)
    return outcome


def _run(command: list[str], variables: dict[str, str], seconds: float, log: int) -> int:
    try:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        os.write(log, f"{command[0]} cannot be started: {error}\n".encode())
        return 127
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def environment() -> dict[str, str]:
    """Of every step: the project's packages where they lie, and what `install` put into its folder."""
    paths = [SITE, REPOSITORY, REPOSITORY / "export", REPOSITORY / "kernels"]
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = {**os.environ, "OUT": str(OUT), "PYTHONPATH": os.pathsep.join([*map(str, paths), *before])}
    return found | {"PYTHONUNBUFFERED": "1", "ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    main()
