"""`masksam-deploy unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.text import printable
from masksam_deploy.cli.help import Command

_SUFFIX = ".masksam"


@click.command(cls=Command, examples={"Restore lv.masksam": "masksam-deploy unpack lv.masksam.zip"})
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Directory to create. Default: NAME.masksam beside the file.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
def unpack(file: Path, output: Path | None, force: bool) -> None:
    """Restore a bundle from its packed file, and verify it.

    The directory appears only if every file of the bundle is whole.
    """
    from masksam_deploy.bundle.archive import unpack as unpack_bundle

    bundle = unpack_bundle(file, output or default_target(file), force=force)
    click.echo(f"{printable(bundle.path)}: verified, manifest SHA-256 {bundle.sha256}")


def default_target(file: Path) -> Path:
    """`NAME.masksam` beside the packed file."""
    if not file.name:
        raise BundleError(f"{file}: found a folder, expected a packed bundle; name its file")
    name = file.name.removesuffix(".zip").removesuffix(_SUFFIX)
    return file.with_name(f"{name}{_SUFFIX}")
