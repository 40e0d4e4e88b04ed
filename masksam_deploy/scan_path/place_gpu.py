"""Whether a scan's scores stay on the GPU, and what takes them there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.memory import size_text
from masksam_deploy.bundle.recipe import Recipe
from masksam_deploy.runtimes.base import ScoresOnGpu
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.gpu_arrays import Arrays
from masksam_deploy.scan_path.labels_gpu import bytes_of_labels, labels_on_gpu, why_not_on_gpu
from masksam_deploy.scan_path.resample import Shape3
from masksam_deploy.scan_path.sums_gpu import GpuSums, bytes_of_sums
from masksam_deploy.scan_path.tiles import padded_shape

_PREDICTS_ON_HOST = (
    "--scores-on gpu: found a network whose scores come to the host, expected an engine of TensorRT or TensorRT for "
    "RTX; build one with 'masksam-deploy build-engine', or leave --scores-on out"
)


@dataclass(frozen=True)
class GpuScores:
    """Keeps the scores of a network on the GPU.

    Attributes:
        network: whose they are.
        arrays: what computes.
    """

    network: ScoresOnGpu
    arrays: Arrays

    def why_not(
        self, frame: ScanFrame, recipe: Recipe, classes: int, patch: Shape3, batch: int, mirrored: bool
    ) -> str | None:
        """Why this scan's scores have to come to the host, in words; None if they need not.

        Args:
            frame: of the scan.
            recipe: of the bundle.
            classes: K.
            patch: (T, P, P).
            batch: windows at once.
            mirrored: whether predictions of mirrored windows are averaged.
        """
        why_not = why_not_on_gpu(recipe)
        if why_not:
            return why_not
        height, width = padded_shape(frame.network_shape, patch, recipe.windows)[1:]
        needed = bytes_of_sums(classes, patch, (height, width), batch, mirrored)
        needed += bytes_of_labels(classes, frame.network_shape[1:], frame.cropped_shape[1:])
        spare = self.network.spare_vram()
        if spare is not None and needed > spare:
            return f"they need {size_text(needed)} of GPU memory besides the network, to be had are {size_text(spare)}"
        return None

    def predict_all(self, images: Iterator[NDArray[np.float32]]) -> Iterator[Any]:
        """Images to scores on the GPU."""
        return self.network.predict_on_gpu(images)

    @property
    def sums(self) -> Any:
        """See `windows.Pipeline`."""
        return partial(GpuSums, self.arrays)

    @property
    def labels(self) -> Any:
        """As `labels_host.labels_from_scores`, for planes on the GPU."""
        return partial(labels_on_gpu, self.arrays)


def gpu_scores(network: object, open_arrays: Callable[[], Arrays]) -> GpuScores:
    """Keep this network's scores on the GPU.

    Raises:
        BackendError: it gives them to the host, or the GPU does not work.
        MissingDependencyError: what `open_arrays` needs is not installed.
    """
    if not isinstance(network, ScoresOnGpu):
        raise BackendError(_PREDICTS_ON_HOST)
    return GpuScores(network, open_arrays())
