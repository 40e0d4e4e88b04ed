"""Windows of real scans, as the network sees them, and what every graph is fed when the chain runs on them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import OutputError, ScanError
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.directory import Bundle, reporting_writes
from masksam_deploy.io import read_volume
from masksam_deploy.io.cases import ScanFiles, digest
from masksam_deploy.runtimes.onnxruntime import OnnxRuntimeSession
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.tiles import cut_windows

Window: TypeAlias = NDArray[np.float32]
Progress: TypeAlias = Callable[[str, int, int], None]

MOST_WINDOWS = 32
"""More change percentiles by less than their own scatter, and every one is a run of the network."""
FEWEST_WINDOWS = 8
FLAT_SHARE = 0.999
"""A window with this share of one single value shows the network nothing."""


@dataclass(frozen=True)
class CalibrationWindows:
    """What ranges are measured on.

    Attributes:
        windows: `[1, C, T, P, P]` each, normalised.
        scans: name of every scan that gave windows -> SHA-256 of its voxels and grid.
    """

    windows: tuple[Window, ...]
    scans: dict[str, str]

    @property
    def sha256(self) -> str:
        """Of all scans: one number for the provenance of what was calibrated."""
        text = "".join(f"{self.scans[name]}\n" for name in sorted(self.scans))
        return hashlib.sha256(text.encode()).hexdigest()


def calibration_windows(
    bundle: Bundle, scans: Sequence[ScanFiles], *, most: int = MOST_WINDOWS, fewest: int = FEWEST_WINDOWS
) -> CalibrationWindows:
    """Windows spread evenly over all scans, by the product's own preprocessing.

    Args:
        bundle: whose preprocessing and patch size apply.
        scans: at least one.
        most: windows in all.
        fewest: below which ranges mean nothing.

    Raises:
        ScanError: a scan cannot be read, is given twice, or shows nothing; or there are too few windows.
    """
    if len(scans) > most:
        raise ScanError(
            f"found {len(scans)} calibration scans for {most} windows, expected at most as many scans as windows; "
            "allow more windows, or name fewer scans"
        )
    recipe = bundle.manifest.recipe
    windows: list[Window] = []
    digests: dict[str, str] = {}
    for number, scan in enumerate(scans):
        volume = read_volume(scan.paths)
        sha256 = digest(volume)
        twin = next((name for name, known in digests.items() if known == sha256), None)
        if twin is not None:
            raise ScanError(f"{shown(scan.name)}: found the same scan as {shown(twin)}, expected different ones")
        digests[_unique(scan.name, digests)] = sha256
        data = prepare(volume, recipe).data
        useful = [at for at, window in enumerate(cut_windows(data, bundle.patch_size, recipe)) if not _flat(window)]
        if not useful:
            raise ScanError(
                f"{shown(scan.name)}: found no contrast in any window, expected a scan like those the network is for"
            )
        share = (most - len(windows)) // (len(scans) - number)  # at least one, as there are no more scans than windows
        chosen = set(_spread(useful, share))  # overlapping windows of a scan together are eight times its size
        windows.extend(window for at, window in enumerate(cut_windows(data, bundle.patch_size, recipe)) if at in chosen)
    if len(windows) < fewest:
        raise ScanError(
            f"found {len(windows)} windows in {len(scans)} calibration scans, expected at least {fewest}; name more"
        )
    return CalibrationWindows(tuple(windows), digests)


class GraphFeeds:
    """What every graph of a bundle receives when the float32 chain runs on some windows, kept on disk.

    Use it as a context manager. The taps of a full-size network are hundreds of megabytes per window, so no more than
    one window is in memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        windows: Sequence[Window],
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.bundle = bundle
        self.count = len(windows)
        self._folder = tempfile.TemporaryDirectory(prefix="masksam-feeds-")
        try:
            self._check_room()
            self._keep_images(windows)
            for graph in bundle.manifest.graphs:
                session = OnnxRuntimeSession(graph, bundle.graph_path(graph.name), threads=threads)
                for number, feeds in enumerate(self.of(graph.name)):
                    self._keep(number, session.run(feeds))
                    if progress:
                        progress(f"running the float32 {graph.name}", number + 1, self.count)
                session.close()
        except BaseException:
            self.close()
            raise

    def of(self, graph: str) -> Iterator[dict[str, Window]]:
        """The inputs of one graph by port name, window after window."""
        ports = next(g.inputs for g in self.bundle.manifest.graphs if g.name == graph)
        for number in range(self.count):
            yield {port.name: self.tensor(number, port.name) for port in ports}

    def tensor(self, window: int, name: str) -> Window:
        """One port's tensor for one window."""
        array: Window = np.load(self._path(window, name), allow_pickle=False)
        return array

    def close(self) -> None:
        """Remove everything from the disk."""
        self._folder.cleanup()

    def __enter__(self) -> GraphFeeds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_room(self) -> None:
        """Refuse before the work what would fill the disk, or a memory file system."""
        ports = {port.name: port for graph in self.bundle.manifest.graphs for port in (*graph.inputs, *graph.outputs)}
        needed = 4 * self.count * sum(prod(int(size) for size in port.shape[1:]) for port in ports.values())
        free = shutil.disk_usage(self._folder.name).free
        if needed > free:
            raise OutputError(
                f"the folder for temporary files, {shown(tempfile.gettempdir())}: found {free / 2**30:.1f} GiB free, "
                f"expected {needed / 2**30:.1f} for what {self.count} windows pass from graph to graph; set TMPDIR to "
                "a larger disk, or use fewer windows"
            )

    def _keep_images(self, windows: Sequence[Window]) -> None:
        for number, window in enumerate(windows):
            self._keep(number, {"image": window})

    def _keep(self, window: int, tensors: dict[str, Window]) -> None:
        with reporting_writes(Path(self._folder.name)):
            for name, tensor in tensors.items():
                np.save(self._path(window, name), tensor, allow_pickle=False)

    def _path(self, window: int, name: str) -> Path:
        return Path(self._folder.name) / f"{window}-{name}.npy"


def _flat(window: Window) -> bool:
    """Whether nearly all of a window is one value: air, or padding."""
    values, counts = np.unique(window, return_counts=True)
    return bool(counts.max() >= FLAT_SHARE * window.size) or len(values) == 1


def _spread(numbers: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly."""
    if len(numbers) <= count:
        return numbers
    return [numbers[round(place)] for place in np.linspace(0, len(numbers) - 1, count)]


def _unique(name: str, taken: Mapping[str, str]) -> str:
    """Folders of one name are usual: `SAX` of every patient."""
    numbers = (f"{name} ({number})" for number in range(2, len(taken) + 2))
    return name if name not in taken else next(other for other in numbers if other not in taken)
