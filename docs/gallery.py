"""Draws the pictures of the pages from the demo's model and scan: `make gallery`.

Everything is made by the commands that the pages show; pictures are only made smaller, so that they stay light in the
repository.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
SAMPLE = ROOT / "examples" / "sunnybrook"
MOST_BYTES = 300_000
COLOURS = 256


def command(*arguments: object) -> None:
    """Run masksam-deploy.

    Raises:
        CalledProcessError: it failed; its own line says why.
    """
    subprocess.run([sys.executable, "-m", "masksam_deploy", *map(str, arguments)], check=True, stdout=sys.stderr)


def shrink(source: Path, target: Path, width: int) -> None:
    """Write a picture at another width in pixels, in few colours.

    Raises:
        ValueError: it is still too large for the repository.
    """
    with Image.open(source) as picture:
        height = round(picture.height * width / picture.width)
        smaller = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    # Of Pillow's methods this one keeps the few pixels of a contour in their own colour.
    few = smaller.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(target, optimize=True)
    if target.stat().st_size > MOST_BYTES:
        raise ValueError(
            f"{target}: found {target.stat().st_size} bytes, expected {MOST_BYTES} at most; shrink it more"
        )


def draw(work: Path) -> None:
    """Make every picture; `work` holds what is needed on the way."""
    bundle, labels, reference = work / "lv.masksam", work / "SCD0000501.nii.gz", SAMPLE / "reference.nii.gz"
    overlay, plot = work / "overlay.png", work / "plot.png"
    command("export", CHECKPOINT, "-o", bundle)
    command("infer", SAMPLE / "scan", "-b", bundle, "-o", labels, "--overlay", overlay)
    command("evaluate", labels, reference, "--labels", bundle, "--plot", plot, "--scans", SAMPLE / "scan")
    IMAGES.mkdir(exist_ok=True)
    shrink(overlay, IMAGES / "demo.png", 880)
    shrink(plot, IMAGES / "evaluation.png", 880)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        draw(Path(folder))
