"""A worker that is a new interpreter, where no server forks workers."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from masksam_deploy.base.isolation.limits import reset_signals
from masksam_deploy.base.isolation.wire import Wire


def main() -> None:
    """Serve the process that started this one, through standard input and output."""
    reset_signals()
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a library prints must not come between messages.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    module = import_module(sys.argv[1])
    for name in module.PRELOAD:
        import_module(name)
    module.serve(Wire(reader, writer))
    sys.exit(0)
