"""Damaged and hostile files by the thousand: `python -m tests.fuzz.run -o RESULT.json [--count 10000] [--seed 1]`.

Each kind runs in processes of its own, which stand for the product's main process. If one dies or does not go on, that
is a fault of the case at which it stopped, and another process takes the next one. The result counts what became of the
files of each kind; any fault makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from tests.fuzz.judges import JUDGES, FaultError, workplace

SHARES = {"images": 0.42, "dicom": 0.31, "checkpoints": 0.2, "archives": 0.045, "bundles": 0.02, "batches": 0.005}
"""Of all cases. One of a bundle is a run of the command line, one of `batches` is a run of it on 25 files."""
PATIENCE = 150
"""Seconds without a word, after which a process counts as hung; a case takes milliseconds to seconds."""


@dataclass
class Found:
    """What became of the files of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0


def run_kind(kind: str, seed: int, count: int) -> Found:
    """Judge so many files of a kind, in as many processes as it takes."""
    found = Found()
    started = time.perf_counter()
    done = 0
    while done < count:
        command = [sys.executable, "-m", "tests.fuzz.run", "--judge", kind, str(seed), str(done), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            last, words = _follow(process, found)
            process.kill()
            said = process.stderr.read()[-2000:] if process.stderr else ""
        done += words
        if done < count:  # it ended before its work did
            done += 1
            found.faults.append({"case": last, "fault": f"the process ended ({process.returncode}): {said}"})
    found.seconds = time.perf_counter() - started
    return found


def _follow(process: subprocess.Popen[str], found: Found) -> tuple[str, int]:
    """Take what a process says of its cases; the last one that it began, and how many it finished."""
    assert process.stdout is not None
    last, words = "", 0
    with ThreadPoolExecutor(1) as reader:
        while True:
            line = reader.submit(process.stdout.readline)
            try:
                text = line.result(PATIENCE)
            except TimeoutError:
                process.kill()
                found.faults.append({"case": last, "fault": f"it hung for {PATIENCE} s"})
                return last, words
            if not text:
                return last, words
            said = json.loads(text)
            last = said["case"]
            if "outcome" in said:
                words += 1
                found.outcomes[said["outcome"]] += 1
                found.slowest = max(found.slowest, said["seconds"])
            elif "fault" in said:
                words += 1
                found.faults.append({"case": last, "fault": said["fault"]})


def judge(kind: str, seed: int, start: int, end: int, out: IO[str]) -> None:
    """In a process of its own: judge cases from one number to another, and say what became of each."""

    def say(**what: object) -> None:
        out.write(json.dumps(what) + "\n")
        out.flush()

    with workplace() as work:
        for name, case in islice(JUDGES[kind](seed, Path(work)), start, end):
            say(case=name)
            began = time.perf_counter()
            try:
                outcome = case()
                say(case=name, outcome=outcome, seconds=round(time.perf_counter() - began, 3))
            except FaultError as fault:
                say(case=name, fault=str(fault)[:3000])
            except Exception as error:  # noqa: BLE001  whatever the product raises, it is a fault of this case alone
                say(case=name, fault=f"{type(error).__name__}: {error}"[:3000])


def main() -> int:
    """Run all kinds, two at a time, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", nargs=4, metavar=("KIND", "SEED", "START", "END"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(SHARES))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.judge:
        kind, (seed, start, end) = arguments.judge[0], map(int, arguments.judge[1:])
        judge(kind, seed, start, end, sys.stdout)
        return 0
    counts = {kind: max(1, round(arguments.count * SHARES[kind])) for kind in arguments.kinds.split(",")}
    with ThreadPoolExecutor(arguments.processes) as threads:
        running = {kind: threads.submit(run_kind, kind, arguments.seed, count) for kind, count in counts.items()}
        results = {kind: work.result() for kind, work in running.items()}
    faults = sum(len(found.faults) for found in results.values())
    report = {
        "seed": arguments.seed,
        "python": platform.python_version(),
        "cases": sum(counts.values()),
        "faults": faults,
        "kinds": {
            kind: {
                "cases": counts[kind],
                **dict(sorted(found.outcomes.items())),
                "faults": found.faults[:50],
                "seconds": round(found.seconds, 1),
                "slowest_s": found.slowest,
            }
            for kind, found in results.items()
        },
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
