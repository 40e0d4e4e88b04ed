"""What every inference runtime offers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Device: TypeAlias = Literal["cpu", "cuda"]
Tensors: TypeAlias = Mapping[str, NDArray[np.float32]]
Image: TypeAlias = NDArray[np.float32]
"""Windows as the network takes them, `[B, C, T, P, P]`."""
Scores: TypeAlias = NDArray[np.float32]
"""What it says of them, `[B, K, T, P, P]`."""

IMAGE = "image"
SCORES = "semseg"

_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Session(Protocol):
    """One loaded graph."""

    @property
    def device(self) -> Device:
        """Where it runs."""

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


class Network(Protocol):
    """All graphs of a bundle as one function, whatever runs them."""

    @property
    def device(self) -> Device:
        """Where it runs, for the report."""

    @property
    def batch(self) -> int:
        """How many windows it takes at once, at most."""

    @property
    def engine(self) -> str | None:
        """The name of the engine that runs; None for the bundle's own graphs."""

    @property
    def precisions(self) -> Mapping[str, str]:
        """Of each graph, such as fp16."""

    @property
    def precision(self) -> str:
        """The same for people; see `precision_in_words`."""

    @property
    def providers(self) -> dict[str, str]:
        """What really runs each graph, for the report."""

    def __call__(self, image: Image) -> Scores:
        """Run all graphs on up to `batch` windows. The result's memory may be used again by later calls.

        Raises:
            BackendError: the runtime failed, or a graph gave another shape than it declares.
        """

    def predict_all(self, images: Iterator[Image]) -> Iterator[Scores]:
        """The same for one image after the other, in their order; may take some ahead of giving their scores.

        Scores are valid until the next ones are asked for.
        """

    def close(self) -> None:
        """Free all memory; the network cannot be used afterwards."""


@runtime_checkable
class ScoresOnGpu(Protocol):
    """What a network offers besides if its scores can stay on the GPU."""

    def predict_on_gpu(self, images: Iterator[Image]) -> Iterator[Any]:
        """As `Network.predict_all`, but the scores have a `shape` and speak `__cuda_array_interface__`."""

    def spare_vram(self) -> int | None:
        """Bytes of GPU memory that others may take: what is free, and allowed; None if nothing says."""


def precision_in_words(precisions: Mapping[str, str]) -> str:
    """In one word, or graph by graph if they differ."""
    names = {graph: _NAMES.get(precision, precision) for graph, precision in precisions.items()}
    if len(set(names.values())) == 1:
        return next(iter(names.values()))
    return ", ".join(f"{graph} {name}" for graph, name in names.items())
