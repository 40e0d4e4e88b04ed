"""What every inference runtime offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Device: TypeAlias = Literal["cpu", "cuda"]
Tensors: TypeAlias = Mapping[str, NDArray[np.float32]]


class Session(Protocol):
    """One loaded graph."""

    @property
    def provider(self) -> str:
        """What really runs the graph, for the report."""

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        """Inputs by port name -> outputs by port name.

        Raises:
            BackendError: the runtime failed.
        """

    def close(self) -> None:
        """Free the graph's memory; the session cannot be used afterwards."""
