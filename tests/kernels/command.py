"""`masksam-kernels` as a person calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def masksam_kernels(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process where Triton compiles, anew, instead of interpreting."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "masksam_kernels", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as cache:
        environment["TRITON_CACHE_DIR"] = cache
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
