"""`masksam-deploy build-engine`: a bundle's graphs in a smaller precision, judged by Dice, built for a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from masksam_deploy.cli.values import FILE, optional_size, share

if TYPE_CHECKING:
    from masksam_deploy.runtimes.spec import Precision

TYPED = "masksam_deploy.typed"
PRECISION = click.Choice(["fp32", "fp16", "bf16", "int8"])


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


class _Recorded(click.Command):
    """Keeps what was typed: an engine's record says how to make it again."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[TYPED] = list(args)
        return super().parse_args(ctx, args)


@click.command("build-engine", cls=_Recorded, short_help="Build a faster engine, judged by Dice.")
@click.argument("bundle", type=FILE)
@click.option("--fp16", "precision", flag_value="fp16", help="Weights and most activations in float16.")
@click.option("--bf16", "precision", flag_value="bf16", help="The same in bfloat16, where the target has it.")
@click.option("--int8", "precision", flag_value="int8", help="Linears and convolutions in int8; needs --calibration.")
@click.option("--fp32", "precision", flag_value="fp32", help="Everything in float32.")
@click.option(
    "--graph",
    "overrides",
    multiple=True,
    callback=_overrides,
    metavar="NAME=PRECISION",
    help="Another precision for one graph, e.g. decoder=fp16; repeat for more.",
)
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt", "rtx"]),
    default="onnxruntime",
    show_default=True,
    help="Runtime: ONNX Runtime, TensorRT, or TensorRT for RTX (which builds on machines without a GPU).",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Of target onnxruntime."
)
@click.option("--gpu", help="rtx: the GPUs to build for, e.g. sm86,sm89,sm120 [this machine's].")
@click.option(
    "--calibration",
    type=FILE,
    multiple=True,
    help="Scan, or folder of scans, on which ranges are measured; repeat for more [the validation scans; int8 wants "
    "its own].",
)
@click.option(
    "--calibration-windows",
    "windows",
    type=click.IntRange(8),
    default=32,
    show_default=True,
    help="Most windows of these scans; each is a run of the network.",
)
@click.option("--calibrator", type=click.Choice(["percentile", "entropy"]), default="percentile", show_default=True)
@click.option("--exclude", type=FILE, help="Exclusion list of 'sensitivity' [the bundle's own, if there is one].")
@click.option(
    "--validation",
    type=FILE,
    multiple=True,
    help="Scan, or folder of scans, for the gate; repeat for more [those that the bundle carries].",
)
@click.option("--references", type=FILE, help="Label map of the one validation scan, or folder of NAME.nii.gz.")
@click.option("--max-mean-loss", type=float, callback=share, help="Mean Dice that may be lost [0.001; int8 0.005].")
@click.option("--max-class-loss", type=float, callback=share, help="The same for a class [0.003; int8 0.010].")
@click.option("--strict", is_flag=True, help="Fail, instead of giving the graph at fault a larger precision.")
@click.option("--no-gate", is_flag=True, help="Build without comparing anything; the engine says so ever after.")
@click.option("--batches", default="1,1,2", show_default=True, callback=_batches, help="Windows: least,best,most.")
@click.option("--workspace", callback=optional_size, help="GPU memory for a layer, e.g. 2G [all there is].")
@click.option("--optimization-level", type=click.IntRange(0, 5), help="TensorRT: 0 builds fast, 5 tries most [3].")
@click.option("--timing-cache", type=FILE, help="TensorRT: measurements to start from and add to.")
@click.option("--hardware-compatible", is_flag=True, help="TensorRT: one engine for every GPU from Ampere on.")
@click.option("--version-compatible", is_flag=True, help="TensorRT 10: an engine that 11 runs too.")
@click.option("--strip-weights", is_flag=True, help="An engine without weights.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for calibration and gate [all cores].")
@click.option("--json", "as_json", is_flag=True, help="Print the engine's record instead of a summary.")
def build_engine(**options: object) -> None:
    """Build an engine from BUNDLE and keep it in BUNDLE/engines/.

    The graphs are converted, then compared with the float32 graphs on validation scans: what Dice is lost decides.
    A graph that loses too much falls back (int8, fp16, fp32), and the report says so.
    """
    from masksam_deploy.cli.run_build_engine import run_build_engine

    run_build_engine(**options)  # type: ignore[arg-type]
