"""The segmenter that the options of the infer command ask for, and what it says about itself."""

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
from masksam_deploy.engines.profiles import InferenceSettings
from masksam_deploy.engines.store import RECORD_NAME
from masksam_deploy.io.isolated_scan import start_reading
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.onnxruntime import start_runtime
from masksam_deploy.scan_path.place import ScoresOn
from masksam_deploy.scan_path.report import Stopwatch
from masksam_deploy.scan_path.segmenter import ON_CPU, Segmenter
from masksam_deploy.scan_path.windows import Accumulator


@dataclass(frozen=True)
class RunSettings:
    """How scans are segmented: the options of `infer --help` under "Inference" and "Runtime and hardware".

    Attributes:
        inference: step, mirroring and precision, after the profile and the options typed besides it.
        max_ram, max_vram: bytes; None for no limit.
        run_timeout: seconds; None for the default of ONNX Runtime's worker.
    """

    inference: InferenceSettings
    device: Device | None
    backend: Backend
    accumulator: Accumulator
    threads: int | None
    max_ram: int | None
    max_vram: int | None
    scores_on: ScoresOn
    run_timeout: int | None = None


def start_workers(settings: RunSettings) -> None:
    """Start the worker processes early: they load their libraries while this process checks its inputs."""
    start_reading()
    if settings.backend in ("auto", "onnxruntime") and settings.device != "cuda":
        start_runtime()


@contextmanager
def open_segmenter(
    bundle: Bundle, settings: RunSettings, watch: Stopwatch
) -> Iterator[tuple[Segmenter, dict[str, Any]]]:
    """Open the network; engines that are not used, and why, are printed on standard error.

    Args:
        bundle: verified.
        settings: how scans are segmented.
        watch: gets the stage `load_engine`.

    Yields:
        The segmenter, and its settings for the report.

    Raises:
        EngineError, BackendError: what is asked for does not run here.
        MemoryLimitError: a graph needs more memory than is free.
    """
    with bounded_network(settings.max_ram):
        with watch.stage("load_engine"):
            network, choice = open_network(
                bundle,
                settings.backend,
                settings.inference.precision,
                device=settings.device,
                threads=settings.threads,
                max_vram=settings.max_vram,
                without=settings.inference.without,
                judged=settings.inference.judged,
            )
        _print_unused_engines(choice)
        with Segmenter(
            bundle,
            network=network,
            tta=settings.inference.tta,
            accumulator=settings.accumulator,
            step=settings.inference.step,
            threads=settings.threads,
            max_ram=settings.max_ram,
            scores_on=settings.scores_on,
            run_timeout=settings.run_timeout,
        ) as segmenter:
            ran = segmenter.settings() | _engine_facts(choice)
            measured = bundle.manifest.measured
            yield segmenter, ran | profiles.facts(settings.inference, measured, ran, network.precisions)


def runtime_summary(settings: Mapping[str, Any]) -> str:
    """One line: what ran the network, in which precision, and from which engine."""
    providers = ", ".join(sorted(set(settings["providers"].values())))
    engine = f" (engine {settings['engine']})" if settings["engine"] else ""
    if settings["engine"] and not settings.get("engine_judged"):
        engine += ", NOT JUDGED"
    elif settings["engine"] and settings.get("engine_simulated"):
        engine += ", judged in simulation only"
    scores = ", scores kept on the GPU" if settings["scores_on"] == "gpu" else ""
    return f"ran on {providers}, {settings['precision']}{engine}{scores}"


def scores_fallback(scan: Mapping[str, Any]) -> str | None:
    """Why this scan's scores were summed on the CPU though the GPU was asked for; None if they were not."""
    return f"scores were summed on the CPU after all: {scan[ON_CPU]}" if ON_CPU in scan else None


def mirroring(settings: Mapping[str, Any]) -> str:
    """The mirrored axes, as text."""
    return f"mirrored along {settings['mirror_axes']}" if settings["mirror_axes"] else "not mirrored"


def _engine_facts(choice: Choice) -> dict[str, Any]:
    if choice.engine is None:
        return {}
    return {
        "engine_judged": choice.engine.judged,
        "engine_simulated": choice.engine.simulated,
        "engine_sha256": file_digest(choice.engine.folder / RECORD_NAME).sha256,
    }


def _print_unused_engines(choice: Choice) -> None:
    """Print which engines are not used, and why: nobody should wonder why the network is slow."""
    for name, why in choice.stale.items():
        click.echo(f"engine {one_line(name)} is not used: {one_line(why, limit=1000)}", err=True)
    if choice.foreign:
        click.echo(
            f"{len(choice.foreign)} engine(s) in the bundle are for other machines: masksam-deploy doctor BUNDLE",
            err=True,
        )
