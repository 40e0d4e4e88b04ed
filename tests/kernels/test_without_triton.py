"""Machines for which Triton does not exist: macOS and Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT_TRITON = "import sys; sys.modules['triton'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def test_these_tests_are_skipped_with_a_reason_where_triton_is_missing() -> None:
    folder = Path(__file__).parent
    command = [sys.executable, "-c", WITHOUT_TRITON, str(folder), "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parents[1])
    modules = len(list(folder.glob("test_*.py")))
    assert f"{modules} skipped in" in done.stdout, done.stdout + done.stderr
    assert "needs Triton, which exists for Linux only" in done.stdout
