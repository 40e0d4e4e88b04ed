"""`masksam-deploy train`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from masksam_export.families.nnunet_options import parse_axes

Triple = tuple[float, float, float]


class _Sizes(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of click only
    """Three numbers with commas."""

    def __init__(self, name: str, *, whole: bool) -> None:
        self.name = name
        self._whole = whole

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Triple:
        try:
            z, y, x = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not three numbers like 4,192,192", param, ctx)
        if min(z, y, x) <= 0 or max(z, y, x) > 1e5 or (self._whole and any(n != int(n) for n in (z, y, x))):
            self.fail(f"'{value}' is not three positive {'whole ' if self._whole else ''}numbers", param, ctx)
        return (z, y, x)


class _Fold(click.ParamType):  # type: ignore[type-arg]
    name = "fold"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text != "all" and text not in "01234":
            self.fail(f"'{text}' is not one of 0, 1, 2, 3, 4, all", param, ctx)
        return text if text == "all" else int(text)


def _axes(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    axes = parse_axes(text) or ()
    if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
        raise click.BadParameter(f"'{text}' is not some of 0, 1, 2, each once, or none")
    return tuple(sorted(axes))


ALSO_WHEN_RESUMED = ("dataset", "output", "resume", "device", "threads", "as_json")


@click.command(short_help="Train a MaskSAM on a data set.")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in the run folder, as it was begun.")
@click.option(
    "--network",
    type=click.Choice(["tiny", "acdc", "synapse", "amos"]),
    default="tiny",
    show_default=True,
    help="tiny: 2 M weights, from scratch; acdc: ViT-B; synapse, amos: ViT-H, as published.",
)
@click.option("--sam-checkpoint", type=click.Path(path_type=Path), help="Start from SAM; its own weights stay frozen.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Fine-tune this MaskSAM; its classes may differ.")
@click.option("--patch", type=_Sizes("T,P,P", whole=True), help="Window in voxels (z,y,x) [from the data].")
@click.option("--spacing", type=_Sizes("Z,Y,X", whole=False), help="Grid in mm (z,y,x) [median of the data].")
@click.option("--queries", type=click.IntRange(1, 256), help="Masks per slice [as published, or 1.5 per class].")
@click.option("--fold", type=_Fold(), default="0", show_default=True, help="nnU-Net fold to hold out, or all.")
@click.option("--epochs", type=click.IntRange(1), help="[1000; acdc: 500]")
@click.option("--iterations", type=click.IntRange(1), default=250, show_default=True, help="Steps per epoch.")
@click.option("--batch", type=click.IntRange(1, 1024), default=2, show_default=True, help="Patches per step.")
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[adamw; acdc, synapse: sgd]")
@click.option("--learning-rate", type=click.FloatRange(0, 10, min_open=True), default=1e-3, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0, 1), default=3e-5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=0, show_default=True, help="Steps to the full rate.")
@click.option("--foreground", type=click.FloatRange(0, 1), default=0.33, show_default=True, help="Patches on labels.")
@click.option(
    "--mirror-axes", callback=_axes, default="0,1,2", show_default=True, help="Axes mirrored at random, or none."
)
@click.option(
    "--shading",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    help="Strength of a smooth random gain, as coils shade MR images; 0.5 is much.",
)
@click.option("--validate-every", type=click.IntRange(1), default=1, show_default=True, help="Epochs between checks.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads [all cores].")
@click.option("--json", "as_json", is_flag=True, help="Print a summary for machines at the end.")
@click.pass_context
def train(
    context: click.Context,
    dataset: Path,
    output: Path,
    resume: bool,
    network: str,
    sam_checkpoint: Path | None,
    checkpoint: Path | None,
    patch: Triple | None,
    spacing: Triple | None,
    queries: int | None,
    fold: int | str,
    epochs: int | None,
    iterations: int,
    batch: int,
    optimizer: str | None,
    learning_rate: float,
    weight_decay: float,
    warmup: int,
    foreground: float,
    mirror_axes: tuple[int, ...],
    shading: float,
    validate_every: int,
    seed: int,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a MaskSAM on DATASET, a folder in nnU-Net's raw layout.

    DATASET holds dataset.json, imagesTr/ and labelsTr/. All of it is checked before anything is written. The run
    folder gets plans, settings, a table and curves of the losses and the validation Dice, and checkpoints in the
    official trainers' form; `masksam-deploy export` turns one into a bundle. An interrupted run goes on with
    --resume. From scratch every weight is trained; from SAM's weights, and when a published network is fine-tuned, only
    what MaskSAM adds to SAM.
    """
    if resume:
        _refuse_settings(context)
    if sam_checkpoint and checkpoint:
        raise click.UsageError("--sam-checkpoint and --checkpoint exclude each other; start from one of them")
    from masksam_deploy.base.optional import require_packages

    require_packages("torch", "scipy", "matplotlib", extra="cpu,train", purpose="train")
    from masksam_export.families.masksam.training.run import Request
    from masksam_export.run_train import run_train

    request = None
    if not resume:
        request = Request(
            network=network,  # type: ignore[arg-type]  # click checked the choice
            patch=None if patch is None else (int(patch[0]), int(patch[1]), int(patch[2])),
            spacing=spacing,
            queries=queries,
            epochs=epochs,
            iterations=iterations,
            batch=batch,
            optimizer=optimizer,  # type: ignore[arg-type]  # click checked the choice
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup=warmup,
            foreground_share=foreground,
            mirror_axes=mirror_axes,
            shading=shading,
            fold=None if isinstance(fold, str) else fold,
            validate_every=validate_every,
            seed=seed,
            sam_checkpoint=sam_checkpoint,
            checkpoint=checkpoint,
        )
    run_train(dataset, output, request, device=device, threads=threads, as_json=as_json)


def _refuse_settings(context: click.Context) -> None:
    """A resumed run has its settings; others would make it another run."""
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name not in ALSO_WHEN_RESUMED
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume goes on with the run's own settings; leave out {', '.join(given)}")
