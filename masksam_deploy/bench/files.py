"""A benchmark's files, and the exit code for contenders that disagree."""

from __future__ import annotations

from pathlib import Path

from masksam_deploy.base.atomic import atomic_path, check_writable
from masksam_deploy.base.errors import BundleError, DisagreementError, OutputError
from masksam_deploy.base.paths import resolved
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bench.html import html_report
from masksam_deploy.bench.results import BenchResult


def check_outputs(bundle: Path, json_path: Path | None, html_path: Path | None) -> None:
    """Refuse what cannot or must not be written, before minutes of work.

    Raises:
        OutputError: says which file and why.
    """
    for path, suffix in ((json_path, ".json"), (html_path, ".html")):
        if path is None:
            continue
        if path.suffix.lower() != suffix:
            raise OutputError(f"'{shown(path)}': found '{path.suffix}' as its type, expected {suffix}; rename it")
        if resolved(bundle, BundleError) in resolved(path, OutputError).parents:
            raise OutputError(f"'{shown(path)}' lies inside the bundle, which must stay as it is; write elsewhere")
        check_writable(path)


def write_outputs(result: BenchResult, json_path: Path | None, html_path: Path | None) -> None:
    """Write what is wanted.

    Raises:
        OutputError: the disk refuses.
    """
    if json_path:
        with atomic_path(json_path) as temporary:
            temporary.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if html_path:
        with atomic_path(html_path) as temporary:
            temporary.write_text(html_report(result), encoding="utf-8")


def check_disagreements(result: BenchResult) -> None:
    """Refuse a benchmark in which a contender disagreed and was not timed.

    Raises:
        DisagreementError: names each, and why.
    """
    wrong = [f"{one_line(run.name)}: {run.check.problem}" for run in result.runs if not run.check.passed]
    if wrong:
        raise DisagreementError(
            f"found contenders that disagree with the float32 graphs: {'; '.join(wrong)}; expected the same label "
            "maps, so they were not timed; build these engines again, or leave them out with --run"
        )
