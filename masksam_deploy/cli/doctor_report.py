"""The tables of `masksam-deploy doctor`."""

from __future__ import annotations

from typing import IO

from rich.text import Text

from masksam_deploy.base.nvidia import Gpus
from masksam_deploy.base.tables import open_console, table, words
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.doctor import Diagnosis
from masksam_deploy.engines.choose import engine_states


def report(found: Diagnosis, bundle: Bundle | None, file: IO[str]) -> None:
    """Write the tables, in colour only if `file` is a terminal."""
    console = open_console(file)
    console.print(table("Machine", words("", ""), found.machine.items()))
    console.print(table("NVIDIA", words("", ""), _gpu_rows(found.gpus)))
    packages = ((package.name, package.version or "-", package.problem or "") for package in found.packages)
    console.print(table("Packages", words("package", "version", "what is missing"), packages))
    abilities = ((ability.target, _yes_or(ability.build), _yes_or(ability.run)) for ability in found.abilities)
    console.print(table("Targets", words("target", "builds here", "runs here"), abilities))
    if bundle is not None:
        console.print(Text(f"{one_line(bundle.manifest.name)}: every file matches its hash"), soft_wrap=True)
        states = (
            (state.name, state.title, "yes" if state.judged else "NO", _yes_or(state.problem))
            for state in engine_states(bundle)
        )
        console.print(table("Engines", words("engine", "what it is", "judged", "valid here"), states))


def _gpu_rows(gpus: Gpus) -> list[tuple[str, str]]:
    rows = [("driver", gpus.driver or "-"), ("CUDA of the driver", gpus.cuda or "-")]
    rows += [
        (f"GPU {index}", f"{gpu.name}, {gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB")
        for index, gpu in enumerate(gpus.devices)
    ]
    return rows + ([("GPU", gpus.problem)] if gpus.problem else [])


def _yes_or(problem: str | None) -> str:
    return "yes" if problem is None else f"no: {problem}"
