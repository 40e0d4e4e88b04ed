"""The infer command's work: decide whether one scan or many are meant, and run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.text import shown
from masksam_deploy.cli.infer_folder import FolderOutputs, infer_folder
from masksam_deploy.cli.infer_scan import infer_scan
from masksam_deploy.cli.open_segmenter import RunSettings
from masksam_deploy.engines.choose import Backend
from masksam_deploy.engines.profiles import ProfileName, choose
from masksam_deploy.io.write_labels import LABEL_SUFFIXES
from masksam_deploy.outputs.one_scan import Outputs
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.spec import Precision
from masksam_deploy.scan_path.place import ScoresOn
from masksam_deploy.scan_path.windows import Accumulator

_INSTEAD = {
    "--channel": "belongs to one scan and a label file; of many, name the channels' files CASE_0000, CASE_0001 ...",
    "--overlay": "belongs to one scan and a label file; --overlays draws one of each",
    "--report": "belongs to one scan and a label file; of many, OUTPUT/report.json is always written",
}


@dataclass(frozen=True)
class InferRequest:
    """The command's parameters, see `infer --help`; None where an option was not typed."""

    scans: tuple[Path, ...]
    bundle: Path
    output: Path
    channels: tuple[Path, ...]
    overlay: Path | None
    report: Path | None
    overlays: bool
    suffix: str | None
    resume: bool
    force: bool
    device: Device | None
    backend: Backend
    profile: ProfileName | None
    precision: Precision | None
    tta: bool | None
    accumulator: Accumulator
    step: float | None
    threads: int | None
    max_ram: int | None
    max_vram: int | None
    scores_on: ScoresOn
    run_timeout: int | None
    as_json: bool


def run_infer(request: InferRequest) -> None:
    """Segment what is asked for.

    Raises:
        click.UsageError: options contradict each other.
        MaskSamError: an input, the bundle or an output is refused, or the network cannot run.
        ScansFailedError: some of many scans failed; the others are done.
    """
    if request.device == "cpu" and request.backend in ("tensorrt", "rtx"):
        raise click.UsageError(
            f"--backend {request.backend} runs on a GPU, --device cpu does not; give only one of them"
        )
    if _is_one_scan(request.scans, request.output):
        _infer_one(request)
    else:
        _infer_many(request)


def _infer_one(request: InferRequest) -> None:
    _refuse(
        {
            "--overlays": request.overlays,
            "--suffix": request.suffix is not None,
            "--resume": request.resume,
            "--force": request.force,
        },
        "is for many scans, with a folder as output",
    )
    outputs = Outputs(request.output, request.overlay, request.report)
    inputs = (*request.scans, *request.channels)
    infer_scan(inputs, request.bundle, outputs, _run_settings(request), as_json=request.as_json)


def _infer_many(request: InferRequest) -> None:
    _refuse(
        {
            "--channel": bool(request.channels),
            "--overlay": request.overlay is not None,
            "--report": request.report is not None,
        },
        _INSTEAD,
    )
    if request.resume and request.force:
        raise click.UsageError(
            "--resume skips the scans that are done, --force segments them again; give only one of them"
        )
    outputs = FolderOutputs(
        request.output, request.suffix or ".nii.gz", request.overlays, request.resume, request.force
    )
    infer_folder(request.scans, request.bundle, outputs, _run_settings(request), as_json=request.as_json)


def _run_settings(request: InferRequest) -> RunSettings:
    return RunSettings(
        inference=choose(request.profile, step=request.step, tta=request.tta, precision=request.precision),
        device=request.device,
        backend=request.backend,
        accumulator=request.accumulator,
        threads=request.threads,
        max_ram=request.max_ram,
        max_vram=request.max_vram,
        scores_on=request.scores_on,
        run_timeout=request.run_timeout,
    )


def _is_one_scan(scans: tuple[Path, ...], output: Path) -> bool:
    """Whether one scan and one label file are meant.

    Raises:
        OutputError: several scans and a label file are given, or one scan and neither a label file nor a folder.
    """
    names_a_file = output.name.lower().endswith((*LABEL_SUFFIXES, ".mhd", ".nhdr")) and not output.is_dir()
    if names_a_file and len(scans) > 1:
        raise OutputError(
            f"{shown(output)}: found the name of one label map for {len(scans)} scans, expected a folder; give a "
            "folder, or give further channels of one scan with --channel"
        )
    if len(scans) > 1 or output.is_dir():
        return False
    if not names_a_file and not output.suffix and scans[0].is_file():
        # A folder is made for a folder of scans; for one file, a name without a type is more likely a slip.
        raise OutputError(
            f"{shown(output)}: found a name without a file type, expected one of {', '.join(LABEL_SUFFIXES)}; add the "
            "type, or make that folder first"
        )
    return names_a_file or scans[0].is_file()


def _refuse(given: Mapping[str, bool], why: str | Mapping[str, str]) -> None:
    """Refuse options that belong to the other form of the command."""
    for name, is_given in given.items():
        if is_given:
            raise click.UsageError(f"{name} {why if isinstance(why, str) else why[name]}")
