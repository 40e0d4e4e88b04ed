"""The export command's work: load, tell, export, tell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from masksam_deploy.base.text import one_line, printable
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.gate import with_references
from masksam_deploy.io.cases import find_scans
from masksam_export.families.masksam.adapter_nodes import Adapters
from masksam_export.families.masksam.checkpoint import load_checkpoint
from masksam_export.onnx_export import export_bundle
from masksam_export.passes.convolutions import Convolutions


def run_export(
    checkpoint: Path,
    target: Path,
    *,
    plans: Path | None,
    dataset: Path | None,
    configuration: str | None,
    mirror_axes: tuple[int, ...] | None,
    adapters: Adapters,
    convolutions: Convolutions,
    validation: Sequence[Path],
    references: Path | None,
    kernels: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export and report; see the command's options."""
    if references and not validation:
        raise click.UsageError("--references belong to scans: name these with --validation")
    started = time.perf_counter()
    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("reading the checkpoint") as status:

        def step(text: str) -> None:
            status.update(text)
            if not console.is_terminal:
                console.print(f"  {text}")

        trained = load_checkpoint(
            checkpoint,
            plans=plans,
            dataset=dataset,
            configuration=configuration,
            mirror_axes=mirror_axes,
            owned=True,
        )
        for note in trained.notes:
            console.print(one_line(note, limit=2000), soft_wrap=True)
        scans = find_scans(validation, trained.config.in_channels, tell=warn) if validation else []
        bundle = export_bundle(
            trained,
            target,
            force=force,
            consume=True,
            adapters=adapters,
            convolutions=convolutions,
            kernels=kernels,
            validation=with_references(scans, references),
            progress=step,
        )
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_summary(bundle, trained.notes, seconds), indent=2))
        return
    _tell(bundle, seconds)


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
                f"verified on {name}: class scores within {figures['semseg_max_abs_error']:.1e}, "
                f"same class on {figures[agreement]:.3%} of the voxels"
            )
    click.echo(f"wrote {printable(bundle.path)} ({total / 2**20:.1f} MiB, {seconds:.0f} s)")
    click.echo(f"next: masksam-deploy infer SCAN -b {printable(bundle.path)} -o SEG.nii.gz")
