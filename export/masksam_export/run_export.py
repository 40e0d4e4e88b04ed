"""The export command's work: load, tell, export, tell."""

from __future__ import annotations

import json
import time

import click
from rich.console import Console

from masksam_deploy.base.text import one_line, printable
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.gate import Case, with_references
from masksam_deploy.io.cases import find_scans
from masksam_deploy.runtimes.base import SCORES
from masksam_export.cli import ExportRequest
from masksam_export.families.registry import load_trained
from masksam_export.measured import read_measured
from masksam_export.onnx_export import export_bundle


def run_export(request: ExportRequest) -> None:
    """Export and report; see the command's options.

    Raises:
        MaskSamError: what was asked for cannot be exported.
    """
    if request.references and not request.validation:
        raise click.UsageError("--references belong to scans: name these with --validation")
    started = time.perf_counter()
    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("reading the checkpoint") as status:

        def step(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"  {text}")

        trained = load_trained(
            request.checkpoint,
            family=request.family,
            options=request.options,
            families=request.families,
            owned=True,
        )
        for note in trained.notes:
            console.print(one_line(note, limit=2000), soft_wrap=True)
        bundle = export_bundle(
            trained,
            request.target,
            force=request.force,
            consume=True,
            convolutions=request.convolutions,
            measured=read_measured(request.measured, trained.sha256) if request.measured else None,
            validation=_cases(request, len(trained.recipe.channels)),
            progress=step,
        )
    seconds = time.perf_counter() - started
    if request.as_json:
        click.echo(json.dumps(_summary(bundle, trained.notes, seconds), indent=2))
        return
    _tell(bundle, seconds)


def _cases(request: ExportRequest, channels: int) -> list[Case]:
    """The validation scans, with their references."""
    scans = find_scans(request.validation, channels, tell=warn) if request.validation else []
    return with_references(scans, request.references)


def _summary(bundle: Bundle, notes: tuple[str, ...], seconds: float) -> dict[str, object]:
    return {
        "bundle": str(bundle.path),
        "manifest_sha256": bundle.sha256,
        "seconds": round(seconds, 2),
        "inferred": list(notes),
        "provenance": bundle.manifest.provenance.model_dump(mode="json"),
    }


def _tell(bundle: Bundle, seconds: float) -> None:
    total = sum(digest.bytes for digest in bundle.manifest.files.values())
    agreement = f"{bundle.manifest.labels.decision}_agreement"
    for name, figures in bundle.manifest.provenance.parity.items():
        if isinstance(figures, dict):
            click.echo(
                f"verified on {name}: class scores within {figures[f'{SCORES}_max_abs_error']:.1e}, "
                f"same class on {figures[agreement]:.3%} of the voxels"
            )
    click.echo(f"wrote {printable(bundle.path)} ({total / 2**20:.1f} MiB, {seconds:.0f} s)")
    click.echo(f"next: masksam-deploy infer SCAN -b {printable(bundle.path)} -o SEG.nii.gz")
