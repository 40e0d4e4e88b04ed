"""Tensors one behind the other in one block of memory, as the worker gives the results of a run.

One block for each tensor would take a file descriptor or two for each: a calibration asks for many hundreds at once,
and a process may have 1,024 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
"""Bytes: of a cache line, and more than any element needs."""


class Described(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of it, and of the gap behind it."""
        size = np.dtype(self.dtype).itemsize * prod(self.shape)
        return -(-size // _ALIGNMENT) * _ALIGNMENT


def packed_size(tensors: Sequence[Described]) -> int:
    """Bytes of the block that holds them all."""
    return sum(tensor.size for tensor in tensors)


def unpacked(block: NDArray[np.uint8], tensors: Sequence[Described]) -> list[NDArray[Any]]:
    """The tensors as views of their block.

    Raises:
        ValueError, OverflowError: a shape is none that an array can have.
    """
    arrays: list[NDArray[Any]] = []
    start = 0
    for tensor in tensors:
        count = prod(tensor.shape)
        arrays.append(np.frombuffer(block, tensor.dtype, count, start).reshape(tensor.shape))
        start += tensor.size
    return arrays
