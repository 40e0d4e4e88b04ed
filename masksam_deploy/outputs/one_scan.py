"""Writing the outputs of one scan: a label map, and on request a picture and a report; all of them, or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.text import plain_text, shown
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import file_digest
from masksam_deploy.io import write_labels
from masksam_deploy.io.read import files_of
from masksam_deploy.outputs.overlay import draw_overlay
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.segmenter import Segmentation


@dataclass(frozen=True)
class Outputs:
    """The files to write for one scan.

    Attributes:
        labels: the label map.
        overlay: the contact sheet (.png); None for no picture.
        report: the report (.json); None for no report.
    """

    labels: Path
    overlay: Path | None = None
    report: Path | None = None

    def named(self) -> dict[str, Path]:
        """The paths of the outputs that are asked for, by kind."""
        wanted = {"labels": self.labels, "overlay": self.overlay, "report": self.report}
        return {kind: path for kind, path in wanted.items() if path}


def write_results(
    scan: Volume | None,
    result: Segmentation,
    outputs: Outputs,
    inputs: Sequence[dict[str, Any]],
    watch: Stopwatch,
    title: str,
) -> None:
    """Write all outputs under temporary names, then rename them together.

    Args:
        scan: the scan that was segmented, for the picture; may be None if no picture is asked for.
        result: label map and report; the report gets the entries `files` and `timings_s`.
        outputs: the files to write.
        inputs: the scan's files, as `described_scan` gives them.
        watch: holds the times of all stages so far.
        title: first line of the picture.

    Raises:
        OutputError: an output cannot be written; files that were there before are unchanged.
        ValueError: a picture is asked for without a scan.
    """
    if outputs.overlay and scan is None:
        raise ValueError("found no scan, expected the scan to draw the overlay on")
    labels, report = result
    with ExitStack() as stack:
        temporary = {kind: stack.enter_context(atomic_path(path)) for kind, path in outputs.named().items()}
        with watch.stage("write"):
            write_labels(labels, temporary["labels"])
        if scan is not None and "overlay" in temporary:
            with watch.stage("overlay"):
                names = {label.value: label.name for label in report.labels}
                draw_overlay(scan, labels, names, temporary["overlay"], title=title)
        report.timings_s.update(watch.rounded())
        report.files = {
            "inputs": list(inputs),
            **{kind: described(path, outputs.named()[kind]) for kind, path in temporary.items() if kind != "report"},
        }
        if "report" in temporary:
            temporary["report"].write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


def described(path: Path, name: Path | None = None) -> dict[str, Any]:
    """Describe a file for a report.

    Args:
        path: a file or folder.
        name: the path to state instead, for files that are renamed afterwards.

    Returns:
        Path and SHA-256 of the file; for a scan of several files, the path and the SHA-256 of each file by name.

    Raises:
        ScanError, OSError: a file cannot be read.
    """
    where = plain_text(str(name or path))
    files = files_of(path)
    if path.is_dir() or len(files) > 1:
        return {"path": where, "files": {plain_text(member.name): file_digest(member).sha256 for member in files}}
    return {"path": where, "sha256": file_digest(path).sha256}


def described_scan(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe a scan for a report.

    Args:
        paths: one file or folder per channel.

    Returns:
        One entry per channel, as `described` gives it.

    Raises:
        ScanError: a file cannot be read.
    """
    try:
        return [described(path) for path in paths]
    except OSError as error:
        where = shown(Path(error.filename)) if error.filename else ", ".join(map(shown, paths))
        raise ScanError(
            f"{where}: cannot be read ({error.strerror or error}), expected a scan; check that it is still there, and "
            "its permissions"
        ) from error
