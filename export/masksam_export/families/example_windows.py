"""Windows to verify a network with that takes normalised intensities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from masksam_export.families.base import Float


def example_windows(shape: tuple[int, int, int, int], seed: int = 0) -> dict[str, Float]:
    """Two windows: seeded noise, and bright balls on a gradient, each of mean 0 and standard deviation 1.

    Args:
        shape: of a window, `[C, T, H, W]`.
        seed: of the noise and the balls.

    Returns:
        Images `[1, C, T, H, W]` by name.
    """
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal(shape)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape[1:]), indexing="ij")
    structured = np.empty(shape)
    for channel in range(shape[0]):
        structured[channel] = 0.5 * grid[1] + 0.25 * grid[2]
        for _ in range(4):
            centre, radius = generator.uniform(-0.6, 0.6, 3), generator.uniform(0.15, 0.5)
            distance = sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True))
            structured[channel] += generator.uniform(0.5, 2.0) * (distance < radius**2)
    return {name: _normalised(array) for name, array in (("noise", noise), ("structured", structured))}


def _normalised(array: NDArray[np.float64]) -> Float:
    return ((array - array.mean()) / max(array.std(), 1e-8)).astype(np.float32)[None]
