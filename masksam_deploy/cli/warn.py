"""Warnings of commands: on standard error, one line each."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from masksam_deploy.base.text import one_line


def warn(text: str) -> None:
    """Print what somebody should know though the command goes on."""
    # `sys.stderr` by name: while a progress bar is shown, rich stands there, and click by itself would write past it.
    click.echo(f"warning: {one_line(text, limit=1000)}", file=sys.stderr, err=True)


def warn_of_scans(paths: Iterable[Path]) -> None:
    """Print the warnings of scans, each once, from their headers alone.

    Raises:
        ScanError, MemoryLimitError: as `read_volume`.
    """
    from masksam_deploy.io.isolated_scan import IsolatedScan

    found: dict[str, None] = {}
    for path in paths:
        with IsolatedScan(path) as scan:
            found |= dict.fromkeys(scan.warnings)
    for warning in found:
        warn(warning)
