"""The array library: CuPy, or in tests NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.optional import OptionalPackage
from masksam_deploy.base.text import one_line

_CUPY = OptionalPackage("cupy", "cupy", "gpu-scores", "keeping scores on the GPU", "CuPy")


@dataclass(frozen=True)
class Arrays:
    """An array library with NumPy's interface, and what it has beyond it.

    Attributes:
        xp: the module.
        to_host: copies an array to the host; waits for it.
        finish: waits for all that was started: before memory that was read is written again by others.
        release: gives memory that is not used any more back to the GPU.
    """

    xp: Any
    to_host: Callable[[Any], NDArray[Any]]
    finish: Callable[[], None]
    release: Callable[[], None]


def open_cupy() -> Arrays:
    """CuPy, on the first GPU, whose primary context it shares with the network.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it does not load, or finds no GPU.
    """
    cupy = _CUPY.load()
    try:
        cupy.cuda.Device(0).use()
        cupy.zeros(1)
    except Exception as error:
        raise BackendError(
            f"CuPy finds no GPU that works ({one_line(str(error), limit=300)}), expected one with an NVIDIA driver; "
            "leave --scores-on gpu out, or see 'masksam-deploy doctor'"
        ) from error
    return Arrays(
        cupy,
        to_host=cupy.asnumpy,
        finish=lambda: cupy.cuda.get_current_stream().synchronize(),
        release=lambda: cupy.get_default_memory_pool().free_all_blocks(),
    )
