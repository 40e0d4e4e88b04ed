"""Some of the project's tests on a GPU; a dry run only collects them, and fails if the selection is empty.

python -m benchmarks.gpu.run_tests machinery
"""

from __future__ import annotations

import argparse
import sys

import pytest

from benchmarks.gpu.place import dry
from benchmarks.gpu.project import TESTS
from benchmarks.gpu.results import REPOSITORY, Results

GPU_ALONE = ("-m", "gpu", "--require-gpu")
QUIET = ("-q", "-p", "no:cacheprovider", "-W", "ignore", "-rA", f"--rootdir={REPOSITORY}")


def main() -> None:
    """Run one selection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selection", choices=TESTS)
    selection = parser.parse_args().selection
    chosen = TESTS[selection]
    marked = GPU_ALONE if chosen.gpu_alone else ()
    words = ("-k", chosen.words) if chosen.words else ()
    only = ("--collect-only",) if dry() else ()
    counts = Counts()
    code = pytest.main([*QUIET, *marked, *words, *only, *chosen.files], plugins=[counts])
    Results("tests").put(selection, {"exit_code": int(code), **vars(counts)})
    sys.exit(int(code))


class Counts:
    """A plugin of pytest that counts tests: chosen, passed, failed, skipped."""

    def __init__(self) -> None:
        self.chosen = self.passed = self.failed = self.skipped = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """After the choice."""
        self.chosen = len(session.items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """After the set-up, the call and the end of every test."""
        self.passed += report.passed and report.when == "call"
        self.failed += report.failed
        self.skipped += report.skipped


if __name__ == "__main__":
    main()
