"""Option values that several commands share."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import click

FILE = click.Path(path_type=Path, readable=False)
"""A path; what is wrong with a file is said in our own one line."""


def size_in_bytes(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """'8G' -> bytes; by default what memory is free."""
    from masksam_deploy.base.memory import available_memory

    return optional_size(context, parameter, text) if text else available_memory()


def optional_size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """'8G' -> bytes; by default no limit."""
    from masksam_deploy.base.memory import parse_size

    try:
        return parse_size(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def share(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """A number from 0 to 1, or none."""
    if value is not None and not (isfinite(value) and 0 <= value <= 1):
        raise click.BadParameter(f"{value} is not in the range from 0 to 1")
    return value
