"""Scores that stay on the GPU: whether there is room for a scan's, and what takes them there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.memory import size_text
from masksam_deploy.runtimes.base import ScoresOnGpu
from masksam_deploy.scan_path.decision import LabelMap
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.gpu_arrays import Arrays
from masksam_deploy.scan_path.labels_gpu import bytes_of_labels, labels_on_gpu, why_not_on_gpu
from masksam_deploy.scan_path.place import ScoresOn, Work
from masksam_deploy.scan_path.sums_gpu import GpuSums, bytes_of_sums
from masksam_deploy.scan_path.tiles import padded_shape
from masksam_deploy.scan_path.windows import MakeSums

_PREDICTS_ON_HOST = (
    "--scores-on gpu: found a network whose scores come to the host, expected an engine of TensorRT or TensorRT for "
    "RTX; build one with 'masksam-deploy build-engine', or leave --scores-on out"
)


@dataclass(frozen=True)
class GpuPlace:
    """On the GPU; see `place.Place`.

    Attributes:
        network: whose scores they are.
        work: of the segmenter.
        arrays: what computes.
    """

    network: ScoresOnGpu
    work: Work
    arrays: Arrays
    name: ScoresOn = "gpu"

    def why_not(self, frame: ScanFrame) -> str | None:
        """See `Place`: the recipe wants what only the host does, or there is too little memory."""
        work = self.work
        why_not = why_not_on_gpu(work.recipe)
        if why_not:
            return why_not
        height, width = padded_shape(frame.network_shape, work.patch, work.recipe.windows)[1:]
        needed = bytes_of_sums(work.classes, work.patch, (height, width), work.batch, work.mirrored)
        needed += bytes_of_labels(work.classes, frame.network_shape[1:], frame.cropped_shape[1:])
        spare = self.network.spare_vram()
        if spare is not None and needed > spare:
            return f"they need {size_text(needed)} of GPU memory besides the network, to be had are {size_text(spare)}"
        return None

    def predict_all(self, images: Iterator[NDArray[np.float32]]) -> Iterator[Any]:
        """See `Place`."""
        return self.network.predict_on_gpu(images)

    @property
    def sums(self) -> MakeSums:
        """See `Place`."""
        return partial(GpuSums, self.arrays)

    def label_map(self, planes: Iterable[tuple[int, Any]], frame: ScanFrame) -> LabelMap:
        """See `Place`: only labels come to the host."""
        return labels_on_gpu(self.arrays, planes, frame, self.work.recipe.scores, self.work.labels)

    def release(self) -> None:
        """See `Place`: the next scan asks how much there is."""
        self.arrays.release()


def gpu_place(network: object, work: Work, open_arrays: Callable[[], Arrays]) -> GpuPlace:
    """Keep a network's scores on the GPU.

    Args:
        network: whose scores they are.
        work: of the segmenter.
        open_arrays: opens the array library.

    Raises:
        BackendError: the network gives its scores to the host, or the GPU does not work.
        MissingDependencyError: what `open_arrays` needs is not installed.
    """
    if not isinstance(network, ScoresOnGpu):
        raise BackendError(_PREDICTS_ON_HOST)
    return GpuPlace(network, work, open_arrays())
