"""What the infer command's options say about running, and the segmenter that they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from masksam_deploy.base.memory import bounded_network
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.directory import Bundle, file_digest
from masksam_deploy.engines import profiles
from masksam_deploy.engines.choose import Backend, Choice, open_network
from masksam_deploy.engines.profiles import Chosen
from masksam_deploy.engines.store import RECORD_NAME
from masksam_deploy.io.isolated_scan import start_reading
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.onnxruntime import start_runtime
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.segmenter import ON_CPU, ScoresOn, Segmenter
from masksam_deploy.scan_path.windows import Accumulator


@dataclass(frozen=True)
class Running:
    """See the command's options."""

    chosen: Chosen
    device: Device | None
    backend: Backend
    accumulator: Accumulator
    threads: int | None
    max_ram: int | None
    max_vram: int | None
    scores_on: ScoresOn
    run_timeout: int | None = None


def start_workers(how: Running) -> None:
    """Let the processes that read scans and run networks load their libraries while this one checks its inputs."""
    start_reading()
    if how.backend in ("auto", "onnxruntime") and how.device != "cuda":
        start_runtime()


@contextmanager
def open_segmenter(bundle: Bundle, how: Running, watch: Stopwatch) -> Iterator[tuple[Segmenter, dict[str, Any]]]:
    """The segmenter, and its settings for the report; what was not used is said on stderr.

    Raises:
        EngineError, BackendError: what is asked for does not run here.
        MemoryLimitError: a graph needs more memory than is free.
    """
    with bounded_network(how.max_ram):
        with watch.stage("load_engine"):
            network, choice = open_network(
                bundle,
                how.backend,
                how.chosen.precision,
                device=how.device,
                threads=how.threads,
                max_vram=how.max_vram,
                without=how.chosen.without,
                judged=how.chosen.judged,
            )
        _tell_refused(choice)
        with Segmenter(
            bundle,
            network=network,
            tta=how.chosen.tta,
            accumulator=how.accumulator,
            step=how.chosen.step,
            threads=how.threads,
            max_ram=how.max_ram,
            scores_on=how.scores_on,
            run_timeout=how.run_timeout,
        ) as segmenter:
            settings = segmenter.settings() | _engine_facts(choice)
            yield (
                segmenter,
                settings | profiles.facts(how.chosen, bundle.manifest.measured, settings, network.precisions),
            )


def what_ran(settings: dict[str, Any]) -> str:
    """Where, in which precision, of which engine: in one line."""
    providers = ", ".join(sorted(set(settings["providers"].values())))
    engine = f" (engine {settings['engine']})" if settings["engine"] else ""
    if settings["engine"] and not settings.get("engine_judged"):
        engine += ", NOT JUDGED"
    elif settings["engine"] and settings.get("engine_simulated"):
        engine += ", judged in simulation only"
    scores = ", scores kept on the GPU" if settings["scores_on"] == "gpu" else ""
    return f"ran on {providers}, {settings['precision']}{engine}{scores}"


def scores_came_down(scan: Mapping[str, Any]) -> str | None:
    """That this scan's scores did not stay on the GPU, though that was asked for, and why; or None."""
    return f"scores on the CPU all the same: {scan[ON_CPU]}" if ON_CPU in scan else None


def how_mirrored(settings: dict[str, Any]) -> str:
    """In words."""
    return f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"


def _engine_facts(choice: Choice) -> dict[str, Any]:
    if choice.engine is None:
        return {}
    return {
        "engine_judged": choice.engine.judged,
        "engine_simulated": choice.engine.simulated,
        "engine_sha256": file_digest(choice.engine.folder / RECORD_NAME).sha256,
    }


def _tell_refused(choice: Choice) -> None:
    """Say what was not used: nobody should wonder why it is slow."""
    for name, why in choice.stale.items():
        click.echo(f"engine {one_line(name)} is not used: {one_line(why, limit=1000)}", err=True)
    if choice.foreign:
        click.echo(
            f"{len(choice.foreign)} engine(s) in the bundle are for other machines: masksam-deploy doctor BUNDLE",
            err=True,
        )
