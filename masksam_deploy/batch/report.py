"""What is written down of many scans: an entry for each, and the one report of all; see `ledger.py` for how.

What is read back is not trusted: it is bounded and checked, and no path in it is ever opened. A scan counts as done
only if the label map that is there has the hash that was written down, and was made from the same scan in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, JsonValue, ValidationError

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.records import Record
from masksam_deploy.base.text import plain_text, shown
from masksam_deploy.bundle.rules import condensed
from masksam_deploy.io.cases import ScanFiles
from masksam_deploy.outputs.one_scan import Outputs
from masksam_deploy.scan_path.report import runtime_versions
from masksam_deploy.scan_path.segmenter import Segmenter

REPORT_NAME = "report.json"
READ_LIMIT = 256 * 2**20
"""Bytes of a report without a ledger, which is read as a whole; version 0.1 wrote such."""
Status: TypeAlias = Literal["pending", "done", "skipped", "failed"]
_Hash: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Hashed(Record):
    """A file, or all that a scan consists of.

    Attributes:
        path: of the file or folder.
        sha256: of the file; of several, of a line `HASH  NAME` for each, in order of their names.
        files: how many, if a scan consists of several.
    """

    path: str
    sha256: _Hash
    files: int | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Hashed:
        """From what `results.described` gives."""
        files = described.get("files")
        if files is None:
            return cls(path=described["path"], sha256=described["sha256"])
        lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
        return cls(path=described["path"], sha256=hashlib.sha256(lines.encode()).hexdigest(), files=len(files))


class Failure(Record):
    """Why there is no label map.

    Attributes:
        type: the error's class.
        message: what was found, what was expected, what to do.
        traceback: of an error that nobody foresaw.
    """

    type: str
    message: str
    traceback: str | None = None


class Entry(Record):
    """What became of one scan.

    Attributes:
        name: that its results are called by.
        status: `skipped` if an earlier run did it and that still holds; `pending` if it was not reached.
        note: why an earlier result does not hold.
        error: of a failed one.
        inputs: one per channel.
        outputs: `labels`, `overlay`.
        recipe: all that decides the label map besides the scan; see `recipe_of`.
        report: as of a single scan, its files left out.
        left_over: names of files of an earlier run that are still there, though this one failed.
        earlier_outputs: as `outputs`, of one that is not done: what an earlier run wrote, to be known again by a later
            one. Not the scan's result.
    """

    name: str
    status: Status = "pending"
    note: str | None = None
    error: Failure | None = None
    inputs: list[Hashed] = Field(default_factory=list)
    outputs: dict[str, Hashed] = Field(default_factory=dict)
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    report: dict[str, JsonValue] | None = None
    left_over: list[str] = Field(default_factory=list)
    earlier_outputs: dict[str, Hashed] = Field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it claims that there is a label map."""
        return self.status in ("done", "skipped")

    @property
    def written(self) -> dict[str, Hashed]:
        """All that runs of ours wrote of the scan, as far as is known."""
        return self.outputs if self.is_done else self.earlier_outputs


class BatchReport(Record):
    """The whole of `report.json`.

    Attributes:
        finished: whether every scan was reached.
        bundle, settings: of this run, as in the report of a single scan.
        versions: of the software that took part.
        timings_s: seconds of the whole run; each scan's report has its own.
        totals: scans by status.
        scans: in the order in which they run.
        others: of earlier runs into the folder, scans that are not among these.
    """

    schema_version: Literal[1] = 1
    finished: bool
    bundle: dict[str, JsonValue]
    settings: dict[str, JsonValue]
    versions: dict[str, str]
    timings_s: dict[str, float]
    totals: dict[str, int]
    scans: list[Entry]
    others: list[Entry] = Field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One scan and where its results go."""

    scan: ScanFiles
    outputs: Outputs

    @property
    def name(self) -> str:
        """Text, whatever bytes the file's name holds."""
        return plain_text(self.scan.case)


_DECIDING = ("device", "engine", "engine_sha256", "precision", "accumulator", "scores_on", "mirror_axes", "step")

_NOT_DECIDING = ("python", "platform")
"""Of `runtime_versions`: they run what decides."""


def recipe_of(segmenter: Segmenter, settings: Mapping[str, Any]) -> dict[str, JsonValue]:
    """All that decides a label map besides the scan: network, settings and the versions of what computes."""
    versions = runtime_versions()
    if settings.get("scores_on") == "gpu":
        import cupy

        versions["cupy"] = cupy.__version__
    return {
        "bundle_sha256": segmenter.bundle.sha256,
        **{name: settings.get(name) for name in _DECIDING},
        **{package: version for package, version in versions.items() if package not in _NOT_DECIDING},
    }


def read_report(path: Path) -> BatchReport:
    """Read the report of a run that left no ledger.

    Raises:
        OutputError: it is too large, damaged, of another version, or no such report.
    """
    again = "move it away, or do all scans again with --force"
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > READ_LIMIT:
            raise OutputError(f"{shown(path)}: found no file of at most {READ_LIMIT} bytes, expected a report; {again}")
        return BatchReport.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise OutputError(f"{shown(path)}: {condensed(error)}; {again}") from error
    except OSError as error:
        raise OutputError(f"{shown(path)}: cannot be read ({error.strerror}); check the permissions") from error


def plain_values(content: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What JSON makes of a report."""
    values: dict[str, JsonValue] = json.loads(json.dumps(content))
    return values
