"""`masksam-deploy build-engine`: the graphs of a bundle in another precision or for another runtime, judged by Dice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import CALIBRATOR, DEVICE, FILE, PRECISION, TARGET, THREADS, optional_size, share

if TYPE_CHECKING:
    from masksam_deploy.runtimes.spec import Precision

TYPED = "masksam_deploy.typed"
"""Where the context keeps the arguments as they were typed."""

precisions = OptionGroup("Precision")
targets = OptionGroup("Target")
int8 = OptionGroup("Calibration for int8")
gate = OptionGroup("Dice gate")
tensorrt = OptionGroup("TensorRT")
general = OptionGroup("Hardware and output")

EXAMPLES = {
    "int8 for CPUs": "masksam-deploy build-engine lv.masksam --int8 --calibration scans/",
    "fp16 for the NVIDIA GPU of this machine": "masksam-deploy build-engine lv.masksam --fp16 --target tensorrt",
    "int8 but for one graph, judged on scans with references": "masksam-deploy build-engine lv.masksam --int8 \\\n"
    "    --graph decoder=fp16 --calibration scans/ \\\n    --validation imagesVal/ --references labelsVal/",
}


def _batches(_: click.Context, __: click.Parameter, text: str) -> tuple[int, int, int]:
    """'2' or '1,1,4' -> smallest, best and largest number of windows."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = [1, 1, numbers[0]]
    if len(numbers) != 3:
        raise click.BadParameter(f"'{text}' is neither like 2 nor like 1,1,4")
    return (numbers[0], numbers[1], numbers[2])


def _overrides(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Precision]:
    """'decoder=fp16' -> {'decoder': 'fp16'}."""
    chosen: dict[str, Precision] = {}
    for text in texts:
        graph, _equals, precision = text.partition("=")
        if not graph or precision not in PRECISION.choices:
            raise click.BadParameter(f"'{text}' is not like decoder=fp16 ({', '.join(PRECISION.choices)})")
        chosen[graph] = cast("Precision", precision)
    return chosen


class _RecordedCommand(Command):
    """Keeps the arguments as they were typed, because the record of an engine says how to build it again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)


@click.command(
    "build-engine", cls=_RecordedCommand, short_help="Build a faster engine and judge it by Dice.", examples=EXAMPLES
)
@click.argument("bundle", type=FILE)
@precisions("--fp16", "precision", flag_value="fp16", help="Weights and most activations in float16.")
@precisions("--bf16", "precision", flag_value="bf16", help="The same in bfloat16, where the target supports it.")
@precisions(
    "--int8", "precision", flag_value="int8", help="Linear layers and convolutions in int8. Needs --calibration."
)
@precisions("--fp32", "precision", flag_value="fp32", help="Everything in float32.")
@precisions(
    "--graph",
    "overrides",
    multiple=True,
    callback=_overrides,
    metavar="NAME=PRECISION",
    help="Another precision for one graph, e.g. decoder=fp16. Repeat for more.",
)
@targets(
    "--target",
    type=TARGET,
    default="onnxruntime",
    show_default=True,
    help="Runtime: ONNX Runtime, TensorRT, or TensorRT for RTX (which builds on machines without a GPU).",
)
@targets("--device", type=DEVICE, default="cpu", show_default=True, help="Device, for target onnxruntime.")
@targets(
    "--gpu",
    metavar="SM,...",
    help="GPUs to build for, for target rtx, e.g. sm86,sm89,sm120. Default: the GPU of this machine.",
)
@targets(
    "--batches",
    default="1,1,2",
    show_default=True,
    callback=_batches,
    metavar="MIN,BEST,MAX",
    help="Numbers of windows that run at once: the smallest, the one to optimise for, and the largest.",
)
@int8(
    "--calibration",
    type=FILE,
    multiple=True,
    help="Scan, or folder of scans, on which ranges of activations are measured. Repeat for more. Required for int8; "
    "default otherwise: the validation scans.",
)
@int8(
    "--calibration-windows",
    "windows",
    type=click.IntRange(8),
    default=32,
    show_default=True,
    metavar="N",
    help="Most windows of these scans to use. The network runs once for each.",
)
@int8(
    "--calibrator",
    type=CALIBRATOR,
    default="percentile",
    show_default=True,
    help="How ranges are chosen from the measured values.",
)
@int8(
    "--exclude",
    type=FILE,
    help="List of layers that stay out of int8, written by 'sensitivity'. Default: the bundle's own list, if it has "
    "one.",
)
@gate(
    "--validation",
    type=FILE,
    multiple=True,
    help="Scan, or folder of scans, to judge the engine by. Repeat for more. Default: the scans in the bundle.",
)
@gate("--references", type=FILE, help="Label map of the one validation scan, or folder of NAME.nii.gz.")
@gate(
    "--max-mean-loss",
    type=float,
    callback=share,
    metavar="DICE",
    help="Largest loss of mean Dice that is allowed. Default: 0.001; with int8 0.005.",
)
@gate(
    "--max-class-loss",
    type=float,
    callback=share,
    metavar="DICE",
    help="Largest loss of Dice of one class that is allowed. Default: 0.003; with int8 0.010.",
)
@gate(
    "--strict",
    is_flag=True,
    help="Fail if too much Dice is lost. Default: the graph that loses most gets a larger precision.",
)
@gate("--no-gate", is_flag=True, help="Build without judging. The engine is permanently marked as unchecked.")
@tensorrt("--workspace", callback=optional_size, metavar="SIZE", help="GPU memory per layer, e.g. 2G. Default: all.")
@tensorrt(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="LEVEL",
    help="0 builds fastest, 5 tries most. Default: 3.",
)
@tensorrt("--timing-cache", type=FILE, help="File of measurements to start from, and to add new ones to.")
@tensorrt("--hardware-compatible", is_flag=True, help="Build one engine for every GPU from Ampere on.")
@tensorrt("--version-compatible", is_flag=True, help="TensorRT 10: build an engine that TensorRT 11 can also run.")
@tensorrt("--strip-weights", is_flag=True, help="Build an engine without weights.")
@general("--threads", type=THREADS, metavar="N", help="CPU threads for calibration and gate. Default: all cores.")
@general("--json", "as_json", is_flag=True, help="Print the engine's record as JSON instead of a summary.")
def build_engine(**options: Any) -> None:
    """Build an engine from BUNDLE and keep it in BUNDLE/engines/.

    The graphs are converted and then compared with the float32 graphs on validation scans: the Dice gate allows only
    a small loss of Dice. A graph that loses more is built in a larger precision (int8, fp16, fp32), and the report
    says so.

    Delete `engines/` from bundles you did not build: their contents are executed.
    """
    from masksam_deploy.cli.run_build_engine import BuildEngineRequest, run_build_engine

    run_build_engine(BuildEngineRequest(**options))
