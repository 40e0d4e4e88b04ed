"""`masksam-deploy infer`: one scan in, one label map out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from masksam_deploy.atomic import atomic_path, check_writable
from masksam_deploy.backends.base import Device
from masksam_deploy.bundle import Bundle, file_digest
from masksam_deploy.errors import OutputError, ScanError
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.io.labels import check_label_name
from masksam_deploy.memory import parse_size, physical_memory
from masksam_deploy.overlay import draw_overlay, require_pillow
from masksam_deploy.report import Report, Stopwatch
from masksam_deploy.segmenter import Progress, Segmenter
from masksam_deploy.sliding_window import Accumulator

BYTES_PER_VOXEL = 13
"""The scan and its normalised copy in float32, the network's input, and the label map."""


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    try:
        return parse_size(text) if text else physical_memory()
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("scan", type=click.Path(path_type=Path))
@click.option("-b", "--bundle", required=True, type=click.Path(path_type=Path), help="Bundle directory.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Label map: .nii.gz .nii .nrrd .mha"
)
@click.option(
    "-c",
    "--channel",
    "channels",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Further input channel, in the model's order; repeat for more.",
)
@click.option("--overlay", type=click.Path(path_type=Path), help="Draw a contact sheet (.png).")
@click.option("--report", type=click.Path(path_type=Path), help="Write volumes, timings and hashes (.json).")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--tta/--no-tta", default=True, help="Average over mirrored windows where the bundle allows it [on].")
@click.option(
    "--accumulator",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="float16 repeats the training code's arithmetic, which loses accuracy near the scan's corners.",
)
@click.option("--step", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True, help="Window step.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads for the network [all cores].")
@click.option("--max-ram", callback=_size, help="Refuse scans that need more, e.g. 8G [this machine's memory].")
@click.option("--json", "as_json", is_flag=True, help="Print the report instead of a summary.")
def infer(
    scan: Path,
    bundle: Path,
    output: Path,
    channels: tuple[Path, ...],
    overlay: Path | None,
    report: Path | None,
    device: Device,
    tta: bool,
    accumulator: Accumulator,
    step: float,
    threads: int | None,
    max_ram: int | None,
    as_json: bool,
) -> None:
    """Segment SCAN, a NIfTI, NRRD or MetaImage file or a folder with one DICOM series.

    The label map gets the scan's exact geometry.
    """
    inputs = (scan, *channels)
    _check_outputs(inputs, output, overlay, report)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    if len(inputs) != loaded.channels:
        names = ", ".join(loaded.manifest.preprocessing.channel_names)
        raise ScanError(
            f"found {len(inputs)} input channel(s), the model expects {loaded.channels} ({names}); "
            "give further ones with --channel"
        )
    with watch.stage("read"):
        volume = read_volume(inputs, max_voxels=max_ram // BYTES_PER_VOXEL if max_ram else None)
    with (
        Segmenter(
            loaded, device=device, tta=tta, accumulator=accumulator, step=step, threads=threads, max_ram=max_ram
        ) as segmenter,
        _progress_bar() as progress,
    ):
        labels, result = segmenter(volume, progress)
    with watch.stage("write"):
        write_labels(labels, output)
    if overlay:
        with watch.stage("overlay"):
            names_by_value = {label.value: label.name for label in result.labels}
            draw_overlay(volume, labels, names_by_value, overlay)
    result.timings_s.update(watch.rounded())
    result.files = {
        "inputs": [_described(path) for path in inputs],
        "labels": _described(output),
        **({"overlay": _described(overlay)} if overlay else {}),
    }
    if report:
        with atomic_path(report) as temporary:
            temporary.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _tell(result, output, overlay, report)


def _check_outputs(inputs: tuple[Path, ...], output: Path, overlay: Path | None, report: Path | None) -> None:
    """Refuse what cannot be written before minutes of work, and above all writing over the scan."""
    check_label_name(output)
    if overlay:
        require_pillow()
        if overlay.suffix.lower() != ".png":
            raise OutputError(f"'{overlay}': found no .png name for the overlay; name it like overlay.png")
    outputs = [path for path in (output, overlay, report) if path]
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise OutputError(f"'{path}' is named twice, or is the scan itself; give every output its own name")
        taken.add(path.resolve())
        check_writable(path)


@contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar on a terminal, nothing in a pipe."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("network"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("network", total=None)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        yield advance


def _described(path: Path) -> dict[str, object]:
    """Name and hash of a file; of a folder, its files' hashes."""
    if path.is_dir():
        members = sorted(member for member in path.iterdir() if member.is_file())
        return {"path": str(path), "files": {member.name: file_digest(member).sha256 for member in members}}
    return {"path": str(path), "sha256": file_digest(path).sha256}


def _tell(result: Report, output: Path, overlay: Path | None, report: Path | None) -> None:
    settings, seconds = result.settings, result.timings_s
    providers = ", ".join(sorted(set(settings["providers"].values())))
    mirrored = f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"
    click.echo(
        f"ran on {providers}, {settings['precision']}: {result.scan['windows']} windows, {mirrored}, "
        f"network {seconds['network']:.1f} s of {sum(seconds.values()):.1f} s"
    )
    width = max(len(label.name) for label in result.labels)
    for label in result.labels:
        click.echo(f"  {label.value:>5}  {label.name:<{width}}  {label.volume_ml:>12.2f} ml  {label.voxels:>11} voxels")
    for kind, path in (("labels", output), ("overlay", overlay), ("report", report)):
        if path:
            click.echo(f"{kind}: {path}")
