"""Many scans through one network: while it runs on one scan, the next is read and the last one's results are written.

At most one scan is held ahead and one behind. What they take counts against the limit of memory: where it does not fit
beside the scan at work, nothing is read ahead, and the last one is written before the next one starts.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeAlias

from masksam_deploy.base.errors import DiskFullError, MaskSamError, MemoryLimitError, NetworkCrashError, OutputError
from masksam_deploy.base.text import plain_text
from masksam_deploy.base.volume import Volume
from masksam_deploy.batch.ledger import Ledger
from masksam_deploy.batch.report import Entry, Failure, Hashed, Job, plain_values
from masksam_deploy.io import read_volume
from masksam_deploy.outputs.one_scan import described_scan, write_results
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.segmenter import BYTES_PER_VOXEL, Segmentation, Segmenter
from masksam_deploy.scan_path.windows import Progress

LABEL_COPIES = 4
"""Of a label map while it is written: itself, ITK's, what is read back, and their difference."""

MESSAGE_LIMIT, TRACE_LIMIT = 20_000, 200_000
"""Characters that are written down of an error; of a traceback the last ones, where it ends."""

Bars: TypeAlias = Callable[[Job], AbstractContextManager[Progress | None]]
"""Gives, for as long as the network runs on a scan, what to call with (done, total) network runs."""


@dataclass(frozen=True)
class _Source:
    """What is known of a scan besides its voxels.

    Attributes:
        inputs: its files and their hashes.
        watch: with the time that reading took.
        note: why an earlier result does not hold.
    """

    inputs: list[Hashed]
    watch: Stopwatch
    note: str | None


_Taken: TypeAlias = tuple[_Source, Volume]


class Batch:
    """Segments many scans. Use it as a context manager; leaving it finishes what is being written, and nothing else.

    Args:
        segmenter: loaded; it is not closed.
        ledger: takes what became of every scan.
        max_ram: bytes for all scans that are held at once, besides the network.
        tell: called with every entry once its results are written, in order.
    """

    def __init__(
        self, segmenter: Segmenter, ledger: Ledger, *, max_ram: int | None, tell: Callable[[Entry], None]
    ) -> None:
        self._segmenter = segmenter
        self._ledger = ledger
        self._max_ram = max_ram
        self._tell = tell
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._writer = ThreadPoolExecutor(1, "write-behind")
        self._ahead: Future[_Taken | Entry] | None = None
        self._behind: Future[Entry] | None = None
        self._behind_bytes = 0
        self._crash: NetworkCrashError | None = None

    def run(self, jobs: Sequence[Job], bars: Bars) -> None:
        """Do all jobs; one that fails does not stop the others.

        Raises:
            NetworkCrashError: the network's worker process has ended, so that no later scan could be segmented.
            DiskFullError: no later result could be written either.
            OutputError: the ledger or the report cannot be written.
        """
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            self._hand_over(self._attempt(job, following, bars))
            if self._crash is not None:
                break
        self._settle()
        if self._crash is not None:
            raise self._crash

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def _attempt(self, job: Job, following: Job | None, bars: Bars) -> Callable[[], Entry]:
        """Read and segment one scan; gives what the writing thread has to do to get its entry."""
        source: _Source | None = None
        try:
            taken = self._take(job)
            if isinstance(taken, Entry):
                return partial(_itself, taken)
            source, scan = taken
            self._begin_ahead(following, scan)
            with bars(job) as progress:
                result = self._segmenter(scan, progress)
        except Exception as error:  # noqa: BLE001  whatever it is, the scans after it shall not suffer
            self._crash = error if isinstance(error, NetworkCrashError) else None
            return partial(_itself, _failed(job, source, error))
        drawn = scan if job.outputs.overlay else None
        self._behind_bytes = LABEL_COPIES * result.labels.array.nbytes + (drawn.array.nbytes if drawn else 0)
        return partial(self._written, job, source, drawn, result)

    def _take(self, job: Job) -> _Taken | Entry:
        """The scan that was read ahead; if there was no time or room for that, it is read now, with all the memory."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            with suppress(MemoryLimitError):
                return ahead.result()
        self._wait()
        return self._read(job, self._max_ram)

    def _read(self, job: Job, room: int | None) -> _Taken | Entry:
        watch = Stopwatch()
        with watch.stage("read"):
            inputs = [Hashed.of(channel) for channel in described_scan(job.scan.paths)]
            earlier = self._ledger.earlier(job)
            note = self._ledger.objection(earlier, job, inputs) if earlier else None
            if earlier and note is None:
                return earlier.model_copy(update={"status": "skipped", "note": None})
            scan = read_volume(job.scan.paths, max_voxels=None if room is None else room // BYTES_PER_VOXEL)
        return _Source(inputs, watch, note), scan

    def _begin_ahead(self, following: Job | None, scan: Volume) -> None:
        """Let the next scan be read in the memory that this one, and what is being written, leave."""
        room = self._max_ram
        if room is not None:
            room -= self._segmenter.memory(scan)
            if self._held_behind() > room:
                self._wait()
            room = max(0, room - self._held_behind())
        if following is not None:
            self._ahead = self._reader.submit(self._read, following, room)

    def _hand_over(self, work: Callable[[], Entry]) -> None:
        """Give the writing thread its next work, once it has done what it had."""
        self._settle()
        self._behind = self._writer.submit(self._record, work)

    def _record(self, work: Callable[[], Entry]) -> Entry:
        """In the writing thread, which alone adds to the ledger."""
        entry = work()
        self._ledger.add(entry)
        return entry

    def _written(self, job: Job, source: _Source, drawn: Volume | None, result: Segmentation) -> Entry:
        """In the writing thread: all results of one scan, or why there are none."""
        report = result.report
        report.settings = dict(self._ledger.run.settings)
        title = f"{job.scan.paths[0].name}   {self._segmenter.bundle.manifest.name}"
        note = source.note
        try:
            kept = self._ledger.keep_aside(job)
            if kept:
                note = "; ".join(filter(None, (note, f"kept as {', '.join(kept)}")))
            write_results(drawn, result, job.outputs, [], source.watch, title)
        except DiskFullError as error:
            # A line more may still fit; else the ledger stays as it is.
            with suppress(OutputError):
                self._ledger.add(_failed(job, source, error))
            raise
        except Exception as error:  # noqa: BLE001  as in `_attempt`
            return _failed(job, source, error)
        files = report.files
        return Entry(
            name=job.name,
            status="done",
            note=note,
            inputs=source.inputs,
            outputs={kind: Hashed.of(files[kind]) for kind in job.outputs.named()},
            recipe=dict(self._ledger.run.recipe),
            report=plain_values({key: value for key, value in report.to_dict().items() if key != "files"}),
        )

    def _settle(self) -> None:
        """Wait for what is being written, and tell of it.

        Raises:
            OutputError: it failed in a way that would repeat.
        """
        behind, self._behind = self._behind, None
        if behind is not None:
            self._tell(behind.result())

    def _wait(self) -> None:
        """Wait for what is being written; how it went shows in `_settle`."""
        if self._behind is not None:
            wait([self._behind])

    def _held_behind(self) -> int:
        return 0 if self._behind is None or self._behind.done() else self._behind_bytes


def _itself(entry: Entry) -> Entry:
    return entry


def _failed(job: Job, source: _Source | None, error: Exception) -> Entry:
    """The entry of a scan that gave no label map."""
    kind, message, trace = type(error).__name__, str(error), None
    if isinstance(error, MemoryError):
        message = "found too little memory, expected more; close other programs or use a larger machine"
    elif not isinstance(error, MaskSamError):
        message = f"unexpected {kind}: {error}; this is a bug, please report it with the traceback in the report"
        trace = "".join(traceback.format_exception(error))
    # Bounded: an error may quote what is in a file.
    message, trace = plain_text(message)[:MESSAGE_LIMIT], trace and plain_text(trace)[-TRACE_LIMIT:]
    failure = Failure(type=kind, message=message, traceback=trace)
    return Entry(
        name=job.name,
        status="failed",
        note=source.note if source else None,
        error=failure,
        inputs=source.inputs if source else [],
        left_over=[plain_text(path.name) for path in job.outputs.named().values() if path.is_file()],
    )
