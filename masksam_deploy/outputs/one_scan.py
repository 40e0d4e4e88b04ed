"""What one segmentation leaves behind: a label map, and on request a picture and a report; all of it, or nothing."""

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
    """What to write."""

    labels: Path
    overlay: Path | None = None
    report: Path | None = None

    def named(self) -> dict[str, Path]:
        """The paths that are wanted, by kind."""
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
    """Produce all outputs under temporary names, then rename them together.

    Args:
        scan: what was segmented, for the picture; None where there is none.
        result: its report gets the files and the timings.
        outputs: where to.
        inputs: the scan's files, as from `described_scan`.
        watch: with what was timed so far.
        title: above the picture.

    Raises:
        OutputError: one of them cannot be written; what was there before is untouched.
    """
    if outputs.overlay and scan is None:
        raise ValueError("found no scan, expected one to draw the overlay on")
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
    """Name and hash of a file; of a scan that consists of several, their hashes.

    Raises:
        ScanError, OSError: it cannot be read.
    """
    where = plain_text(str(name or path))
    files = files_of(path)
    if path.is_dir() or len(files) > 1:
        return {"path": where, "files": {plain_text(member.name): file_digest(member).sha256 for member in files}}
    return {"path": where, "sha256": file_digest(path).sha256}


def described_scan(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The same of every channel.

    Raises:
        ScanError: one cannot be read.
    """
    try:
        return [described(path) for path in paths]
    except OSError as error:
        where = shown(Path(error.filename)) if error.filename else ", ".join(map(shown, paths))
        raise ScanError(
            f"{where}: cannot be read ({error.strerror or error}), expected a scan; check that it is still there, and "
            "its permissions"
        ) from error
