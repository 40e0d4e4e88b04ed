"""The export options that families trained with nnU-Net have in common."""

from __future__ import annotations

from pathlib import Path

import click


def nnunet_options() -> list[click.Option]:
    """`--plans`, `--dataset`, `--configuration` and `--mirror-axes`, made anew."""
    return [
        click.Option(["--plans"], type=click.Path(path_type=Path), help="nnU-Net plans, for a plain state dict."),
        click.Option(["--dataset"], type=click.Path(path_type=Path), help="dataset.json, for a plain state dict."),
        click.Option(
            ["--configuration"],
            metavar="NAME",
            help="Configuration in the plans. Default: the checkpoint's own, or else 3d_fullres.",
        ),
        click.Option(
            ["--mirror-axes"],
            metavar="AXES",
            callback=_parsed,
            help="Axes that windows may be mirrored along, e.g. 0,1,2 or none. Default: the checkpoint's own.",
        ),
    ]


def parse_axes(text: str | None) -> tuple[int, ...] | None:
    """'0,1,2' -> (0, 1, 2); 'none' -> (); nothing -> None.

    Raises:
        click.BadParameter: the text is neither.
    """
    if text is None:
        return None
    if text.strip().lower() in ("none", ""):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"'{text}' is not like 0,1,2 or none", param_hint="--mirror-axes") from error


def _parsed(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    return parse_axes(text)
