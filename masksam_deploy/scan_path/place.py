"""Where class scores are summed, resampled and decided: on the host or on a GPU, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.recipe import Recipe
from masksam_deploy.runtimes import Network
from masksam_deploy.scan_path.decision import LabelMap
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.resample import Shape3
from masksam_deploy.scan_path.windows import MakeSums

ScoresOn: TypeAlias = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Work:
    """What is the same for all scans of a segmenter.

    Attributes:
        recipe: of the bundle, with the step that was asked for.
        labels: what the K classes mean.
        patch: of a window, (T, H, W).
        batch: windows at once.
        mirrored: whether predictions of mirrored windows are averaged.
    """

    recipe: Recipe
    labels: Labels
    patch: Shape3
    batch: int
    mirrored: bool

    @property
    def classes(self) -> int:
        """K."""
        return len(self.labels.classes)


class Place(Protocol):
    """Takes scores from the network to labels."""

    @property
    def name(self) -> ScoresOn:
        """For reports."""

    @property
    def sums(self) -> MakeSums | None:
        """See `windows.Pipeline`."""

    def why_not(self, frame: ScanFrame) -> str | None:
        """Why a scan's scores cannot be here, in words; None if they can."""

    def predict_all(self, images: Iterator[NDArray[np.float32]]) -> Iterator[Any]:
        """Windows to their scores, which stay here; see `Network.predict_all`."""

    def label_map(self, planes: Iterable[tuple[int, Any]], frame: ScanFrame) -> LabelMap:
        """See `labels_host.labels_from_scores`."""

    def release(self) -> None:
        """Give memory back that the next scan will ask for."""


@dataclass(frozen=True)
class HostPlace:
    """In the host's memory, as any recipe wants it.

    Attributes:
        network: whose scores they are.
        work: of the segmenter.
        threads: that resample and decide.
    """

    network: Network
    work: Work
    threads: int
    name: ScoresOn = "cpu"
    sums: MakeSums | None = None

    def why_not(self, frame: ScanFrame) -> str | None:
        """See `Place`: there is always a way."""
        return None

    def predict_all(self, images: Iterator[NDArray[np.float32]]) -> Iterator[Any]:
        """See `Place`."""
        return self.network.predict_all(images)

    def label_map(self, planes: Iterable[tuple[int, Any]], frame: ScanFrame) -> LabelMap:
        """See `Place`."""
        return labels_from_scores(planes, frame, self.work.recipe.scores, self.work.labels, threads=self.threads)

    def release(self) -> None:
        """See `Place`: arrays go when nobody holds them."""
