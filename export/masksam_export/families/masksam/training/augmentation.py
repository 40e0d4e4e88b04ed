"""Random changes of a patch: where it is cut from (one affine map) and how bright it is.

The set and its ranges follow nnU-Net's default augmentation, without its elastic and low-resolution steps; shading is
not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and ranges; the defaults are what `train` uses.

    Attributes:
        spacing: of the patch's voxels, axes z, y, x; angles are true in mm, not in voxels.
        rotation: largest angle in degrees, drawn uniformly; in the plane, and about all axes of `isotropic` data.
        isotropic: whether the depth may be rotated and scaled like the plane (nnU-Net: not where its spacing is more
            than three times as large).
        scale: smallest and largest magnification.
        flips: probability of mirroring each of the axes z, y, x.
        intensity: probability of each of the intensity changes.
        shading: largest coefficient of a smooth random gain on half of the patches, as coils shade MR images; 0: off.
    """

    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation: float = 30.0
    isotropic: bool = False
    scale: tuple[float, float] = (0.75, 1.35)
    spatial: float = 0.7
    flips: tuple[float, float, float] = (0.5, 0.5, 0.5)
    intensity: float = 0.25
    shading: float = 0.0


NO_AUGMENTATION = Augmentation(rotation=0.0, scale=(1.0, 1.0), spatial=0.0, flips=(0.0, 0.0, 0.0), intensity=0.0)


class Random:
    """Draws plain numbers from one seeded torch generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform(0.0, 1.0) < probability

    def index(self, count: int) -> int:
        """A whole number below `count`."""
        return int(torch.randint(count, (), generator=self.generator))


def random_matrix(augmentation: Augmentation, random: Random) -> Tensor:
    """`[3, 3]`: offsets from the patch's centre to offsets in the volume, both in voxels, axes z, y, x."""
    matrix = torch.eye(3)
    if random.chance(augmentation.spatial):
        planes = ((1, 2), (0, 1), (0, 2)) if augmentation.isotropic else ((1, 2),)
        for plane in planes:
            angle = random.uniform(-augmentation.rotation, augmentation.rotation)
            matrix = _rotation(angle, plane) @ matrix
        spacing = torch.tensor(augmentation.spacing)
        matrix = matrix * (spacing[None, :] / spacing[:, None])
        zoom = random.uniform(*augmentation.scale)
        depth_zoom = zoom if augmentation.isotropic else 1.0
        matrix = matrix / torch.tensor([depth_zoom, zoom, zoom])
    signs = [-1.0 if random.chance(probability) else 1.0 for probability in augmentation.flips]
    return matrix @ torch.diag(torch.tensor(signs))


def _rotation(degrees: float, plane: tuple[int, int]) -> Tensor:
    first, second = plane
    angle = degrees * pi / 180
    matrix = torch.eye(3)
    matrix[first, first] = matrix[second, second] = cos(angle)
    matrix[first, second], matrix[second, first] = -sin(angle), sin(angle)
    return matrix


def change_intensities(image: Tensor, probability: float, random: Random) -> Tensor:
    """Noise, blur, brightness, contrast and gamma on `[C, T, P, P]`, each with this probability."""
    if random.chance(probability):
        noise = torch.randn(image.shape, generator=random.generator).to(image)
        image = image + random.uniform(0.0, 0.3) * noise
    if random.chance(probability):
        image = _blur(image, random.uniform(0.5, 1.0))
    if random.chance(probability):
        image = image * random.uniform(0.75, 1.25)
    if random.chance(probability):
        image = _per_channel(_contrast, image, random.uniform(0.65, 1.5))
    if random.chance(probability):
        image = _per_channel(_gamma, image, random.uniform(0.7, 1.5))
    if random.chance(probability / 2):  # the same with light and dark exchanged
        image = -_per_channel(_gamma, -image, random.uniform(0.7, 1.5))
    return image


def shade(image: Tensor, strength: float, random: Random) -> Tensor:
    """A gain that is smooth in all directions and quadratic in the plane, on `[C, T, P, P]`, over the darkest value.

    Each coefficient of its logarithm is drawn up to `strength`; positions run from -1 to 1 on every axis.
    """
    depth, height, width = (torch.linspace(-1, 1, size, device=image.device) for size in image.shape[1:])
    z, y, x = depth[:, None, None], height[:, None], width
    along = [random.uniform(-strength, strength) for _ in range(4)]
    log_gain = along[0] * z + along[1] * y + along[2] * x + along[3] * (y**2 + x**2 - 2 / 3)
    darkest = image.amin(dim=(1, 2, 3), keepdim=True)
    return (image - darkest) * log_gain.exp() + darkest


def _per_channel(change: Callable[[Tensor, float], Tensor], image: Tensor, strength: float) -> Tensor:
    """Channels have units of their own, so ranges and means are theirs too."""
    return torch.stack([change(channel, strength) for channel in image])


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian, in the plane."""
    offsets = torch.arange(-3.0, 4.0, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = image.flatten(0, 1)[:, None]
    padded = functional.pad(planes, (3, 3, 3, 3), mode="replicate")
    rows = functional.conv2d(padded, kernel.reshape(1, 1, 7, 1))
    return functional.conv2d(rows, kernel.reshape(1, 1, 1, 7))[:, 0].reshape(image.shape)


def _contrast(image: Tensor, factor: float) -> Tensor:
    """Stretches about the mean and keeps the range."""
    mean = image.mean()
    return ((image - mean) * factor + mean).clamp(float(image.min()), float(image.max()))


def _gamma(image: Tensor, gamma: float) -> Tensor:
    """A power of the intensities between their extremes; mean and spread are kept."""
    low, span = image.min(), image.max() - image.min()
    if float(span) < 1e-6:  # a constant patch has no contrast to change
        return image
    curved = ((image - low) / span) ** gamma
    return (curved - curved.mean()) / curved.std().clamp_min(1e-6) * image.std() + image.mean()
