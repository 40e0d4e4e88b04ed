"""The infer command's work on one scan: check, read, segment, write everything or nothing, tell."""

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
    Running,
    how_mirrored,
    open_segmenter,
    scores_came_down,
    start_workers,
    what_ran,
)
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.profiles import in_words
from masksam_deploy.io import read_volume
from masksam_deploy.io.cases import find_scans
from masksam_deploy.io.read import files_of
from masksam_deploy.io.write_labels import check_label_name
from masksam_deploy.outputs.one_scan import Outputs, described_scan, write_results
from masksam_deploy.outputs.overlay import require_pillow
from masksam_deploy.scan_path.report import Report, Stopwatch
from masksam_deploy.scan_path.segmenter import BYTES_PER_VOXEL


def infer_scan(inputs: tuple[Path, ...], bundle: Path, outputs: Outputs, how: Running, *, as_json: bool) -> None:
    """Segment one scan, given as one path per channel; see the command's options."""
    _check_paths(inputs, bundle, outputs)
    start_workers(how)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    _check_channels(inputs, loaded)
    with watch.stage("read"):
        volume = _read(inputs, how.max_ram)
        for warning in volume.warnings:
            warn(warning)
        files = described_scan(inputs)  # now: while the network runs, the scan may be moved or replaced
    with open_segmenter(loaded, how, watch) as (segmenter, settings), progress_bar("network") as progress:
        result = segmenter(volume, partial(progress, "network") if progress else None)
    result.report.settings = settings
    title = f"{inputs[0].name}   {loaded.manifest.name}"
    write_results(volume, result, outputs, files, watch, title)
    if as_json:
        click.echo(json.dumps(result.report.to_dict(), indent=2))
        return
    _tell(result.report, outputs)
    if how.chosen.profile:
        click.echo(in_words(how.chosen, settings))


def _check_paths(inputs: tuple[Path, ...], bundle: Path, outputs: Outputs) -> None:
    """Refuse what cannot or must not be written before minutes of work: above all, nothing over patient data."""
    check_label_name(outputs.labels)
    if outputs.overlay:
        require_pillow()
        _check_suffix(outputs.overlay, ".png")
    if outputs.report:
        _check_suffix(outputs.report, ".json")
    scans = {resolved(path, ScanError) for path in inputs}
    if len(scans) < len(inputs):
        raise ScanError("one file is given for two channels; give every channel its own")
    scans |= {resolved(part, ScanError) for path in inputs if path.is_file() for part in files_of(path)}
    for path in outputs.named().values():
        place = resolved(path, OutputError)
        if place in scans:
            raise OutputError(f"'{shown(path)}' is the scan itself; give the output another name")
        if resolved(bundle, BundleError) in place.parents:
            raise OutputError(f"'{shown(path)}' lies inside the bundle, which must stay as it is; write elsewhere")
        check_writable(path)


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise OutputError(f"'{shown(path)}': found '{path.suffix}' as its type, expected {suffix}; rename it")


def _check_channels(inputs: tuple[Path, ...], bundle: Bundle) -> None:
    if len(inputs) == bundle.channels:
        return
    names = ", ".join(bundle.manifest.recipe.channel_names)
    todo = "give further ones with --channel" if len(inputs) < bundle.channels else "leave out some --channel"
    raise ScanError(f"found {len(inputs)} input channel(s), the model expects {bundle.channels} ({names}); {todo}")


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
            f"{error}; or, if that is a folder of {len(found)} scan(s): give --output a folder, and each gets its "
            "label map there"
        ) from error


def _tell(result: Report, outputs: Outputs) -> None:
    settings, seconds = result.settings, result.timings_s
    click.echo(
        f"{what_ran(settings)}: {result.scan['windows']} windows, {how_mirrored(settings)}, "
        f"network {seconds['network']:.1f} s of {sum(seconds.values()):.1f} s"
    )
    came_down = scores_came_down(result.scan)
    if came_down:
        click.echo(came_down)
    names = [one_line(label.name) for label in result.labels]
    width = max(map(len, names))
    for label, name in zip(result.labels, names, strict=True):
        click.echo(f"  {label.value:>5}  {name:<{width}}  {label.volume_ml:>12.2f} ml  {label.voxels:>11} voxels")
    for kind, path in outputs.named().items():
        click.echo(f"{kind}: {printable(path)}")
