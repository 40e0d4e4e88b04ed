"""The one report of many scans: written after every scan, and read again by a run that goes on where one stopped.

What is read back is not trusted: it is bounded and checked, and no path in it is ever opened. A scan counts as done
only if the label map that is there has the hash that was written down, and was made from the same scan in the same way.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from masksam_deploy.atomic import atomic_path
from masksam_deploy.bundle import file_digest
from masksam_deploy.errors import OutputError
from masksam_deploy.io.labels import LABEL_SUFFIXES
from masksam_deploy.manifest_rules import condensed
from masksam_deploy.report import runtime_versions
from masksam_deploy.results import Outputs
from masksam_deploy.scans import ScanFiles
from masksam_deploy.segmenter import Segmenter
from masksam_deploy.text import one_line, plain_text, shown

REPORT_NAME = "report.json"
READ_LIMIT = 256 * 2**20
Status: TypeAlias = Literal["pending", "done", "skipped", "failed"]
_Hash: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Hashed(_Strict):
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


class Failure(_Strict):
    """Why there is no label map.

    Attributes:
        type: the error's class.
        message: what was found, what was expected, what to do.
        traceback: of an error that nobody foresaw.
    """

    type: str
    message: str
    traceback: str | None = None


class Entry(_Strict):
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
    inputs: list[Hashed] = []
    outputs: dict[str, Hashed] = {}
    recipe: dict[str, JsonValue] = {}
    report: dict[str, JsonValue] | None = None
    left_over: list[str] = []
    earlier_outputs: dict[str, Hashed] = {}

    @property
    def is_done(self) -> bool:
        """Whether it claims that there is a label map."""
        return self.status in ("done", "skipped")

    @property
    def written(self) -> dict[str, Hashed]:
        """All that runs of ours wrote of the scan, as far as is known."""
        return self.outputs if self.is_done else self.earlier_outputs


class BatchReport(_Strict):
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
    others: list[Entry] = []


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


class Ledger:
    """Keeps the report of a run and writes it after every scan. Not for two threads at once.

    Args:
        path: of the report.
        jobs: in order.
        segmenter: that runs them.
        settings: the segmenter's, and what the caller adds to them.
        earlier: entries of the runs before this one, by name.
        timings_s: seconds spent before the first scan.
        redo: do all again, whatever was done and whatever is in the way.

    Raises:
        OutputError: the report cannot be written.
    """

    def __init__(
        self,
        path: Path,
        jobs: Sequence[Job],
        segmenter: Segmenter,
        settings: Mapping[str, Any],
        earlier: Mapping[str, Entry],
        timings_s: Mapping[str, float],
        *,
        redo: bool = False,
    ) -> None:
        self.recipe = recipe_of(segmenter, settings)
        self.settings = dict(settings)
        self._path = path
        self._bundle = segmenter.bundle_facts()
        self._versions = runtime_versions()
        self._earlier = earlier
        self._redo = redo
        self._timings = dict(timings_s)
        self._started = time.perf_counter()
        # What an earlier run did stays written down until this one has looked at it: it may be interrupted, too.
        self._entries = {
            job.name: self.earlier(job) or Entry(name=job.name, earlier_outputs=self._written(job)) for job in jobs
        }
        self._others = [entry for name, entry in earlier.items() if name not in self._entries]
        self._reached: set[str] = set()
        self._write()

    @property
    def complete(self) -> int:
        """How many of the scans that this run has looked at are done, by it or before."""
        return sum(self._entries[name].is_done for name in self._reached)

    @property
    def report(self) -> BatchReport:
        """As it stands."""
        statuses = [entry.status for entry in self._entries.values()]
        seconds = round(time.perf_counter() - self._started, 3)
        return BatchReport(
            finished=len(self._reached) == len(self._entries),
            bundle=self._bundle,
            settings=self.settings,
            versions=self._versions,
            timings_s={**self._timings, "scans": seconds},
            totals={status: statuses.count(status) for status in ("pending", "done", "skipped", "failed")},
            scans=list(self._entries.values()),
            others=self._others,
        )

    def add(self, entry: Entry) -> None:
        """Take what became of a scan, and write.

        Raises:
            OutputError: the report cannot be written.
        """
        if not entry.is_done:
            entry = entry.model_copy(update={"earlier_outputs": self._entries[entry.name].written})
        self._entries[entry.name] = entry
        self._reached.add(entry.name)
        self._write()

    def earlier(self, job: Job) -> Entry | None:
        """What an earlier run says it did of a scan, unless that is to be done again whatever it is."""
        entry = self._earlier.get(job.name)
        return entry if entry and entry.is_done and not self._redo else None

    def objection(self, earlier: Entry, job: Job, inputs: Sequence[Hashed]) -> str | None:
        """Why the earlier result of a scan does not hold; None if it provably does.

        Args:
            earlier: from `earlier`.
            job: the scan.
            inputs: its files as they are now.
        """
        if [channel.sha256 for channel in inputs] != [channel.sha256 for channel in earlier.inputs]:
            return "the scan is not the one that was segmented"
        for key, value in self.recipe.items():
            if key not in earlier.recipe or earlier.recipe[key] != value:
                return f"{key} was {_short(earlier.recipe.get(key))}, is {_short(value)}"
        for kind, path in job.outputs.named().items():
            if kind not in earlier.outputs:
                return f"found no {kind} of the earlier run"
            if not os.path.lexists(path):
                return f"{path.name} is missing"
            if not _is_as_written(path, earlier.outputs.get(kind)):
                return f"{path.name} was changed"
        return None

    def keep_aside(self, job: Job) -> list[str]:
        """Rename what must neither be replaced nor taken for the new result.

        That is what is not as an earlier run wrote it, which somebody may have corrected; and what one wrote under a
        name that this run does not write, such as the picture of another label map.

        Returns:
            Their new names.

        Raises:
            OutputError: one cannot be read or renamed.
        """
        if job.name not in self._earlier:
            return []
        written, wanted = self._written(job), job.outputs.named()
        changed = [
            path
            for kind, path in wanted.items()
            if not self._redo and os.path.lexists(path) and not _is_as_written(path, written.get(kind))
        ]
        names = {Path(file.path).name for file in written.values()}
        beside = [job.outputs.labels.with_name(f"{job.scan.case}{ending}") for ending in (*LABEL_SUFFIXES, ".png")]
        stale = [path for path in beside if path.name in names and path not in wanted.values() and path.exists()]
        return [_renamed(path, job.scan.case) for path in (*changed, *stale)]

    def _written(self, job: Job) -> dict[str, Hashed]:
        entry = self._earlier.get(job.name)
        return entry.written if entry else {}

    def _write(self) -> None:
        with atomic_path(self._path) as temporary:
            temporary.write_text(self.report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_report(path: Path) -> BatchReport:
    """Read the report of an earlier run.

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


def _is_as_written(path: Path, written: Hashed | None) -> bool:
    if written is None or path.is_symlink() or not path.is_file():
        return False
    try:
        return file_digest(path).sha256 == written.sha256
    except OSError as error:
        raise OutputError(
            f"{shown(path)}: found a file of an earlier run that cannot be read ({error.strerror}), expected to see "
            "whether it is still as written; correct its permissions, or move it away"
        ) from error


def _renamed(path: Path, case: str) -> str:
    """Give a file the first free name of its kind: CASE.kept-1.nii.gz."""
    names = (path.with_name(f"{case}.kept-{number}{path.name.removeprefix(case)}") for number in count(1))
    free = next(name for name in names if not os.path.lexists(name))
    try:
        path.rename(free)
    except OSError as error:
        raise OutputError(
            f"{shown(path)}: found a file that must not be replaced and cannot be renamed ({error.strerror}), expected "
            "to keep it; move it away"
        ) from error
    return plain_text(free.name)


def _short(value: JsonValue) -> str:
    return one_line(str(value), limit=80)
