"""What became of every scan of a run, and of the runs before it: a line in `ledger.jsonl`, and a report for readers.

`ledger.jsonl` is what a later run goes by. `report.json` is made from it: at the start, at the end, also where the run
is interrupted, and in between as often as takes at most a twentieth of the time, which for few scans is after each.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import JsonValue

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.text import one_line, plain_text, shown
from masksam_deploy.batch.ledger_file import LEDGER_NAME, LedgerFile
from masksam_deploy.batch.report import REPORT_NAME, BatchReport, Entry, Hashed, Job, read_report, recipe_of
from masksam_deploy.bundle.directory import file_digest
from masksam_deploy.io.write_labels import LABEL_SUFFIXES
from masksam_deploy.scan_path.report import runtime_versions
from masksam_deploy.scan_path.segmenter import Segmenter

WORK_PER_REPORT = 20
"""Writing the report waits until so many times what it took the last time have passed."""


@dataclass(frozen=True)
class Run:
    """What all scans of a run have in common.

    Attributes:
        bundle, settings, versions: as in the report of a single scan.
        recipe: all that decides a label map besides the scan; see `recipe_of`.
    """

    bundle: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    recipe: Mapping[str, JsonValue]

    @classmethod
    def of(cls, segmenter: Segmenter, settings: Mapping[str, Any]) -> Run:
        """From what runs the scans, and its settings with what the caller adds to them."""
        return cls(segmenter.bundle_facts(), dict(settings), runtime_versions(), recipe_of(segmenter, settings))


@dataclass(frozen=True)
class Past:
    """What earlier runs into a folder left; use it as a context manager.

    Attributes:
        file: their ledger.
        entries: of a report without a ledger, as version 0.1 wrote it, by name.
        unreadable: there is something of which nothing can be read, and which a new ledger may replace.
    """

    file: LedgerFile | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict)
    unreadable: bool = False

    @classmethod
    def found(cls, folder: Path) -> Past | None:
        """Where earlier runs left neither ledger nor report: None.

        Raises:
            OutputError: what they left cannot be read, or is not theirs.
            LedgerInUseError: one is still at work.
        """
        if os.path.lexists(folder / LEDGER_NAME):
            return cls(LedgerFile.open(folder / LEDGER_NAME))
        if os.path.lexists(folder / REPORT_NAME):
            report = read_report(folder / REPORT_NAME)
            return cls(entries={entry.name: entry for entry in (*report.others, *report.scans)})
        return None

    def __contains__(self, name: object) -> bool:
        return name in (self.entries if self.file is None else self.file)

    def __enter__(self) -> Past:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


class Ledger:
    """Keeps the ledger and the report of a run. Use it as a context manager; leaving it early writes the report.

    One thread may call `earlier` and `objection` while another adds.

    Args:
        folder: of the results.
        jobs: in order.
        run: what they have in common.
        past: of the folder; its file is this ledger's from now on.
        timings_s: seconds spent before the first scan.
        redo: do all again, whatever was done and whatever is in the way.

    Attributes:
        run: as given.
        scans: how many there are.

    Raises:
        OutputError: the ledger or the report cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Sequence[Job],
        run: Run,
        past: Past,
        timings_s: Mapping[str, float],
        *,
        redo: bool = False,
    ) -> None:
        self.run = run
        self.scans = len(jobs)
        self._path = folder / REPORT_NAME
        self._redo = redo
        self._timings = dict(timings_s)
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._reached: set[str] = set()
        self._file = _file_for(folder / LEDGER_NAME, past)
        try:
            self._file.compact()
            self._file.append(self._beginning(jobs))
            self._statuses = {job.name: self._file.status(job.name) or "pending" for job in jobs}
            self._write()
        except BaseException:
            self._file.close()
            raise

    @property
    def complete(self) -> int:
        """How many of the scans that this run has looked at are done, by it or before."""
        return sum(self._statuses[name] in ("done", "skipped") for name in self._reached)

    @property
    def totals(self) -> dict[str, int]:
        """Scans by status."""
        counts = Counter(self._statuses.values())
        return {status: counts[status] for status in ("pending", "done", "skipped", "failed")}

    @property
    def seconds(self) -> float:
        """What the run took so far, with what came before it."""
        return sum(self._timings_s().values())

    def failed(self) -> Iterator[Entry]:
        """Entries of the scans that failed, in order.

        Raises:
            OutputError: the ledger cannot be read any more.
        """
        return (self._entry(name) for name, status in self._statuses.items() if status == "failed")

    def report_text(self) -> Iterator[str]:
        """The report as it stands, in pieces.

        Raises:
            OutputError: the ledger cannot be read any more.
        """
        head = BatchReport(
            finished=len(self._reached) == self.scans,
            bundle=dict(self.run.bundle),
            settings=dict(self.run.settings),
            versions=dict(self.run.versions),
            timings_s=self._timings_s(),
            totals=self.totals,
            scans=[],
        )
        yield head.model_dump_json(indent=2, exclude={"scans", "others"}).removesuffix("\n}")
        yield from _listed("scans", map(self._entry, self._statuses))
        yield from _listed("others", (self._file.entry(name) for name in self._file if name not in self._statuses))
        yield "\n}\n"

    def add(self, entry: Entry) -> None:
        """Take what became of a scan, and write it down.

        Raises:
            OutputError: the ledger or the report cannot be written.
        """
        # Of a skipped scan the line that is there stays true, and need not be written again.
        if entry.status != "skipped":
            if not entry.is_done:
                entry = entry.model_copy(update={"earlier_outputs": self._file.entry(entry.name).written})
            self._file.append([entry])
        self._statuses[entry.name] = entry.status
        self._reached.add(entry.name)
        if time.perf_counter() >= self._next_report:
            self._write()

    def finish(self) -> None:
        """Force the ledger to the disk, and write the report for the last time.

        Raises:
            OutputError: one of them cannot be written.
        """
        self._ended = time.perf_counter()
        self._file.sync()
        self._write()

    def earlier(self, job: Job) -> Entry | None:
        """What an earlier run says it did of a scan, unless that is to be done again whatever it is.

        Raises:
            OutputError: the ledger cannot be read any more.
        """
        # Where all is to be done again, the ledger has said so from the start.
        return self._file.entry(job.name) if self._file.status(job.name) in ("done", "skipped") else None

    def objection(self, earlier: Entry, job: Job, inputs: Sequence[Hashed]) -> str | None:
        """Why the earlier result of a scan does not hold; None if it provably does.

        Args:
            earlier: from `earlier`.
            job: the scan.
            inputs: its files as they are now.

        Raises:
            OutputError: a file of the earlier run cannot be read.
        """
        if [channel.sha256 for channel in inputs] != [channel.sha256 for channel in earlier.inputs]:
            return "the scan is not the one that was segmented"
        for key, value in self.run.recipe.items():
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
        written, wanted = self._file.entry(job.name).written, job.outputs.named()
        changed = [
            path
            for kind, path in wanted.items()
            if not self._redo and os.path.lexists(path) and not _is_as_written(path, written.get(kind))
        ]
        names = {Path(file.path).name for file in written.values()}
        beside = [job.outputs.labels.with_name(f"{job.scan.case}{ending}") for ending in (*LABEL_SUFFIXES, ".png")]
        stale = [path for path in beside if path.name in names and path not in wanted.values() and path.exists()]
        return [_renamed(path, job.scan.case) for path in (*changed, *stale)]

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._ended is None:
                # What ended the run is to be told, not that the report is older than the ledger now.
                with suppress(OutputError):
                    self.finish()
        finally:
            self._file.close()

    def _beginning(self, jobs: Sequence[Job]) -> Iterator[Entry]:
        """Lines for what is to be done, so that a later run knows its names even if this one does not come to them.

        What an earlier run did keeps its line until this one has looked at it: it may be interrupted, too.
        """
        for job in jobs:
            status = self._file.status(job.name)
            if status is None:
                yield Entry(name=job.name)
            elif status == "failed" or (status != "pending" and self._redo):
                yield Entry(name=job.name, earlier_outputs=self._file.entry(job.name).written)

    def _entry(self, name: str) -> Entry:
        """Of one of this run's scans, with what this run found."""
        entry, status = self._file.entry(name), self._statuses[name]
        return entry if entry.status == status else entry.model_copy(update={"status": status, "note": None})

    def _timings_s(self) -> dict[str, float]:
        ended = time.perf_counter() if self._ended is None else self._ended
        return {**self._timings, "scans": round(ended - self._started, 3)}

    def _write(self) -> None:
        started = time.perf_counter()
        with atomic_path(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(self.report_text())
        ended = time.perf_counter()
        self._next_report = ended + WORK_PER_REPORT * (ended - started)


def _file_for(path: Path, past: Past) -> LedgerFile:
    """The ledger of earlier runs, or a new one that knows what is known of them.

    Raises:
        OutputError: it cannot be written.
        LedgerInUseError: another run has begun one since the past was looked at.
    """
    if past.file is not None:
        return past.file
    replaced = past.unreadable and os.path.lexists(path)
    file = LedgerFile.replace(path) if replaced else LedgerFile.create(path)
    try:
        file.append(past.entries.values())
    except BaseException:
        file.close()
        raise
    return file


def _listed(name: str, entries: Iterator[Entry]) -> Iterator[str]:
    """A field of the report, laid out as pydantic does it."""
    yield f',\n  "{name}": ['
    between, end = "\n    ", "]"
    for entry in entries:
        yield between
        # JSON holds no line breaks but those of its layout.
        yield entry.model_dump_json(indent=2).replace("\n", "\n    ")
        between, end = ",\n    ", "\n  ]"
    yield end


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
