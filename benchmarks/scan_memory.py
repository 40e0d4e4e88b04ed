"""Peak memory of `masksam-deploy infer` on a synthetic 512 x 512 x 400 scan with 16 classes.

    python benchmarks/scan_memory.py            # writes benchmarks/results/scan_memory.json

The network is small and random: what is measured is the scan path, which must never hold K volumes at the scan's
resolution. Two cases: the network's grid equal to the scan's (the widest accumulators), and a coarser one (every
score resampled back). Each runs in a process of its own; its peak resident memory is the operating system's figure.
No speed is reported here.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch

from masksam_deploy import __version__
from masksam_deploy.manifest import Label, Labels, Normalization, Preprocessing, Resampling
from masksam_export.checkpoint import TrainedMaskSAM
from masksam_export.model import MaskSAM
from masksam_export.official import AMOS
from masksam_export.onnx_export import export_bundle

SIZE_XYZ = (512, 512, 400)
SPACING_XYZ = (0.8, 0.8, 1.5)
CASES = {"same_grid": SPACING_XYZ[::-1], "coarser_grid": (2.0, 1.2, 1.2)}
LIMIT_GIB = 4.0
RESULTS = Path(__file__).parent / "results"

SMALL = replace(
    AMOS,
    queries=4,
    classes=16,
    embed_dim=16,
    depth=4,
    heads=2,
    global_blocks=(0, 1, 2, 3),
    mlp_dim=16,
    adapter_dim=4,
    prompt_dim=16,
    decoder_mlp_dim=16,
    decoder_adapter_dim=4,
    iou_hidden_dim=16,
    upscaling_widths=(4, 2),
    stem_widths=(2,),
    levels=tuple(replace(level, width=2, kernel=(1, 3, 3)) for level in AMOS.levels),
    head_width=2,
)


def main() -> None:
    """Run both cases and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "scan_memory.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = write_scan(folder / "scan.mha")
        cases = {case: measure(scan, spacing, folder / case) for case, spacing in CASES.items()}
    result = {"limit_gib": LIMIT_GIB, "scan_size_xyz": SIZE_XYZ, "classes": SMALL.classes, "cases": cases, **facts()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for case, figures in cases.items():
        print(f"{case}: peak {figures['peak_rss_gib']:.2f} GiB (limit {LIMIT_GIB:g}), {figures['windows']} windows")
    print(f"wrote {arguments.output}")
    sys.exit(any(figures["peak_rss_gib"] > LIMIT_GIB for figures in cases.values()))


def write_scan(path: Path) -> Path:
    """Noise with a bright ball, int16 as from a scanner."""
    x, y, z = SIZE_XYZ
    generator = np.random.default_rng(0)
    volume = generator.integers(-100, 100, (z, y, x), dtype=np.int16)
    centre = np.ogrid[-1 : 1 : z * 1j, -1 : 1 : y * 1j, -1 : 1 : x * 1j]
    volume[sum(axis**2 for axis in centre) < 0.3] += 500
    image = SimpleITK.GetImageFromArray(volume)
    image.SetSpacing(SPACING_XYZ)
    SimpleITK.WriteImage(image, str(path))
    return path


def measure(scan: Path, spacing: tuple[float, ...], folder: Path) -> dict[str, Any]:
    """Export a bundle for a target spacing (z, y, x in mm), run it, and read the child's peak memory."""
    folder.mkdir()
    bundle, report = folder / "small.masksam", folder / "report.json"
    export_bundle(random_network(spacing), bundle)
    command = [sys.executable, "-c", CHILD, "infer", str(scan), "-b", str(bundle), "-o", str(folder / "seg.nii.gz")]
    options = ["--no-tta", "--report", str(report)]
    child = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    peak_kib = int(child.stdout.splitlines()[-1])
    found = json.loads(report.read_text(encoding="utf-8"))
    return {
        "peak_rss_gib": round(peak_kib / 2**20, 3),
        "windows": found["scan"]["windows"],
        "network_shape": found["scan"]["network_shape"],
        "target_spacing_zyx_mm": list(spacing),
        "accumulator": found["settings"]["accumulator"],
        "labels_found": sum(label["voxels"] > 0 for label in found["labels"]),
    }


# The child prints its own peak: the parent's own figure for children would mix the cases.
CHILD = """
import resource, sys
from masksam_deploy.cli import main
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def random_network(spacing: tuple[float, ...]) -> TrainedMaskSAM:
    """A small network with random weights, for a CT-like scan."""
    torch.manual_seed(0)
    z, y, x = spacing
    return TrainedMaskSAM(
        model=MaskSAM(SMALL).eval().requires_grad_(False),
        preprocessing=Preprocessing(
            channel_names=("CT",),
            transpose_forward=(0, 1, 2),
            spacing=(z, y, x),
            normalization=(Normalization(scheme="CTNormalization", lower=-100, upper=600, mean=50, std=150),),
            resample_data=Resampling(order=3, order_z=0),
            resample_scores=Resampling(order=1, order_z=0),
        ),
        labels=Labels(classes=tuple(Label(name=f"class {k}", value=k) for k in range(SMALL.classes))),
        mirror_axes=(),
        source=Path("random.pth"),
        sha256="0" * 64,
        notes=(),
    )


def facts() -> dict[str, Any]:
    """Where and with what this was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date_utc": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit.stdout.strip(),
        "masksam_deploy": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "page_bytes": resource.getpagesize(),
    }


if __name__ == "__main__":
    main()
