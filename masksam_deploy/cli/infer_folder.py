"""The infer command's work on many scans: find them, refuse what cannot be, run all, tell what became of each."""

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
    Running,
    how_mirrored,
    open_segmenter,
    scores_came_down,
    start_workers,
    what_ran,
)
from masksam_deploy.cli.progress import progress_bar
from masksam_deploy.cli.stdout import discard_stdout
from masksam_deploy.cli.warn import warn
from masksam_deploy.engines.profiles import in_words
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.outputs.one_scan import Outputs
from masksam_deploy.outputs.overlay import require_pillow
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.windows import Progress

_AMONG_SCANS = "'{}' is a folder of scans itself; give another folder"


@dataclass(frozen=True)
class Wanted:
    """What many scans leave behind.

    Attributes:
        folder: where all of it goes.
        suffix: of the label maps, the type.
        overlays: whether to draw a picture of each.
        resume: skip what an earlier run did.
        force: do all again, whatever is there.
    """

    folder: Path
    suffix: str
    overlays: bool
    resume: bool
    force: bool


def infer_folder(paths: Sequence[Path], bundle: Path, wanted: Wanted, how: Running, *, as_json: bool) -> None:
    """Segment all scans at some paths; see the command's options.

    Raises:
        ScansFailedError: a scan failed; the others are done.
    """
    if wanted.overlays:
        require_pillow()
    start_workers(how)
    watch = Stopwatch()
    with watch.stage("verify_bundle"):
        loaded = Bundle.load(bundle)
    jobs = _jobs(paths, bundle, wanted, loaded.channels)
    with ExitStack() as stack:
        past = stack.enter_context(_earlier(jobs, wanted))
        _make_folder(wanted.folder)
        segmenter, settings = stack.enter_context(open_segmenter(loaded, how, watch))
        run, before = Run.of(segmenter, settings), watch.rounded()
        ledger = stack.enter_context(Ledger(wanted.folder, jobs, run, past, before, redo=wanted.force))
        teller = _Teller(len(jobs), silent=as_json)
        teller.say(f"{what_ran(settings)}, {how_mirrored(settings)}: {len(jobs)} scan(s)")
        if how.chosen.profile:
            teller.say(in_words(how.chosen, settings))
        with _interruption_told(ledger):
            with Batch(segmenter, ledger, max_ram=how.max_ram, tell=teller.tell) as batch:
                batch.run(jobs, teller.bar)
            ledger.finish()
        if as_json:
            for part in ledger.report_text():
                click.echo(part, nl=False)
        else:
            _sum_up(ledger, wanted.folder, teller.say)
        _check_all_done(ledger, wanted.folder)


def _jobs(paths: Sequence[Path], bundle: Path, wanted: Wanted, channels: int) -> list[Job]:
    """All scans with their outputs.

    Raises:
        ScanError: there are none, or two would get one name.
        OutputError: the outputs would lie among the inputs.
    """
    _check_place(paths, bundle, wanted.folder)
    aside = {resolved(wanted.folder, OutputError), resolved(bundle, BundleError)}
    scans = find_scans(paths, channels, aside, warn)
    jobs = [Job(scan, _outputs(scan, wanted)) for scan in scans]
    _check_outputs(jobs, wanted.folder)
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


def _outputs(scan: ScanFiles, wanted: Wanted) -> Outputs:
    picture = wanted.folder / f"{scan.case}.png" if wanted.overlays else None
    return Outputs(wanted.folder / f"{scan.case}{wanted.suffix}", picture)


def _check_place(paths: Sequence[Path], bundle: Path, folder: Path) -> None:
    target = resolved(folder, OutputError)
    if resolved(bundle, BundleError) in (target, *target.parents):
        raise OutputError(f"'{shown(folder)}' lies inside the bundle, which must stay as it is; write elsewhere")
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
                raise OutputError(f"'{shown(path)}' is one of the scans; give another folder")


def _earlier(jobs: Sequence[Job], wanted: Wanted) -> Past:
    """What earlier runs into the folder say; with --force as far as it can be read.

    Raises:
        OutputError: files are there that must not be replaced unasked, or another run is at work in the folder.
    """
    left = next(filter(os.path.lexists, (wanted.folder / LEDGER_NAME, wanted.folder / REPORT_NAME)), None)
    if left and not wanted.resume and not wanted.force:
        raise OutputError(
            f"{shown(left)}: found the report of an earlier run; skip what it did with --resume, do all of it again "
            "with --force, or give another folder"
        )
    past = _readable_past(wanted)
    foreign = [
        target for job in jobs if job.name not in past for target in job.outputs.named().values() if target.exists()
    ]
    if foreign and not wanted.force:
        with past:
            raise OutputError(
                f"{shown(foreign[0])}: found {len(foreign)} file(s) that no run of infer wrote here, expected none of "
                "that name; give another folder, or replace them with --force"
            )
    return past


def _readable_past(wanted: Wanted) -> Past:
    try:
        return Past.found(wanted.folder) or Past()
    except LedgerInUseError:
        raise
    except OutputError:
        if not wanted.force:
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


class _Teller:
    """A line for every scan, and a bar while the network runs on one."""

    def __init__(self, count: int, *, silent: bool) -> None:
        self._count = count
        self._told = 0
        self._begun = 0
        self._silent = silent

    def say(self, line: str) -> None:
        """Print, but for `--json`; that nobody reads it any more is no reason to leave scans undone."""
        if self._silent:
            return
        try:
            click.echo(line)
        except BrokenPipeError:
            discard_stdout()

    def tell(self, entry: Entry) -> None:
        """What became of a scan."""
        self._told += 1
        again = "done again: " if entry.is_done else ""
        note = f" ({again}{one_line(entry.note, limit=300)})" if entry.note else ""
        self.say(f"{self._told}/{self._count} {one_line(entry.name)}: {_outcome(entry)}{note}")
        for warning in _warnings(entry):
            warn(f"{one_line(entry.name)}: {warning}")

    @contextmanager
    def bar(self, job: Job) -> Iterator[Progress | None]:
        """For as long as the network runs."""
        title = one_line(job.name)
        with progress_bar(title) as progress:
            yield partial(progress, title) if progress else None


def _warnings(entry: Entry) -> list[str]:
    """Of a scan that this run segmented; those of skipped ones were told by the run that did them."""
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
    came_down = scores_came_down(scan) if isinstance(scan, dict) else None
    return f"done, {total:.1f} s" + (f", {came_down}" if came_down else "")


def _reason(entry: Entry) -> str:
    """Why a scan failed, and what must not be taken for its result."""
    why = one_line(entry.error.message, limit=1000) if entry.error else ""
    left = ", ".join(map(one_line, entry.left_over))
    return f"{why} (STILL THERE from an earlier run: {left})" if left else why


def _sum_up(ledger: Ledger, folder: Path, say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{ledger.totals[status]} {status}" for status in ("done", "skipped", "failed"))
    say(f"{counts}; {ledger.seconds:.1f} s")
    if ledger.totals["failed"]:
        say("failed:")
    for entry in ledger.failed():
        say(f"  {one_line(entry.name)}: {_reason(entry)}")
    say(f"report: {printable(folder / REPORT_NAME)}")


def _check_all_done(ledger: Ledger, folder: Path) -> None:
    failed = ledger.totals["failed"]
    if failed:
        raise ScansFailedError(
            f"{failed} of {ledger.scans} scans failed, expected a label map of each; "
            f"{shown(folder / REPORT_NAME)} says why; correct them and go on with --resume"
        )


@contextmanager
def _interruption_told(ledger: Ledger) -> Iterator[None]:
    """When the run stops early, say how to go on."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt, MaskSamError):
        click.echo(
            f"stopped after {ledger.complete} of {ledger.scans} scans; what is complete stays: go on with --resume",
            err=True,
        )
        raise
