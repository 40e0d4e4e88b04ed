"""What a benchmark found, as it is written to JSON and read back for comparing."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, computed_field, model_validator

from masksam_deploy.base.errors import BenchError
from masksam_deploy.base.records import OpenRecord
from masksam_deploy.base.text import shown
from masksam_deploy.bench.timing import Timing
from masksam_deploy.bundle.rules import condensed
from masksam_deploy.runtimes.base import Device

READ_LIMIT = 256 * 2**20


class Check(OpenRecord):
    """How a contender compares with the float32 graphs in ONNX Runtime on the CPU.

    Attributes:
        passed: whether it may be timed.
        problem: why not.
        decided_agreement: share of the windows' voxels of the same class, ties left out; None if nothing ran.
        window_dice: mean Dice over the classes that the windows show; None if they show none, or mean nothing.
        score_error: error of the windows' class scores, as a share of how much they vary.
        scan: the Dice gate's findings on the scan; None if no scan was segmented.
    """

    passed: bool
    problem: str | None = None
    decided_agreement: float | None = None
    window_dice: float | None = None
    score_error: float | None = None
    scan: dict[str, JsonValue] | None = None


class WindowTimes(OpenRecord):
    """One window through the network, warm.

    Attributes:
        whole: all graphs together, with what lies between them.
        graphs: each graph, in order; none where a runtime takes the network as a whole.
        copy_to_device: the window to the GPU, measured on its own; it is part of the first graph's time.
    """

    whole: Timing
    graphs: dict[str, Timing]
    copy_to_device: Timing | None = None

    @model_validator(mode="after")
    def _took_time(self) -> WindowTimes:
        if not all(timing.p50 > 0 for timing in (self.whole, *self.graphs.values())):
            raise ValueError("a window or a graph that took no time was not measured")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def windows_per_second(self) -> float:
        """At the median."""
        return 1 / self.whole.p50


class ScanTimes(OpenRecord):
    """A whole scan, from its file to the label map's file, warm.

    Attributes:
        whole: wall clock.
        stages: in the order in which they begin; the last, `other`, is what no stage accounts for.
    """

    whole: Timing
    stages: dict[str, Timing]

    @model_validator(mode="after")
    def _took_time(self) -> ScanTimes:
        if not self.whole.p50 > 0:
            raise ValueError("a scan that took no time was not measured")
        return self


class ColdStart(OpenRecord):
    """A fresh process up to its first window; the files are in the system's cache.

    Attributes:
        stages: seconds, in order.
        peak_rss_bytes: most memory of the process up to there.
        scan_peak_rss_bytes: the same after the whole scan, if one was segmented.
        vram_bytes: GPU memory in use afterwards minus before, of the whole machine.
    """

    stages: dict[str, float]
    peak_rss_bytes: int | None = None
    scan_peak_rss_bytes: int | None = None
    vram_bytes: int | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.stages.values())


class GpuState(OpenRecord):
    """The GPU during the measurement, median and extremes over readings after each round.

    Attributes:
        readings: quantity with its unit -> lowest, median, highest.
    """

    readings: dict[str, tuple[float, float, float]]


class Run(OpenRecord):
    """One contender.

    Attributes:
        name: unique.
        device: where it ran.
        precisions: per graph, as built.
        engine: None for the bundle's own graphs.
    """

    name: str
    device: Device = "cpu"
    precisions: dict[str, str]
    engine: str | None
    providers: dict[str, str]
    check: Check
    windows: WindowTimes | None = None
    scan: ScanTimes | None = None
    cold: ColdStart | None = None

    @model_validator(mode="after")
    def _wrong_is_not_timed(self) -> Run:
        if not self.check.passed and (self.windows or self.scan or self.cold):
            raise ValueError("a contender that disagrees must not have times")
        return self


class Work(OpenRecord):
    """Floating-point operations and bytes moved by one graph for one window, at float32; see `counts`."""

    flops: int = Field(gt=0)
    bytes: int = Field(gt=0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


class Roofline(OpenRecord):
    """What each graph has to do, and what a device was measured to be able to, at float32."""

    graphs: dict[str, Work]
    device: Device = "cpu"
    peak_flops_per_s: float = Field(gt=0)
    peak_bytes_per_s: float = Field(gt=0)


class BenchResult(OpenRecord):
    """A whole benchmark.

    Attributes:
        bundle: name and hash.
        input: what was segmented.
        settings: all that was chosen.
        machine: processor, memory, GPU, driver.
        software: versions and, in a git checkout, the commit.
        state: of the machine at the time, such as its load.
        runs: the contenders in the order given.
        roofline: None if `roofline_problem` says why.
        gpu: None without a GPU.
        warnings: why the figures may be wrong.
    """

    schema_version: Literal[1] = 1
    started_utc: str
    bundle: dict[str, str]
    input: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    machine: dict[str, str]
    software: dict[str, str]
    state: dict[str, str]
    runs: tuple[Run, ...] = Field(min_length=1)
    roofline: Roofline | None = None
    roofline_problem: str | None = None
    gpu: GpuState | None = None
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> BenchResult:
        if len({run.name for run in self.runs}) < len(self.runs):
            raise ValueError("two contenders have the same name")
        return self


def read_result(path: Path) -> BenchResult:
    """A result that `bench --json` wrote.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        # The type first: a device or a pipe has no size, and no end.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > READ_LIMIT:
            raise BenchError(
                f"{shown(path)}: found no file of at most {READ_LIMIT} bytes, expected what bench --json writes"
            )
        return BenchResult.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise BenchError(f"{shown(path)}: {condensed(error)}; measure again with bench --json") from error
    except OSError as error:
        raise BenchError(f"{shown(path)}: cannot be read ({error.strerror}); check the path") from error
