"""Standard output after its reader has left."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def discard_stdout() -> None:
    """Discard all further output, because a reader such as `| head` has seen enough.

    Otherwise every further line would raise `BrokenPipeError`, the last one when Python flushes at exit.
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
