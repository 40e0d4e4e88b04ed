"""Warnings of commands: on standard error, one line each."""

from __future__ import annotations

import click

from masksam_deploy.base.text import one_line


def warn(text: str) -> None:
    """Say what somebody should know though the command goes on."""
    click.echo(f"warning: {one_line(text, limit=1000)}", err=True)
