"""Patches for training: cut from preprocessed cases at random places, in one resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from masksam_export.families.masksam.training.augmentation import (
    Augmentation,
    Random,
    change_intensities,
    random_matrix,
    shade,
)
from masksam_export.families.masksam.training.cases import PreparedCase
from masksam_export.families.masksam.training.targets import PADDING

MOST_PLACES = 30_000
"""Voxels remembered of each class of a case, to centre patches on."""


@dataclass(frozen=True)
class Patch:
    """Attributes: image `[C, T, P, P]` float32, labels `[T, P, P]` int64 (`PADDING` outside the scan)."""

    image: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Source:
    """A case to cut patches from.

    Attributes:
        image: `[C, D, H, W]`, float32.
        labels: `[D, H, W]`, integers.
        places: voxels `[n, 3]` of each foreground class that the case holds, some if there are very many.
    """

    image: Tensor
    labels: Tensor
    places: tuple[Tensor, ...]

    @classmethod
    def of(cls, case: PreparedCase) -> Source:
        """A prepared case, its memory shared."""
        return cls(torch.from_numpy(case.image), torch.from_numpy(case.labels), _some_places(case.labels))


class PatchSampler:
    """Draws patches from prepared cases.

    Args:
        cases: where patches come from.
        patch: (T, P, P) in voxels of the network grid.
        augmentation: how patches vary.
        foreground_share: of the patches, how many are centred on a voxel of a foreground class (nnU-Net: 0.33).
        generator: one seed gives one sequence of patches.
    """

    def __init__(
        self,
        cases: Sequence[Source],
        patch: tuple[int, int, int],
        augmentation: Augmentation,
        foreground_share: float,
        generator: torch.Generator,
    ) -> None:
        self._cases = cases
        self._patch = patch
        self._augmentation = augmentation
        self._foreground_share = foreground_share
        self._random = Random(generator)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images `[B, C, T, P, P]` and labels `[B, T, P, P]`."""
        patches = [self.draw() for _ in range(size)]
        return torch.stack([p.image for p in patches]), torch.stack([p.labels for p in patches])

    def draw(self) -> Patch:
        """One patch of a random case."""
        random = self._random
        case = self._cases[random.index(len(self._cases))]
        centre = self._foreground_centre(case) if random.chance(self._foreground_share) else None
        matrix = random_matrix(self._augmentation, random)
        patch = cut(case.image, case.labels, self._patch, centre or self._any_centre(case), matrix)
        image, strength = patch.image, self._augmentation.shading
        if strength > 0 and random.chance(0.5):
            image = shade(image, strength, random)
        return Patch(change_intensities(image, self._augmentation.intensity, random), patch.labels)

    def _any_centre(self, case: Source) -> tuple[float, float, float]:
        """So that a patch without rotation lies inside the scan where the scan is large enough."""
        z, y, x = (self._axis_centre(size, side) for size, side in zip(case.labels.shape, self._patch, strict=True))
        return z, y, x

    def _axis_centre(self, size: int, side: int) -> float:
        if size <= side:  # padded as in inference, the smaller half first
            return side / 2 - (side - size) // 2
        return self._random.index(size - side + 1) + side / 2

    def _foreground_centre(self, case: Source) -> tuple[float, float, float] | None:
        """A voxel of a random foreground class, moved inside by as much as an unrotated patch would stick out."""
        if not case.places:
            return None
        voxels = case.places[self._random.index(len(case.places))]
        voxel = voxels[self._random.index(len(voxels))].tolist()
        z, y, x = (
            min(max(place + side % 2 / 2, side / 2), size - side / 2) if size > side else self._axis_centre(size, side)
            for place, size, side in zip(voxel, case.labels.shape, self._patch, strict=True)
        )
        return z, y, x


def cut(
    image: Tensor,
    labels: Tensor,
    patch: tuple[int, int, int],
    centre: tuple[float, float, float],
    matrix: Tensor,
) -> Patch:
    """Sample a patch: image linear with zeros outside, labels nearest with `PADDING` outside.

    Only the part of the volume that the patch needs is read.

    Args:
        image: `[C, D, H, W]`.
        labels: `[D, H, W]`.
        patch: shape (T, P, P) of the result.
        centre: of the patch, in voxel edges: 0 is the outer edge of the first voxel.
        matrix: `[3, 3]`, offsets in the patch to offsets in the volume, axes z, y, x.
    """
    offsets = torch.stack(
        torch.meshgrid(*(torch.arange(side) + 0.5 - side / 2 for side in patch), indexing="ij"), dim=-1
    )
    edges = offsets @ matrix.T + torch.tensor(centre)
    box = _needed(edges, labels.shape)
    start = torch.tensor([part.start for part in box], dtype=torch.float32)
    shape = torch.tensor([part.stop - part.start for part in box], dtype=torch.float32)
    # grid_sample wants x, y, z from -1 to 1 over the outer edges.
    grid = (2 * (edges - start) / shape - 1).flip(-1)[None]
    every_channel = (slice(None), *box)
    sampled = functional.grid_sample(image[every_channel][None], grid, align_corners=False)[0]
    # Shifted by one, so that the zeros outside become PADDING.
    shifted = (labels[box].float() - PADDING)[None, None]
    nearest = functional.grid_sample(shifted, grid, mode="nearest", align_corners=False)[0, 0]
    return Patch(sampled, nearest.long() + PADDING)


def _needed(edges: Tensor, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """The voxels that linear interpolation at `edges [..., 3]` reads, one at least along each axis."""
    flat = edges.reshape(-1, 3)
    lows, highs = flat.amin(dim=0).tolist(), flat.amax(dim=0).tolist()
    z, y, x = (
        slice(start := min(max(floor(low) - 1, 0), size - 1), max(min(ceil(high) + 1, size), start + 1))
        for low, high, size in zip(lows, highs, shape, strict=True)
    )
    return z, y, x


def _some_places(labels: NDArray[np.integer[Any]]) -> tuple[Tensor, ...]:
    """Of each class but the background, up to `MOST_PLACES` voxels `[n, 3]`, evenly from all of them."""
    inside = np.flatnonzero(labels)
    values = labels.reshape(-1)[inside]
    chosen = []
    for value in np.unique(values):
        every = inside[values == value]
        some = every[:: -(-len(every) // MOST_PLACES)]
        chosen.append(torch.from_numpy(np.stack(np.unravel_index(some, labels.shape), axis=1).astype(np.int16)))
    return tuple(chosen)
