"""The whole walk: a scan in, a label map on the scan's own grid out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from math import inf, prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, BundleError
from masksam_deploy.base.memory import require
from masksam_deploy.base.threads import usable_cores
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.recipe import SMALLEST_STEP
from masksam_deploy.io.grid import check_grid
from masksam_deploy.runtimes import Device, GraphChain, Network, open_chain
from masksam_deploy.scan_path.decision import LabelMap
from masksam_deploy.scan_path.frame import ScanFrame, scan_frame
from masksam_deploy.scan_path.gpu_arrays import open_cupy
from masksam_deploy.scan_path.place import HostPlace, Place, ScoresOn, Work
from masksam_deploy.scan_path.place_gpu import gpu_place
from masksam_deploy.scan_path.prepare import prepare
from masksam_deploy.scan_path.report import Report, Stopwatch, measure_labels, runtime_versions
from masksam_deploy.scan_path.resample import SLAB_BYTES
from masksam_deploy.scan_path.tiles import padded_shape, share_of, window_count, with_step
from masksam_deploy.scan_path.windows import Accumulator, Pipeline, Progress, stream_scores

ON_CPU = "scores_on_cpu_because"
"""In the report of a scan whose scores were to stay on the GPU and did not."""
BYTES_PER_VOXEL = 13
"""At least: the scan and its normalised copy in float32, the network's input, and the label map."""
FIXED_BYTES = 2**27
"""Buffers that do not grow with the scan."""
MOST_THREADS = 4
"""Outside the network: each thread has its slab, and more of them wait for the memory."""


class Segmentation(NamedTuple):
    """A label map `[Z, Y, X]` on the scan's grid, and the report about it."""

    labels: Volume
    report: Report


class Segmenter:
    """A loaded bundle, ready to segment any number of scans.

    Use it as a context manager, or call `close()`. It holds no state between calls.

    Args:
        bundle: a verified bundle, or where one lies.
        device: `cpu` or `cuda`; what is asked for is used, or there is an error.
        network: runs instead of the bundle's float32 graphs in ONNX Runtime (an engine, see `engines.run`); it is
            closed with the segmenter.
        tta: average over mirrored windows, along the axes that the bundle allows.
        accumulator: `float32`, or `float16` to repeat the official arithmetic to the bit.
        step: distance between windows as a share of the patch, in place of the bundle's own share; None for that.
        threads: for the network, and for what comes before and after it; by default all cores.
        max_ram: bytes that a scan may take besides the network.
        scores_on: where class scores are summed, resampled and decided. `gpu` needs a network that leaves them there
            (an engine of TensorRT), CuPy and `float32`; a scan for which the GPU has no room has its scores on the
            host all the same, and its report says why. **Not yet run on a GPU.**
        run_timeout: seconds that one run of one graph may take in ONNX Runtime; by default an hour.

    Raises:
        BundleError: the bundle is damaged.
        BackendError: the device is not available or refuses a graph, or scores cannot stay on the GPU.
        MissingDependencyError: no runtime is installed, or CuPy is not.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        device: Device = "cpu",
        network: Network | None = None,
        tta: bool = True,
        accumulator: Accumulator = "float32",
        step: float | None = None,
        threads: int | None = None,
        max_ram: int | None = None,
        scores_on: ScoresOn = "cpu",
        run_timeout: float | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        if not self.bundle.verified:
            raise BundleError(f"'{self.bundle.path}' was loaded without checking its hashes; load it with verify=True")
        if accumulator not in ("float16", "float32"):
            raise ValueError(f"accumulator '{accumulator}' is unknown, expected 'float16' or 'float32'")
        if step is not None and not SMALLEST_STEP <= step <= 1:
            raise ValueError(f"step is {step}, expected {SMALLEST_STEP} to 1 of the patch")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is {threads}, expected at least 1")
        if run_timeout is not None and not 0 < run_timeout < inf:
            raise ValueError(f"run_timeout is {run_timeout}, expected seconds, more than 0")
        self.mirror_axes = self.bundle.manifest.mirror_axes if tta else ()
        self._accumulator = accumulator
        self._recipe = with_step(self.bundle.manifest.recipe, step)
        self._max_ram = max_ram
        self._threads = min(threads or usable_cores(), MOST_THREADS)
        started = time.perf_counter()
        self._network = network or open_chain(self.bundle, device=device, threads=threads)
        self._load_seconds = time.perf_counter() - started
        if run_timeout is not None:
            self._limit_runs(run_timeout)
        self._work = Work(
            self._recipe,
            self.bundle.manifest.labels,
            self.bundle.patch_size,
            self._network.batch,
            bool(self.mirror_axes),
        )
        self._host = HostPlace(self._network, self._work, self._threads)
        self._place: Place = self._host if scores_on == "cpu" else self._on_gpu()

    def __call__(self, scan: Volume, progress: Progress | None = None) -> Segmentation:
        """Segment one scan.

        Args:
            scan: intensities as stored, `[C, Z, Y, X]` or `[Z, Y, X]`; not modified.
            progress: called with (done, total) network runs.

        Raises:
            ScanError: the scan does not fit the model.
            MemoryLimitError: it would need more than `max_ram`.
            BackendError: the network failed.
        """
        check_grid(scan.geometry, "the scan")
        watch = Stopwatch()
        watch.add("load_network", self._load_seconds)
        with watch.stage("preprocess"):
            frame = scan_frame(scan, self._recipe)
            require(self._memory(scan, frame), self._max_ram, "this scan")
        place, why_not = self._place_for(frame)
        result = Volume(self._label_map(scan, frame, place, watch, progress), scan.geometry)
        with watch.stage("measure"):
            measured = measure_labels(result, self.bundle.manifest.labels)
        report = Report(
            bundle=self.bundle_facts(),
            scan=self._scan_facts(scan, frame) | ({ON_CPU: why_not} if why_not else {}),
            settings=self.settings(),
            labels=measured,
            timings_s=watch.rounded(),
            versions=runtime_versions(),
            warnings=list(scan.warnings),
        )
        return Segmentation(result, report)

    def memory(self, scan: Volume) -> int:
        """Bytes that this scan will take at most, its own included, the network's not.

        Raises:
            ScanError: the scan does not fit the model.
        """
        return self._memory(scan, scan_frame(scan, self._recipe))

    def bundle_facts(self) -> dict[str, object]:
        """Which bundle it is, for reports."""
        manifest = self.bundle.manifest
        return {
            "name": manifest.name,
            "manifest_sha256": self.bundle.sha256,
            "source_sha256": manifest.provenance.source_sha256,
        }

    def settings(self) -> dict[str, object]:
        """What was chosen and what runs, for reports."""
        return {
            "device": self._network.device,
            "batch": self._network.batch,
            "providers": self._network.providers,
            "engine": self._network.engine,
            "precision": self._network.precision,
            "accumulator": self._accumulator,
            "scores_on": self._place.name,
            "mirror_axes": list(self.mirror_axes),
            "step": share_of(self._recipe),
        }

    def close(self) -> None:
        """Free the network."""
        self._network.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit_runs(self, seconds: float) -> None:
        if not isinstance(self._network, GraphChain):
            self._network.close()
            raise BackendError(
                "--run-timeout: found an engine of TensorRT, which knows no such limit, expected ONNX Runtime; give "
                "--backend onnxruntime, or leave --run-timeout out"
            )
        self._network.limit_runs(seconds)

    def _on_gpu(self) -> Place:
        try:
            if self._accumulator == "float16":
                raise BackendError(
                    "--scores-on gpu: found the accumulator float16, which repeats the official arithmetic on the CPU, "
                    "expected float32; leave one of them out"
                )
            return gpu_place(self._network, self._work, open_cupy)
        except BaseException:
            self._network.close()
            raise

    def _place_for(self, frame: ScanFrame) -> tuple[Place, str | None]:
        """Where this scan's scores are; if that is not where they were asked to be, why."""
        why_not = self._place.why_not(frame)
        return (self._place, None) if why_not is None else (self._host, why_not)

    def _label_map(
        self,
        scan: Volume,
        frame: ScanFrame,
        place: Place,
        watch: Stopwatch,
        progress: Progress | None,
    ) -> LabelMap:
        """Run the network window by window, and decide what comes out, plane by plane."""
        with watch.stage("preprocess"):
            data = prepare(scan, self._recipe, frame, threads=self._threads).data
        started = time.perf_counter()
        scores = stream_scores(
            data,
            self.bundle.patch_size,
            Pipeline(partial(_timed, watch, place), self._network.batch, place.sums),
            self._recipe,
            mirror_axes=self.mirror_axes,
            accumulator=self._accumulator,
            classes=self.bundle.classes,
            threads=self._threads,
            progress=progress,
        )
        del data  # now the stream's own, gone when it ends
        try:
            array = place.label_map(watch.iterate("accumulate", scores), frame)
        finally:
            place.release()
        # The network, accumulating, and resampling back are interleaved, plane by plane.
        watch.add("resample_back", time.perf_counter() - started - watch.seconds["accumulate"])
        watch.add("accumulate", -watch.seconds.get("network", 0.0))
        return array

    def _memory(self, scan: Volume, frame: ScanFrame) -> int:
        """Bytes that the scan path holds at its widest, the network's own memory not counted."""
        channels, classes, voxels = len(scan.channels_czyx), self.bundle.classes, prod(scan.geometry.shape_zyx)
        network_voxels, patch = prod(frame.network_shape), self.bundle.patch_size
        _, height, width = padded_shape(frame.network_shape, patch, self._recipe.windows)
        scores = self._recipe.scores.resampling
        # Splines whose values are clipped need the scores of the whole network grid; else some planes of it will do.
        clipped = scores.coordinates == "centres" and 3 in (scores.order, scores.order_z)
        whole = network_voxels if clipped else 0
        # Sums, a prediction, its weighted copy; probabilities are one copy more.
        windows = 3 if self._recipe.scores.before_sum == "none" else 4
        kept = windows * patch[0] * height * width + 4 * max(prod(frame.cropped_shape[1:]), height * width)
        # A normalised copy and the temporary of its standard deviation, one channel at a time; the label map.
        working = 9 * voxels
        # While resampling, a thread holds a slab of output planes and up to three more of their size.
        slabs = 4 * self._threads * min(SLAB_BYTES, 8 * max(network_voxels, prod(frame.cropped_shape)))
        return 4 * channels * (voxels + network_voxels) + working + 4 * classes * (kept + whole) + slabs + FIXED_BYTES

    def _scan_facts(self, scan: Volume, frame: ScanFrame) -> dict[str, object]:
        geometry = scan.geometry
        return {
            "channels": scan.channels_czyx.shape[0],
            "size_xyz": list(geometry.size_xyz),
            "spacing_xyz_mm": list(geometry.spacing_xyz),
            "origin_lps_mm": list(geometry.origin_lps),
            "direction_lps": list(geometry.direction_lps),
            "network_shape": list(frame.network_shape),
            "network_spacing_mm": list(frame.network_spacing),
            "windows": window_count(frame.network_shape, self.bundle.patch_size, self._recipe.windows),
        }


def _timed(watch: Stopwatch, place: Place, images: Iterator[NDArray[np.float32]]) -> Iterator[Any]:
    """What the network gives, and how long that takes."""
    predictions = place.predict_all(images)
    while True:
        with watch.stage("network"):
            scores = next(predictions, None)
        if scores is None:
            return
        yield scores
