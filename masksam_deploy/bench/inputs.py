"""What is segmented: a scan given, the bundle's own validation scan, or a synthetic one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.recipe import AxisSize, Spacing
from masksam_deploy.engines.gate import validation_cases
from masksam_deploy.io import read_volume
from masksam_deploy.io.cases import digest
from masksam_deploy.io.write_scan import write_scan
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.tiles import cut_windows, window_count, with_step

Window: TypeAlias = NDArray[np.float32]
Origin: TypeAlias = Literal["given", "validation", "synthetic"]

_AXIS_ALIGNED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_PATCHES = 1.5
"""Of a synthetic scan along each axis: two windows each, so that accumulating is measured."""


@dataclass(frozen=True)
class BenchScan:
    """A scan on disk.

    Attributes:
        name: for people.
        origin: where it comes from.
        paths: one per channel.
        reference: a label map on its grid, if there is one.
        sha256: over its files.
    """

    name: str
    origin: Origin
    paths: tuple[Path, ...]
    reference: Path | None
    sha256: str


@contextmanager
def bench_scan(bundle: Bundle, given: tuple[Path, ...] = ()) -> Iterator[BenchScan]:
    """The scan given, else the bundle's first validation scan, else a synthetic one that exists until the end."""
    if given:
        yield _found(given[0].name, "given", given, None)
        return
    cases = validation_cases(bundle)
    if cases:
        yield _found(cases[0].scan.name, "validation", cases[0].scan.paths, cases[0].reference)
        return
    with TemporaryDirectory() as folder:
        scan = synthetic_scan(bundle)
        paths = tuple(Path(folder) / f"synthetic_{number:04d}.nii.gz" for number in range(bundle.channels))
        for number, path in enumerate(paths):
            write_scan(scan, number, path)
        yield _found("synthetic", "synthetic", paths, None)


def synthetic_scan(bundle: Bundle, shape: tuple[int, int, int] | None = None) -> Volume:
    """Seeded noise with a bright ball, whole numbers as from a scanner, on a grid near the network's.

    Args:
        bundle: for its channels, patch and spacing.
        shape: voxels z, y, x; by default one and a half patches.
    """
    recipe = bundle.manifest.recipe.grid
    scan_axis = [recipe.transpose.index(axis) for axis in (0, 1, 2)]
    # A tenth finer than the network's grid: resampling must not be skipped.
    z, y, x = (0.9 * _spacing(recipe.size[axis]) for axis in scan_axis)
    if shape is None:
        patch = bundle.patch_size
        depth, height, width = (round(_PATCHES * patch[axis] / 0.9) for axis in scan_axis)
        shape = (depth, height, width)
    generator = np.random.default_rng(0)
    array = generator.integers(0, 100, (bundle.channels, *shape)).astype(np.float32)
    grid = np.ogrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    array[:, sum(axis**2 for axis in grid) < 0.3] += 100
    return Volume(array, Geometry(shape[::-1], (x, y, z), (0.0, 0.0, 0.0), _AXIS_ALIGNED))


def _spacing(size: AxisSize) -> float:
    """Of a network's axis in mm; 1 where the recipe states none."""
    return size.mm if isinstance(size, Spacing) else 1.0


def windows_of(bundle: Bundle, scan: BenchScan, count: int, step: float) -> list[Window]:
    """Up to `count` windows `[1, C, T, P, P]` of a scan, spread evenly over it.

    Raises:
        ScanError: it cannot be read or does not fit the model.
    """
    recipe = with_step(bundle.manifest.recipe, step)
    data = prepare(read_volume(scan.paths), recipe).data
    _, depth, height, width = data.shape
    total = window_count((depth, height, width), bundle.patch_size, recipe.windows)
    # Spread over the inside: the first and last windows hold mostly air.
    wanted = {int((number + 0.5) * total / min(count, total)) for number in range(min(count, total))}
    return [w for position, w in enumerate(cut_windows(data, bundle.patch_size, recipe)) if position in wanted]


def windows_sha256(windows: list[Window]) -> str:
    """Names what was measured on."""
    total = hashlib.sha256()
    for window in windows:
        total.update(np.ascontiguousarray(window).data)
    return total.hexdigest()


def _found(name: str, origin: Origin, paths: tuple[Path, ...], reference: Path | None) -> BenchScan:
    return BenchScan(name, origin, paths, reference, digest(read_volume(paths)))
