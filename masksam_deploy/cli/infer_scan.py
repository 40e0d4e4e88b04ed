"""The infer command on one scan: check the call, read, segment, write all outputs or none, print a summary."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click

from masksam_deploy.base.atomic import check_writable
from masksam_deploy.base.errors import BundleError, OutputError, ScanError
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import one_line, printable, shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.open_segmenter import (
    RunSettings,
    mirroring,
    open_segmenter,
    runtime_summary,
    scores_fallback,
    start_workers,
)
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.profiles import profile_summary
from masksam_deploy.io import read_volume
from masksam_deploy.io.cases import find_scans
from masksam_deploy.io.read import files_of
from masksam_deploy.io.write_labels import check_label_name
from masksam_deploy.outputs.one_scan import Outputs, described_scan, write_results
from masksam_deploy.outputs.overlay import require_pillow
from masksam_deploy.scan_path.report import Report, Stopwatch
from masksam_deploy.scan_path.segmenter import BYTES_PER_VOXEL


def infer_scan(
    inputs: tuple[Path, ...], bundle: Path, outputs: Outputs, settings: RunSettings, *, as_json: bool
) -> None:
    """Segment one scan.

    Args:
        inputs: one path per channel, in the model's order.
        bundle: directory.
        outputs: what to write.
        settings: how to segment.
        as_json: whether to print the report as JSON instead of a summary.

    Raises:
        ScanError, BundleError, OutputError: an input or an output is refused; nothing is written.
        EngineError, BackendError, MemoryLimitError: the network cannot run here.
    """
    _check_paths(inputs, bundle, outputs)
    start_workers(settings)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    _check_channels(inputs, loaded)
    with watch.stage("read"):
        volume = _read(inputs, settings.max_ram)
        for warning in volume.warnings:
            warn(warning)
        files = described_scan(inputs)  # now: while the network runs, the scan may be moved or replaced
    with open_segmenter(loaded, settings, watch) as (segmenter, ran), progress_bar("network") as progress:
        result = segmenter(volume, partial(progress, "network") if progress else None)
    result.report.settings = ran
    title = f"{inputs[0].name}   {loaded.manifest.name}"
    write_results(volume, result, outputs, files, watch, title)
    if as_json:
        click.echo(json.dumps(result.report.to_dict(), indent=2))
        return
    _print_summary(result.report, outputs)
    if settings.inference.profile:
        click.echo(profile_summary(settings.inference, ran))


def _check_paths(inputs: tuple[Path, ...], bundle: Path, outputs: Outputs) -> None:
    """Refuse, before minutes of work, outputs that cannot be written, or that would overwrite a scan or the bundle."""
    check_label_name(outputs.labels)
    if outputs.overlay:
        require_pillow()
        _check_suffix(outputs.overlay, ".png")
    if outputs.report:
        _check_suffix(outputs.report, ".json")
    scans = {resolved(path, ScanError) for path in inputs}
    if len(scans) < len(inputs):
        raise ScanError("found one file given for two channels, expected a file for each; give every channel its own")
    scans |= {resolved(part, ScanError) for path in inputs if path.is_file() for part in files_of(path)}
    for path in outputs.named().values():
        place = resolved(path, OutputError)
        if place in scans:
            raise OutputError(
                f"{shown(path)}: found the scan itself as an output, expected a new file; give another name"
            )
        if resolved(bundle, BundleError) in place.parents:
            raise OutputError(
                f"{shown(path)}: found an output that lies inside the bundle, which must not change; write elsewhere"
            )
        check_writable(path)


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise OutputError(f"{shown(path)}: found the file type '{path.suffix}', expected {suffix}; rename it")


def _check_channels(inputs: tuple[Path, ...], bundle: Bundle) -> None:
    if len(inputs) == bundle.channels:
        return
    names = ", ".join(bundle.manifest.recipe.channel_names)
    todo = "name the others with --channel" if len(inputs) < bundle.channels else "leave out the surplus --channel"
    raise ScanError(f"found {len(inputs)} input channel(s), expected the model's {bundle.channels} ({names}); {todo}")


def _read(inputs: tuple[Path, ...], max_ram: int | None) -> Volume:
    try:
        return read_volume(inputs, max_voxels=None if max_ram is None else max_ram // BYTES_PER_VOXEL)
    except ScanError as error:
        if len(inputs) > 1 or not inputs[0].is_dir():
            raise
        try:
            found = find_scans(inputs, 1)
        except ScanError:
            raise error from None
        if [scan.paths for scan in found] == [inputs]:
            raise
        raise ScanError(
            f"{error}; if this is a folder of {len(found)} scan(s), give --output a folder, which then gets the label "
            "map of each"
        ) from error


def _print_summary(result: Report, outputs: Outputs) -> None:
    settings, seconds = result.settings, result.timings_s
    click.echo(
        f"{runtime_summary(settings)}: {result.scan['windows']} windows, {mirroring(settings)}, "
        f"network {seconds['network']:.1f} s of {sum(seconds.values()):.1f} s"
    )
    fallback = scores_fallback(result.scan)
    if fallback:
        click.echo(fallback)
    names = [one_line(label.name) for label in result.labels]
    width = max(map(len, names))
    for label, name in zip(result.labels, names, strict=True):
        click.echo(f"  {label.value:>5}  {name:<{width}}  {label.volume_ml:>12.2f} ml  {label.voxels:>11} voxels")
    for kind, path in outputs.named().items():
        click.echo(f"{kind}: {printable(path)}")
