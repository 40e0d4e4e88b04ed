"""The standard benchmarks, one JSON result and one HTML page a case.

    python -m benchmarks.nightly --work DIR                                  # the demo model: minutes
    python -m benchmarks.nightly --work DIR --cases acdc --no-scan           # ViT-B: minutes a window on two cores
    python -m benchmarks.nightly --work DIR --cases synapse --no-scan        # ViT-H: needs 20 GB
    python -m benchmarks.nightly --work DIR --cases amos --no-scan           # ViT-H: needs 24 GB, one by one
    python -m benchmarks.nightly --work DIR --against OLD_RESULTS            # exits with 3 if something became worse

Cases: `demo` is the trained model of this repository on its example scan; `acdc` (ViT-B), `amos` (ViT-H, 512) and
`synapse` (ViT-H, 256) are the published networks at full size with seeded random weights, on a synthetic scan: speed
does not depend on the values. Bundles are exported and engines built by the code that is measured; --reuse takes what
is in DIR, from whatever commit. With --int8, an int8 engine takes part, calibrated on the very scan that is measured: a
figure for speed, not for Dice. Classes of random weights mean nothing, so windows are held to the float32 graphs' class
scores instead of Dice, and label maps to nothing.

A case that fails does not stop the others. The exit code is 3 if a contender disagrees or became worse, another one if
a case failed otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from masksam_deploy.base.errors import MaskSamError, RegressionError
from masksam_deploy.bench.benchmark import Settings, run_bench
from masksam_deploy.bench.compare import check_regressions, compare_results
from masksam_deploy.bench.contenders import Contender, valid_contenders
from masksam_deploy.bench.files import check_disagreements, write_outputs
from masksam_deploy.bench.inputs import BenchScan, bench_scan
from masksam_deploy.bench.results import BenchResult, read_result
from masksam_deploy.bench.table import print_comparison, print_result
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.nnunet import Normalization, Preprocessing, SplineOrders
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import machine_for
from masksam_deploy.engines.gate import Case
from masksam_deploy.engines.store import engines_of
from masksam_deploy.io.cases import ScanFiles
from masksam_deploy.runtimes.registry import open_builder
from masksam_deploy.runtimes.spec import EngineSpec, label
from masksam_export.baseline import torch_chain
from masksam_export.families.masksam.checkpoint import TrainedMaskSAM, load_checkpoint
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.exportable import exportable
from masksam_export.families.masksam.graphs import image_port, semseg_port
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.onnx_export import export_bundle

REPOSITORY = Path(__file__).parents[1]
CHECKPOINT = REPOSITORY / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
EXAMPLE = REPOSITORY / "examples" / "sunnybrook"
MR = Normalization(scheme="ZScoreNormalization")
CT = Normalization(scheme="CTNormalization", lower=-970, upper=280, mean=50, std=140)


@dataclass(frozen=True)
class Standard:
    """One case.

    Attributes:
        trained: makes the network, always the same.
        validation: scans that the bundle carries; without any, it is measured on a synthetic one.
        settings: how often what is run.
    """

    trained: Callable[[], TrainedMaskSAM]
    validation: tuple[Case, ...]
    settings: Settings


def random_network(config: ModelConfig, spacing: tuple[float, float, float], scheme: Normalization) -> TrainedMaskSAM:
    """A published network with seeded random weights; spacing in mm, z y x."""
    torch.manual_seed(0)
    return TrainedMaskSAM(
        model=MaskSAM(config).eval().requires_grad_(False),
        preprocessing=Preprocessing(
            channel_names=("CT" if scheme is CT else "MR",),
            transpose_forward=(0, 1, 2),
            spacing=spacing,
            normalization=(scheme,),
            resample_data=SplineOrders(order=3, order_z=0),
            resample_scores=SplineOrders(order=1, order_z=0),
        ),
        labels=Labels(classes=tuple(Label(name=f"class {k}", value=k) for k in range(config.classes))),
        mirror_axes=(),
        source=Path("random.pth"),
        sha256="0" * 64,
        notes=(),
    )


QUIET_LOAD, LONGEST_WAIT_S = 0.5, 600.0
FULL_SIZE = Settings(repeats=5, scan_repeats=1, windows=1, trained=False)
CASES = {
    "demo": Standard(
        partial(load_checkpoint, CHECKPOINT),
        (Case(ScanFiles("sunnybrook", (EXAMPLE / "scan",)), EXAMPLE / "reference.nii.gz"),),
        Settings(),
    ),
    "acdc": Standard(partial(random_network, ACDC, (10.0, 1.5625, 1.5625), MR), (), FULL_SIZE),
    # In 24 GB there is room for one at a time.
    "amos": Standard(partial(random_network, AMOS, (5.0, 0.684, 0.684), CT), (), replace(FULL_SIZE, in_turns=False)),
    "synapse": Standard(partial(random_network, SYNAPSE, (3.0, 0.76, 0.76), CT), (), FULL_SIZE),
}


def main() -> None:
    """Measure the cases asked for, write and print each, and compare with older results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["demo"])
    parser.add_argument("--work", type=Path, required=True, help="Folder for the bundles.")
    parser.add_argument("--reuse", action="store_true", help="Take the bundles and engines that are there.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--against", type=Path, help="Folder with older results to compare with.")
    parser.add_argument("--int8", action="store_true", help="Build an int8 engine first.")
    parser.add_argument("--no-baseline", action="store_true", help="Leave PyTorch out; it needs as much again.")
    parser.add_argument("--no-scan", action="store_true", help="Windows only.")
    parser.add_argument("--repeats", type=int, help="Of windows; by default as the case says.")
    parser.add_argument("--scan-repeats", type=int, help="Of scans.")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    codes: set[int] = set()
    for name in arguments.cases:
        try:
            run_case(name, arguments)
        except MaskSamError as error:
            print(f"{name}: {error}", file=sys.stderr)
            codes.add(error.exit_code)
    worse = RegressionError.exit_code
    sys.exit(worse if worse in codes else max(codes, default=0))


def run_case(name: str, arguments: argparse.Namespace) -> None:
    """Measure one case, write and print it, and judge it.

    Raises:
        MaskSamError: it failed, a contender disagrees, or something became slower; results are written before.
    """
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"bench_{name}.json"
    old = read_result(arguments.against / path.name) if arguments.against else None
    result = measure(
        name,
        arguments.work,
        chosen(CASES[name].settings, arguments),
        int8=arguments.int8,
        baseline=not arguments.no_baseline,
        reuse=arguments.reuse,
        most_wait_s=LONGEST_WAIT_S,
    )
    write_outputs(result, path, path.with_suffix(".html"))
    print_result(result, sys.stdout)
    print(f"wrote {path} and {path.with_suffix('.html').name}")
    check_disagreements(result)
    if old:
        comparison = compare_results(old, result)
        print_comparison(comparison, sys.stdout)
        check_regressions(comparison)


def chosen(settings: Settings, arguments: argparse.Namespace) -> Settings:
    """A case's settings with what the command line changes."""
    scan_repeats = settings.scan_repeats if arguments.scan_repeats is None else arguments.scan_repeats
    return replace(
        settings,
        repeats=arguments.repeats or settings.repeats,
        scan_repeats=0 if arguments.no_scan else scan_repeats,
        threads=arguments.threads,
    )


def measure(
    name: str,
    work: Path,
    settings: Settings,
    *,
    int8: bool,
    baseline: bool,
    reuse: bool = False,
    most_wait_s: float = 0.0,
) -> BenchResult:
    """One case, exported and built first; waits so long at most for the machine to be quiet."""
    standard = CASES[name]
    trained = standard.trained()
    bundle = exported(name, work, trained, standard, reuse=reuse)
    with bench_scan(bundle) as scan:
        if int8:
            add_int8(bundle, scan, settings.threads)
        contenders = valid_contenders(bundle, threads=settings.threads)
        if baseline:
            # Already loaded here, so a fresh process would not find it: no cold start of PyTorch.
            ends = (image_port(trained.config), semseg_port(trained.config))
            opened = partial(torch_chain, trained.model, ends, threads=settings.threads)
            contenders.append(Contender("pytorch eager", "fp32", "cpu", opened))
        settle(most_wait_s)
        return run_bench(bundle, contenders, scan, settings, tell)


def exported(name: str, work: Path, trained: TrainedMaskSAM, standard: Standard, *, reuse: bool) -> Bundle:
    """The bundle of a case, which takes the place of an earlier one and its engines."""
    path = work / f"{name}.masksam"
    if reuse and path.exists():
        bundle = Bundle.load(path)
        if bundle.manifest.provenance.source_sha256 == trained.sha256:
            return bundle
    work.mkdir(parents=True, exist_ok=True)
    return export_bundle(exportable(trained), path, force=True, validation=standard.validation, progress=tell)


def add_int8(bundle: Bundle, scan: BenchScan, threads: int | None) -> None:
    """Build an int8 engine unless a valid one is there; the benchmark's own check judges it."""
    machine = machine_for("onnxruntime")
    there = [engine for engine in engines_of(bundle) if label(engine.record.asked) == "int8"]
    if any(engine.problem(bundle, machine) is None for engine in there):
        return
    request = BuildRequest(
        EngineSpec.of(bundle, "onnxruntime", "int8"),
        calibration=[ScanFiles(scan.name, scan.paths)],
        validation=None,
        threads=threads,
        command="benchmarks.nightly --int8",
    )
    build_engine(bundle, open_builder("onnxruntime"), request, tell)


def settle(most_s: float) -> None:
    """Wait until an export or a build no longer counts as load: a busy machine's figures are not to be trusted."""
    until = time.monotonic() + most_s
    while time.monotonic() < until and os.getloadavg()[0] > QUIET_LOAD:
        tell(f"waiting until the machine is quiet: a load of {os.getloadavg()[0]:.2f}")
        time.sleep(10)


def tell(what: str, done: int = 0, total: int = 0) -> None:
    """A line for each step: nights are logged, not watched."""
    print(f"  {what}" + (f" {done}/{total}" if total else ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
