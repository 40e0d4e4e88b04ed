"""`masksam-deploy unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.text import printable
from masksam_deploy.bundle.archive import unpack as unpack_bundle

_SUFFIX = ".masksam"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Directory to create; NAME.masksam beside the file if not given.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
def unpack(file: Path, output: Path | None, force: bool) -> None:
    """Restore a bundle from its packed file, and verify it.

    Nothing is left behind unless the whole bundle is unharmed.
    """
    bundle = unpack_bundle(file, output or default_target(file), force=force)
    click.echo(f"{printable(bundle.path)}: verified, manifest SHA-256 {bundle.sha256}")


def default_target(file: Path) -> Path:
    """`NAME.masksam` beside the packed file."""
    if not file.name:
        raise BundleError(f"{file}: found a folder, expected a packed bundle; name its file")
    name = file.name.removesuffix(".zip").removesuffix(_SUFFIX)
    return file.with_name(f"{name}{_SUFFIX}")
