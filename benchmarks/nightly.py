"""The standard benchmarks, one JSON result and one HTML page a case.

    python -m benchmarks.nightly --work DIR                                  # the demo model: minutes
    python -m benchmarks.nightly --work DIR --cases acdc --no-scan           # ViT-B: minutes a window on two cores
    python -m benchmarks.nightly --work DIR --cases amos synapse --no-scan   # ViT-H: needs about 16 GB
    python -m benchmarks.nightly --work DIR --against OLD_RESULTS            # exits with 3 if something became slower

Cases: `demo` is the trained model of this repository on its example scan; `acdc` (ViT-B), `amos` (ViT-H, 512) and
`synapse` (ViT-H, 256) are the published networks at full size with seeded random weights, on a synthetic scan: speed
does not depend on the values. Bundles are kept in DIR, so that later runs need not export again. With --int8, an int8
engine takes part, calibrated on the very scan that is measured: a figure for speed, not for Dice. Classes of random
weights mean nothing, so windows are held to the float32 graphs' class scores instead of Dice.
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

from masksam_deploy.bench.compare import RegressionError, check_regressions, compare_results
from masksam_deploy.bench.contenders import Contender, valid_contenders
from masksam_deploy.bench.inputs import BenchScan, bench_scan
from masksam_deploy.bench.outputs import write_outputs
from masksam_deploy.bench.results import BenchResult, read_result
from masksam_deploy.bench.run import Settings, run_bench
from masksam_deploy.bench.table import print_comparison, print_result
from masksam_deploy.bundle import Bundle
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.builders import open_builder
from masksam_deploy.engines.gate import Case
from masksam_deploy.engines.spec import EngineSpec
from masksam_deploy.engines.store import engines_of
from masksam_deploy.manifest import Label, Labels, Normalization, Preprocessing, Resampling
from masksam_deploy.scans import ScanFiles
from masksam_export.baseline import torch_chain
from masksam_export.checkpoint import TrainedMaskSAM, load_checkpoint
from masksam_export.config import ModelConfig
from masksam_export.model import MaskSAM
from masksam_export.official import ACDC, AMOS, SYNAPSE
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
            resample_data=Resampling(order=3, order_z=0),
            resample_scores=Resampling(order=1, order_z=0),
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
    "amos": Standard(partial(random_network, AMOS, (5.0, 0.684, 0.684), CT), (), FULL_SIZE),
    "synapse": Standard(partial(random_network, SYNAPSE, (3.0, 0.76, 0.76), CT), (), FULL_SIZE),
}


def main() -> None:
    """Measure the cases asked for, write and print each, and compare with older results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["demo"])
    parser.add_argument("--work", type=Path, required=True, help="Folder for the bundles; they are kept.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--against", type=Path, help="Folder with older results to compare with.")
    parser.add_argument("--int8", action="store_true", help="Build an int8 engine first where there is none.")
    parser.add_argument("--no-baseline", action="store_true", help="Leave PyTorch out.")
    parser.add_argument("--no-scan", action="store_true", help="Windows only.")
    parser.add_argument("--repeats", type=int, help="Of windows; by default as the case says.")
    parser.add_argument("--scan-repeats", type=int, help="Of scans.")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    slower = []
    for name in arguments.cases:
        settings = chosen(CASES[name].settings, arguments)
        with_baseline = not arguments.no_baseline
        result = measure(
            name, arguments.work, settings, int8=arguments.int8, baseline=with_baseline, most_wait_s=LONGEST_WAIT_S
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / f"bench_{name}.json"
        old = read_result(arguments.against / path.name) if arguments.against else None
        write_outputs(result, path, path.with_suffix(".html"))
        print_result(result, sys.stdout)
        print(f"wrote {path} and {path.with_suffix('.html').name}")
        if old:
            slower += regressions(old, result)
    for problem in slower:
        print(problem, file=sys.stderr)
    sys.exit(RegressionError.exit_code if slower else 0)


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
    name: str, work: Path, settings: Settings, *, int8: bool, baseline: bool, most_wait_s: float = 0.0
) -> BenchResult:
    """One case, its bundle exported unless it is there; waits so long at most for the machine to be quiet."""
    standard = CASES[name]
    trained = standard.trained()
    bundle = exported(name, work, trained, standard)
    with bench_scan(bundle) as scan:
        if int8:
            add_int8(bundle, scan, settings.threads)
        contenders = valid_contenders(bundle, threads=settings.threads)
        if baseline:
            # Already loaded here, so a fresh process would not find it: no cold start of PyTorch.
            opened = partial(torch_chain, trained.model, threads=settings.threads)
            contenders.append(Contender("pytorch eager", "fp32", "cpu", opened))
        settle(most_wait_s)
        return run_bench(bundle, contenders, scan, settings, tell)


def exported(name: str, work: Path, trained: TrainedMaskSAM, standard: Standard) -> Bundle:
    """The bundle of a case; exported again if it is missing or from other weights."""
    path = work / f"{name}.masksam"
    if path.exists():
        bundle = Bundle.load(path)
        if bundle.manifest.provenance.source_sha256 == trained.sha256:
            return bundle
    work.mkdir(parents=True, exist_ok=True)
    return export_bundle(trained, path, force=True, validation=standard.validation, progress=tell)


def add_int8(bundle: Bundle, scan: BenchScan, threads: int | None) -> None:
    """Build an int8 engine unless there is one; the benchmark's own check judges it."""
    if any("int8" in engine.record.asked.values() for engine in engines_of(bundle)):
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


def regressions(old: BenchResult, new: BenchResult) -> list[str]:
    """Print the comparison; what became slower, if anything."""
    comparison = compare_results(old, new)
    print_comparison(comparison, sys.stdout)
    try:
        check_regressions(comparison)
    except RegressionError as error:
        return [str(error)]
    return []


def tell(what: str, done: int = 0, total: int = 0) -> None:
    """A line for each step: nights are logged, not watched."""
    print(f"  {what}" + (f" {done}/{total}" if total else ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
