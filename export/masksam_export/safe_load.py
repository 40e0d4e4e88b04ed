"""Reads a torch file that may be hostile: only tensors and plain values come out, and nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masksam_deploy.errors import CheckpointError
from masksam_deploy.text import one_line

_SCALAR_NAMES = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")  # as numpy 2 and numpy 1 write it
_ADVICE_STARTS = ("Re-running `torch.load`", "In PyTorch 2.6", "Please file an issue", "This file can still be loaded")


def _float_scalar(dtype: np.dtype[Any], data: bytes = b"") -> Any:
    """What stands in for numpy's own reconstructor, which would allocate whatever width a file asks for."""
    if dtype.kind != "f" or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError(f"numpy scalar of type {dtype} is no plain float")
    return np.frombuffer(data, dtype=dtype)[0]


# What nnU-Net writes besides tensors and plain containers: float scalars in `logging` and `_best_ema`.
SAFE_GLOBALS: list[Any] = [
    *((_float_scalar, name) for name in _SCALAR_NAMES),
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
]
_ALLOWED_NAMES = frozenset([*_SCALAR_NAMES, "numpy.dtype", "numpy.dtypes.Float32DType", "numpy.dtypes.Float64DType"])


def load_mapping(path: Path) -> Mapping[str, Any]:
    """The dict that a torch file holds, its tensors mapped from the file where the format allows.

    Raises:
        CheckpointError: no file, damaged, no dict, or objects other than tensors and plain values; the message
            names them.
    """
    try:
        if not path.is_file():
            raise CheckpointError(
                f"checkpoint '{one_line(str(path))}' is not a file; expected checkpoint_final.pth or a state dict"
            )
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = _load(path)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(_why_unreadable(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint '{one_line(path.name)}' holds a {type(content).__name__}, expected a dict of weights"
        )
    return content


def _load(path: Path) -> Any:
    try:
        # Mapped, so that a 3 GB checkpoint is not held twice.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6


def _why_unreadable(path: Path, error: Exception) -> str:
    name = one_line(path.name)
    unsafe = _unsafe_types(path, error)
    if unsafe:
        return (
            f"checkpoint '{name}' contains objects other than tensors and plain values: {', '.join(unsafe)}; such "
            "objects can run code when loaded, so it was not loaded. Save the weights as plain tensors, "
            "torch.save({'network_weights': model.state_dict()}, ...), and pass --plans and --dataset"
        )
    return (
        f"checkpoint '{name}' cannot be read: {reason(error)}; "
        "expected a file written by torch.save, complete: copy it again or check where it came from"
    )


def _unsafe_types(path: Path, error: Exception) -> list[str]:
    """Names of what the safe unpickler would not make."""
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            found = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _ALLOWED_NAMES
    except Exception:  # noqa: BLE001  not a zip archive, or worse: torch's first error has to do
        found = set()
    found |= set(re.findall(r"(?:GLOBAL|of type|class) [`'\"<]*(?:class ')?([\w.]+\.[\w.]+)", str(error)))
    return sorted(one_line(item) for item in found - _ALLOWED_NAMES)


def reason(error: Exception) -> str:
    """What an exception says, on one line, without torch's advice to switch its safety off."""
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if line and not line.startswith(_ADVICE_STARTS)]
    text = re.split(r"Re-running `torch\.load`|\(1\) ", useful[0])[0] if useful else ""
    return one_line(text.strip().rstrip(".:") or type(error).__name__, limit=200)
