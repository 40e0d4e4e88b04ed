"""`masksam-deploy inspect`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from masksam_deploy.cli.help import Command

if TYPE_CHECKING:
    from masksam_deploy.bundle.directory import Bundle

EXAMPLES = {
    "Show a bundle": "masksam-deploy inspect lv.masksam",
    "Print its manifest for a program": "masksam-deploy inspect lv.masksam --json",
}


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and a summary as JSON.")
@click.option("--no-verify", is_flag=True, help="Do not check the hashes of the files; faster for large bundles.")
def inspect(bundle: Path, as_json: bool, no_verify: bool) -> None:
    """Show what a bundle holds, and verify it.

    Its network, preprocessing, labels, provenance and files are shown, and every file is compared with its hash.
    """
    from masksam_deploy.bundle.directory import Bundle

    loaded = Bundle.load(bundle, verify=not no_verify)
    if as_json:
        content = {
            "summary": summary(loaded, verified=not no_verify),
            "manifest": loaded.manifest.model_dump(mode="json"),
        }
        click.echo(json.dumps(content, indent=2))
    else:
        _print_report(loaded, verified=not no_verify)


def summary(bundle: Bundle, *, verified: bool) -> dict[str, Any]:
    """Sizes and counts that follow from the manifest, and whether the hashes were checked."""
    sizes = {name: digest.bytes for name, digest in bundle.manifest.files.items()}
    return {
        "path": str(bundle.path),
        "verified": verified,
        "manifest_sha256": bundle.sha256,
        "total_bytes": sum(sizes.values()),
        "patch_size": list(bundle.patch_size),
        "channels": bundle.channels,
        "classes": bundle.classes,
        "kernels": None if bundle.kernels is None else str(bundle.kernels),
        "graph_bytes": {graph.name: sizes[graph.file] for graph in bundle.manifest.graphs},
    }


def _print_report(bundle: Bundle, *, verified: bool) -> None:
    # rich only now: --json does without it.
    from masksam_deploy.cli.bundle_report import report

    report(bundle, sys.stdout, verified=verified)
