"""`masksam-deploy pack`."""

from __future__ import annotations

from pathlib import Path

import click

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import printable
from masksam_deploy.cli.help import Command

_SUFFIX = ".masksam"


@click.command(cls=Command, examples={"Write lv.masksam.zip": "masksam-deploy pack lv.masksam"})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write. Default: NAME.masksam.zip beside the bundle.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def pack(bundle: Path, output: Path | None, force: bool) -> None:
    """Put a bundle into one file.

    The bundle is verified first. The same bundle always gives the same bytes. Engines belong to one machine and are
    left out.
    """
    from masksam_deploy.bundle.archive import pack as pack_bundle

    target = output or default_target(bundle)
    pack_bundle(bundle, target, force=force)
    click.echo(f"{printable(target)}: {target.stat().st_size:,} bytes")


def default_target(bundle: Path) -> Path:
    """`NAME.masksam.zip` beside the bundle."""
    directory = bundle if bundle.name not in ("", "..") else resolved(bundle, BundleError)
    if not directory.name:
        raise BundleError(
            f"{bundle}: found no name for the packed file, expected the name of a bundle; name a file with -o"
        )
    return directory.with_name(f"{directory.name.removesuffix(_SUFFIX)}{_SUFFIX}.zip")
