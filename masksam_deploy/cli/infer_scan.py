"""The infer command's work: check, read, segment, write everything or nothing, tell."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from masksam_deploy.atomic import atomic_path, check_writable
from masksam_deploy.backends.base import Device
from masksam_deploy.bundle import Bundle, file_digest
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.engines.run import Backend, Choice, open_network
from masksam_deploy.engines.spec import Precision
from masksam_deploy.engines.store import RECORD_NAME
from masksam_deploy.errors import OutputError, ScanError
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.io.labels import check_label_name
from masksam_deploy.overlay import draw_overlay, require_pillow
from masksam_deploy.report import Report, Stopwatch
from masksam_deploy.segmenter import BYTES_PER_VOXEL, Segmentation, Segmenter
from masksam_deploy.sliding_window import Accumulator
from masksam_deploy.text import one_line, shown
from masksam_deploy.volume import Volume


@dataclass(frozen=True)
class Outputs:
    """What to write: the label map, and on request a picture and a report."""

    labels: Path
    overlay: Path | None
    report: Path | None

    def named(self) -> dict[str, Path]:
        """The paths that are wanted, by kind."""
        wanted = {"labels": self.labels, "overlay": self.overlay, "report": self.report}
        return {kind: path for kind, path in wanted.items() if path}


def infer_scan(
    inputs: tuple[Path, ...],
    bundle: Path,
    outputs: Outputs,
    *,
    device: Device,
    backend: Backend,
    precision: Precision | None,
    tta: bool,
    accumulator: Accumulator,
    step: float,
    threads: int | None,
    max_ram: int | None,
    max_vram: int | None,
    as_json: bool,
) -> None:
    """Segment one scan, given as one path per channel; see the command's options."""
    _check_paths(inputs, bundle, outputs)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    _check_channels(inputs, loaded)
    with watch.stage("read"):
        volume = read_volume(inputs, max_voxels=max_ram // BYTES_PER_VOXEL if max_ram else None)
    with watch.stage("load_engine"):
        network, choice = open_network(loaded, backend, precision, device=device, threads=threads, max_vram=max_vram)
    _tell_refused(choice)
    with (
        Segmenter(
            loaded,
            device=device,
            network=network,
            tta=tta,
            accumulator=accumulator,
            step=step,
            threads=threads,
            max_ram=max_ram,
        ) as segmenter,
        progress_bar("network") as progress,
    ):
        result = segmenter(volume, partial(progress, "network") if progress else None)
    if choice.engine is not None:
        result.report.settings["engine_judged"] = choice.engine.judged
        result.report.settings["engine_sha256"] = file_digest(choice.engine.folder / RECORD_NAME).sha256
    _write(volume, result, inputs, outputs, watch, title=f"{inputs[0].name}   {loaded.manifest.name}")
    if as_json:
        click.echo(json.dumps(result.report.to_dict(), indent=2))
    else:
        _tell(result.report, outputs)


def _check_paths(inputs: tuple[Path, ...], bundle: Path, outputs: Outputs) -> None:
    """Refuse what cannot or must not be written before minutes of work: above all, nothing over patient data."""
    check_label_name(outputs.labels)
    if outputs.overlay:
        require_pillow()
        _check_suffix(outputs.overlay, ".png")
    if outputs.report:
        _check_suffix(outputs.report, ".json")
    scans = {path.resolve() for path in inputs}
    if len(scans) < len(inputs):
        raise ScanError("one file is given for two channels; give every channel its own")
    for path in outputs.named().values():
        if path.resolve() in scans:
            raise OutputError(f"'{shown(path)}' is the scan itself; give the output another name")
        if bundle.resolve() in path.resolve().parents:
            raise OutputError(f"'{shown(path)}' lies inside the bundle, which must stay as it is; write elsewhere")
        check_writable(path)


def _check_suffix(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        raise OutputError(f"'{shown(path)}': found '{path.suffix}' as its type, expected {suffix}; rename it")


def _check_channels(inputs: tuple[Path, ...], bundle: Bundle) -> None:
    if len(inputs) == bundle.channels:
        return
    names = ", ".join(bundle.manifest.preprocessing.channel_names)
    todo = "give further ones with --channel" if len(inputs) < bundle.channels else "leave out some --channel"
    raise ScanError(f"found {len(inputs)} input channel(s), the model expects {bundle.channels} ({names}); {todo}")


def _write(
    volume: Volume, result: Segmentation, inputs: tuple[Path, ...], outputs: Outputs, watch: Stopwatch, title: str
) -> None:
    """Produce all outputs under temporary names, then rename them together."""
    labels, report = result
    with ExitStack() as stack:
        temporary = {kind: stack.enter_context(atomic_path(path)) for kind, path in outputs.named().items()}
        with watch.stage("write"):
            write_labels(labels, temporary["labels"])
        if "overlay" in temporary:
            with watch.stage("overlay"):
                names = {label.value: label.name for label in report.labels}
                draw_overlay(volume, labels, names, temporary["overlay"], title=title)
        report.timings_s.update(watch.rounded())
        report.files = {
            "inputs": [_described(path) for path in inputs],
            **{kind: _described(path, outputs.named()[kind]) for kind, path in temporary.items() if kind != "report"},
        }
        if "report" in temporary:
            temporary["report"].write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


def _described(path: Path, name: Path | None = None) -> dict[str, Any]:
    """Name and hash of a file; of a folder, its files' hashes."""
    where = str(name or path)
    if path.is_dir():
        members = sorted(member for member in path.iterdir() if member.is_file())
        return {"path": where, "files": {member.name: file_digest(member).sha256 for member in members}}
    return {"path": where, "sha256": file_digest(path).sha256}


def _tell_refused(choice: Choice) -> None:
    """Say what was not used: nobody should wonder why it is slow."""
    for name, why in choice.stale.items():
        click.echo(f"engine {one_line(name)} is not used: {one_line(why, limit=1000)}", err=True)
    if choice.foreign:
        click.echo(
            f"{len(choice.foreign)} engine(s) in the bundle are for other machines: masksam-deploy doctor BUNDLE",
            err=True,
        )


def _tell(result: Report, outputs: Outputs) -> None:
    settings, seconds = result.settings, result.timings_s
    providers = ", ".join(sorted(set(settings["providers"].values())))
    mirrored = f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"
    engine = f" (engine {settings['engine']})" if settings["engine"] else ""
    if settings["engine"] and not settings.get("engine_judged"):
        engine += ", NOT JUDGED"
    click.echo(
        f"ran on {providers}, {settings['precision']}{engine}: {result.scan['windows']} windows, {mirrored}, "
        f"network {seconds['network']:.1f} s of {sum(seconds.values()):.1f} s"
    )
    names = [one_line(label.name) for label in result.labels]
    width = max(map(len, names))
    for label, name in zip(result.labels, names, strict=True):
        click.echo(f"  {label.value:>5}  {name:<{width}}  {label.volume_ml:>12.2f} ml  {label.voxels:>11} voxels")
    for kind, path in outputs.named().items():
        click.echo(f"{kind}: {path}")
