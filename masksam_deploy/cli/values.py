"""Option values that several commands share.

The choices repeat the literals of the run time, because importing those would make `--help` load numpy. A test holds
them to the originals.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import click

FILE = click.Path(path_type=Path, readable=False)
"""A path. The code that opens it says what is wrong with it, in one line."""

DEVICE = click.Choice(("cpu", "cuda"))
PRECISION = click.Choice(("fp32", "fp16", "bf16", "int8"))
TARGET = click.Choice(("onnxruntime", "tensorrt", "rtx"))
BACKEND = click.Choice(("auto", *TARGET.choices))
ACCUMULATOR = click.Choice(("float32", "float16"))
SCORES_ON = click.Choice(("cpu", "gpu"))
PROFILE = click.Choice(("fast", "balanced", "accurate"))
LABEL_SUFFIX = click.Choice((".nii.gz", ".nii", ".nrrd", ".mha"))
CALIBRATOR = click.Choice(("percentile", "entropy"))
BASELINE_MODE = click.Choice(("eager", "amp", "compile"))
THREADS = click.IntRange(1)


def available_or_size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes of a size such as '8G'; the memory that is free now if no size is given."""
    from masksam_deploy.base.memory import available_memory

    return optional_size(context, parameter, text) if text else available_memory()


def optional_size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Bytes of a size such as '8G'; None, which stands for no limit, if no size is given."""
    from masksam_deploy.base.memory import parse_size

    try:
        return parse_size(text) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def share(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """A number from 0 to 1; None if none is given."""
    if value is not None and not (isfinite(value) and 0 <= value <= 1):
        raise click.BadParameter(f"{value} is not in the range from 0 to 1")
    return value


def window_step(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """A distance between windows that `Segmenter` accepts; None if none is given."""
    from masksam_deploy.bundle.recipe import SMALLEST_STEP

    if value is not None and not (isfinite(value) and SMALLEST_STEP <= value <= 1):
        raise click.BadParameter(f"{value} is not in the range from {SMALLEST_STEP} to 1")
    return value
