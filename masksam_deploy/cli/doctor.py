"""`masksam-deploy doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from masksam_deploy.cli.help import Command

EXAMPLES = {
    "Show what this machine can run": "masksam-deploy doctor",
    "Show which engines of a bundle are valid here": "masksam-deploy doctor lv.masksam",
}


@click.command(cls=Command, short_help="Show what this machine can build and run.", examples=EXAMPLES)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Show what this machine can build and run, what is missing, and how to get it.

    With BUNDLE, the bundle is verified as well, and its engines are listed with whether they are valid here.
    """
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.doctor import diagnose
    from masksam_deploy.engines.choose import engine_states

    loaded = None if bundle is None else Bundle.load(bundle)
    found = diagnose()
    if as_json:
        content = asdict(found)
        content["bundle"] = None if loaded is None else {"path": str(loaded.path), "manifest_sha256": loaded.sha256}
        content["engines"] = None if loaded is None else [asdict(status) for status in engine_states(loaded)]
        click.echo(json.dumps(content, indent=2))
        return
    from masksam_deploy.cli.doctor_report import report

    report(found, loaded, sys.stdout)
