"""The infer command on many scans: find them, check the call, segment them all, and print the outcome of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from masksam_deploy.base.atomic import check_writable
from masksam_deploy.base.errors import (
    BundleError,
    LedgerInUseError,
    MaskSamError,
    OutputError,
    ScanError,
    ScansFailedError,
)
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import one_line, printable, shown
from masksam_deploy.batch.ledger import Ledger, Past, Run
from masksam_deploy.batch.ledger_file import LEDGER_NAME
from masksam_deploy.batch.pipeline import Batch
from masksam_deploy.batch.report import REPORT_NAME, Entry, Job
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli.open_segmenter import (
    RunSettings,
    mirroring,
    open_segmenter,
    runtime_summary,
    scores_fallback,
    start_workers,
)
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.stdout import discard_stdout
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.profiles import profile_summary
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.outputs.one_scan import Outputs
from masksam_deploy.outputs.overlay import require_pillow
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.windows import Progress

_AMONG_SCANS = "{}: found an output folder that is a folder of scans itself; give another folder"


@dataclass(frozen=True)
class FolderOutputs:
    """What is written for many scans.

    Attributes:
        folder: gets all outputs.
        suffix: file type of the label maps.
        overlays: whether to draw a contact sheet of every scan.
        resume: skip scans that an earlier run into the folder has segmented.
        force: segment all scans again and replace what is in the folder.
    """

    folder: Path
    suffix: str
    overlays: bool
    resume: bool
    force: bool


def infer_folder(
    paths: Sequence[Path], bundle: Path, outputs: FolderOutputs, settings: RunSettings, *, as_json: bool
) -> None:
    """Segment all scans at some paths.

    Args:
        paths: files, DICOM folders, and folders of these.
        bundle: directory.
        outputs: what to write.
        settings: how to segment.
        as_json: whether to print the report as JSON instead of a line per scan.

    Raises:
        ScanError, BundleError, OutputError: the call is refused as a whole; no label map is written.
        EngineError, BackendError, MemoryLimitError: the network cannot run here.
        ScansFailedError: a scan failed; the others are done.
    """
    if outputs.overlays:
        require_pillow()
    start_workers(settings)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    jobs = _jobs(paths, bundle, outputs, loaded.channels)
    with ExitStack() as stack:
        past = stack.enter_context(_earlier(jobs, outputs))
        _make_folder(outputs.folder)
        segmenter, ran = stack.enter_context(open_segmenter(loaded, settings, watch))
        run, before = Run.of(segmenter, ran), watch.rounded()
        ledger = stack.enter_context(Ledger(outputs.folder, jobs, run, past, before, redo=outputs.force))
        printer = _Printer(len(jobs), silent=as_json)
        printer.line(f"{runtime_summary(ran)}, {mirroring(ran)}: {len(jobs)} scan(s)")
        if settings.inference.profile:
            printer.line(profile_summary(settings.inference, ran))
        with _hint_to_resume(ledger):
            with Batch(segmenter, ledger, max_ram=settings.max_ram, tell=printer.outcome) as batch:
                batch.run(jobs, printer.bar)
            ledger.finish()
        if as_json:
            for part in ledger.report_text():
                click.echo(part, nl=False)
        else:
            _print_totals(ledger, outputs.folder, printer.line)
        _check_all_done(ledger, outputs.folder)


def _jobs(paths: Sequence[Path], bundle: Path, outputs: FolderOutputs, channels: int) -> list[Job]:
    """All scans with their outputs.

    Raises:
        ScanError: there are none, or two would get one name.
        OutputError: the outputs would lie among the inputs.
    """
    _check_place(paths, bundle, outputs.folder)
    aside = {resolved(outputs.folder, OutputError), resolved(bundle, BundleError)}
    scans = find_scans(paths, channels, aside, warn)
    jobs = [Job(scan, _outputs(scan, outputs)) for scan in scans]
    _check_outputs(jobs, outputs.folder)
    names: dict[str, Job] = {}
    for job in jobs:
        # Also where they differ in case only: other file systems would take them for one.
        other = names.setdefault(job.name.casefold(), job)
        if other is not job:
            raise ScanError(
                f"{shown(other.scan.paths[0])} and {shown(job.scan.paths[0])}: found two scans whose results would "
                f"both be called {shown(job.outputs.labels.name)}, expected a name for each; rename one, or run them "
                "into two folders"
            )
    return jobs


def _outputs(scan: ScanFiles, outputs: FolderOutputs) -> Outputs:
    picture = outputs.folder / f"{scan.case}.png" if outputs.overlays else None
    return Outputs(outputs.folder / f"{scan.case}{outputs.suffix}", picture)


def _check_place(paths: Sequence[Path], bundle: Path, folder: Path) -> None:
    target = resolved(folder, OutputError)
    if resolved(bundle, BundleError) in (target, *target.parents):
        raise OutputError(
            f"{shown(folder)}: found an output folder that lies inside the bundle, which must not change; give another "
            "folder"
        )
    if target in {resolved(path, ScanError) for path in paths}:
        raise OutputError(_AMONG_SCANS.format(shown(folder)))


def _check_outputs(jobs: Sequence[Job], folder: Path) -> None:
    target = resolved(folder, OutputError)
    scans = {resolved(path, ScanError) for job in jobs for path in job.scan.paths}
    if scans & {target, *target.parents}:
        raise OutputError(_AMONG_SCANS.format(shown(folder)))
    for job in jobs:
        for path in job.outputs.named().values():
            if resolved(path, OutputError) in scans:
                raise OutputError(f"{shown(path)}: found an output that is one of the scans; give another folder")


def _earlier(jobs: Sequence[Job], outputs: FolderOutputs) -> Past:
    """What earlier runs into the folder say; with --force as far as it can be read.

    Raises:
        OutputError: files are there that must not be replaced unasked, or another run is at work in the folder.
    """
    left = next(filter(os.path.lexists, (outputs.folder / LEDGER_NAME, outputs.folder / REPORT_NAME)), None)
    if left and not outputs.resume and not outputs.force:
        raise OutputError(
            f"{shown(left)}: found the report of an earlier run; skip its scans with --resume, segment all scans again "
            "with --force, or give another folder"
        )
    past = _readable_past(outputs)
    foreign = [
        target for job in jobs if job.name not in past for target in job.outputs.named().values() if target.exists()
    ]
    if foreign and not outputs.force:
        with past:
            raise OutputError(
                f"{shown(foreign[0])}: found {len(foreign)} file(s) that no run of infer wrote here, expected none; "
                "give another folder, or replace them with --force"
            )
    return past


def _readable_past(outputs: FolderOutputs) -> Past:
    try:
        return Past.found(outputs.folder) or Past()
    except LedgerInUseError:
        raise
    except OutputError:
        if not outputs.force:
            raise
        return Past(unreadable=True)  # such as another version's, which is what --force is advised for


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{shown(folder)}: cannot be made ({error.strerror}), expected a folder for the results; give another path"
        ) from error
    check_writable(folder / REPORT_NAME)


class _Printer:
    """Prints a line for every scan, and a progress bar while the network runs on one."""

    def __init__(self, count: int, *, silent: bool) -> None:
        self._count = count
        self._finished = 0
        self._silent = silent

    def line(self, line: str) -> None:
        """Print a line unless `--json` is given; when the reader has left, the remaining scans are still done."""
        if self._silent:
            return
        try:
            click.echo(line)
        except BrokenPipeError:
            discard_stdout()

    def outcome(self, entry: Entry) -> None:
        """Print what became of a scan, and its warnings."""
        self._finished += 1
        again = "done again: " if entry.is_done else ""
        note = f" ({again}{one_line(entry.note, limit=300)})" if entry.note else ""
        self.line(f"{self._finished}/{self._count} {one_line(entry.name)}: {_outcome(entry)}{note}")
        for warning in _warnings(entry):
            warn(f"{one_line(entry.name)}: {warning}")

    @contextmanager
    def bar(self, job: Job) -> Iterator[Progress | None]:
        """For as long as the network runs."""
        title = one_line(job.name)
        with progress_bar(title) as progress:
            yield partial(progress, title) if progress else None


def _warnings(entry: Entry) -> list[str]:
    """The warnings of a scan that this run segmented; those of skipped scans were printed by the earlier run."""
    found = (entry.report or {}).get("warnings") if entry.status == "done" else None
    return [str(warning) for warning in found] if isinstance(found, list) else []


def _outcome(entry: Entry) -> str:
    if entry.error:
        return f"FAILED: {_reason(entry)}"
    if entry.status == "skipped":
        return "skipped, it was done before"
    seconds = (entry.report or {}).get("timings_s")
    total = sum(value for value in seconds.values() if isinstance(value, float)) if isinstance(seconds, dict) else 0.0
    scan = (entry.report or {}).get("scan")
    fallback = scores_fallback(scan) if isinstance(scan, dict) else None
    return f"done, {total:.1f} s" + (f", {fallback}" if fallback else "")


def _reason(entry: Entry) -> str:
    """Why a scan failed, and what must not be taken for its result."""
    why = one_line(entry.error.message, limit=1000) if entry.error else ""
    left = ", ".join(map(one_line, entry.left_over))
    return f"{why} (STILL THERE from an earlier run: {left})" if left else why


def _print_totals(ledger: Ledger, folder: Path, print_line: Callable[[str], None]) -> None:
    counts = ", ".join(f"{ledger.totals[status]} {status}" for status in ("done", "skipped", "failed"))
    print_line(f"{counts}; {ledger.seconds:.1f} s")
    if ledger.totals["failed"]:
        print_line("failed:")
    for entry in ledger.failed():
        print_line(f"  {one_line(entry.name)}: {_reason(entry)}")
    print_line(f"report: {printable(folder / REPORT_NAME)}")


def _check_all_done(ledger: Ledger, folder: Path) -> None:
    failed = ledger.totals["failed"]
    if failed:
        raise ScansFailedError(
            f"{failed} of {ledger.scans} scans failed, expected a label map of each; "
            f"{shown(folder / REPORT_NAME)} says why; correct the scans and go on with --resume"
        )


@contextmanager
def _hint_to_resume(ledger: Ledger) -> Iterator[None]:
    """When the run stops early, print how to continue it."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt, MaskSamError):
        click.echo(
            f"stopped after {ledger.complete} of {ledger.scans} scans; complete results are kept: go on with --resume",
            err=True,
        )
        raise
