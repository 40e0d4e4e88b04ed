"""`masksam-deploy train`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.values import DEVICE, THREADS
from masksam_export.families.nnunet_options import parse_axes

Triple = tuple[float, float, float]


class _Sizes(click.ParamType):  # type: ignore[type-arg]  # generic in new releases of click only
    """Three numbers with commas."""

    def __init__(self, name: str, *, whole: bool) -> None:
        self.name = name
        self._whole = whole

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Triple | tuple[int, int, int]:
        try:
            z, y, x = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not three numbers like 4,192,192", param, ctx)
        if min(z, y, x) <= 0 or max(z, y, x) > 1e5 or (self._whole and any(n != int(n) for n in (z, y, x))):
            self.fail(f"'{value}' is not three positive {'whole ' if self._whole else ''}numbers", param, ctx)
        return (int(z), int(y), int(x)) if self._whole else (z, y, x)


def _fold(_: click.Context, __: click.Parameter, text: str) -> int | None:
    """The fold; None, which holds nothing out, for `all`."""
    if text not in ("0", "1", "2", "3", "4", "all"):
        raise click.BadParameter(f"'{text}' is not one of 0, 1, 2, 3, 4, all")
    return None if text == "all" else int(text)


def _axes(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    axes = parse_axes(text) or ()
    if len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}:
        raise click.BadParameter(f"'{text}' is not some of 0, 1, 2, each once, or none")
    return tuple(sorted(axes))


ALSO_WHEN_RESUMED = ("dataset", "output", "resume", "device", "threads", "as_json")


run_options = OptionGroup("Run")
network_options = OptionGroup("Network")
grid = OptionGroup("Patches and grid")
optimisation = OptionGroup("Optimisation")
augmentation = OptionGroup("Sampling and augmentation")
hardware = OptionGroup("Hardware and output")

EXAMPLES = {
    "Train the small network from scratch": "masksam-deploy train Dataset001_Heart -o run/",
    "Go on after an interruption": "masksam-deploy train Dataset001_Heart -o run/ --resume",
    "Train on a GPU, starting from SAM": "masksam-deploy train Dataset001_Heart -o run/ --network acdc \\\n"
    "    --sam-checkpoint sam_vit_b.pth --device cuda",
}


@click.command(cls=Command, short_help="Train a MaskSAM on a data set.", examples=EXAMPLES)
@click.argument("dataset", type=click.Path(path_type=Path))
@run_options("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder to write.")
@run_options("--resume", is_flag=True, help="Continue the interrupted run in the run folder with its own settings.")
@network_options(
    "--network",
    type=click.Choice(["tiny", "acdc", "synapse", "amos"]),
    default="tiny",
    show_default=True,
    help="Architecture. tiny has 2 M weights; acdc (ViT-B), synapse and amos (ViT-H) are as published.",
)
@network_options(
    "--sam-checkpoint", type=click.Path(path_type=Path), help="Start from these weights of SAM, which stay frozen."
)
@network_options(
    "--checkpoint", type=click.Path(path_type=Path), help="Fine-tune this MaskSAM. Its classes may be others."
)
@grid("--patch", type=_Sizes("T,P,P", whole=True), help="Patch size in voxels (z,y,x). Default: chosen from the data.")
@grid("--spacing", type=_Sizes("Z,Y,X", whole=False), help="Spacing in mm (z,y,x). Default: the median of the data.")
@network_options(
    "--queries",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Masks per slice. Default: as published, or 1.5 per class if that is more.",
)
@run_options(
    "--fold",
    callback=_fold,
    default="0",
    show_default=True,
    metavar="FOLD",
    help="nnU-Net fold (0 to 4) to hold out for validation. all trains on every case.",
)
@optimisation("--epochs", type=click.IntRange(1), metavar="N", help="Number of epochs. Default: 1000; for acdc 500.")
@optimisation(
    "--iterations", type=click.IntRange(1), default=250, show_default=True, metavar="N", help="Steps per epoch."
)
@optimisation(
    "--batch", type=click.IntRange(1, 1024), default=2, show_default=True, metavar="N", help="Patches per step."
)
@optimisation(
    "--optimizer", type=click.Choice(["adamw", "sgd"]), help="Optimiser. Default: adamw; for acdc and synapse sgd."
)
@optimisation(
    "--learning-rate",
    type=click.FloatRange(0, 10, min_open=True),
    default=1e-3,
    show_default=True,
    metavar="RATE",
    help="Learning rate after the warm-up.",
)
@optimisation(
    "--weight-decay",
    type=click.FloatRange(0, 1),
    default=3e-5,
    show_default=True,
    metavar="RATE",
    help="Weight decay.",
)
@optimisation(
    "--warmup",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Steps until the full learning rate.",
)
@augmentation(
    "--foreground",
    "foreground_share",
    type=click.FloatRange(0, 1),
    default=0.33,
    show_default=True,
    metavar="SHARE",
    help="Share of the patches that are centred on a label.",
)
@augmentation(
    "--mirror-axes",
    callback=_axes,
    default="0,1,2",
    show_default=True,
    metavar="AXES",
    help="Axes that patches are mirrored along at random, or none.",
)
@augmentation(
    "--shading",
    type=click.FloatRange(0, 2),
    default=0.0,
    show_default=True,
    metavar="STRENGTH",
    help="Strength of a smooth random gain, like the shading of MR images by coils. 0.5 is strong.",
)
@run_options(
    "--validate-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Validate after every N epochs.",
)
@run_options(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of all random numbers.",
)
@hardware("--device", type=DEVICE, default="cpu", show_default=True, help="Device to train on.")
@hardware("--threads", type=THREADS, metavar="N", help="CPU threads. Default: all cores.")
@hardware("--json", "as_json", is_flag=True, help="Print the summary at the end as JSON.")
@click.pass_context
def train(
    context: click.Context,
    /,
    dataset: Path,
    output: Path,
    resume: bool,
    device: str,
    threads: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a MaskSAM on DATASET, a folder in nnU-Net's raw layout.

    DATASET holds dataset.json, imagesTr/ and labelsTr/. All data are checked before anything is written. The run folder
    gets plans, settings, a table and curves of the losses and the validation Dice, and checkpoints in the form of the
    official trainers, which 'masksam-deploy export' turns into bundles. An interrupted run is continued with --resume.

    From scratch, every weight is trained. When training starts from SAM's weights, or fine-tunes a published network,
    only what MaskSAM adds to SAM is trained.
    """
    if resume:
        _refuse_settings(context)
    if settings["sam_checkpoint"] and settings["checkpoint"]:
        raise click.UsageError("--sam-checkpoint and --checkpoint exclude each other; start from one of them")
    from masksam_deploy.base.optional import require_packages

    require_packages("torch", "scipy", "matplotlib", extra="cpu,train", purpose="train")
    from masksam_export.families.masksam.training.run import Request
    from masksam_export.run_train import run_train

    request = None if resume else Request(**settings)
    run_train(dataset, output, request, device=device, threads=threads, as_json=as_json)


def _refuse_settings(context: click.Context) -> None:
    """Refuse settings for a resumed run: it keeps those that it was started with."""
    given = [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name not in ALSO_WHEN_RESUMED
        and context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume goes on with the run's own settings; leave out {', '.join(given)}")
