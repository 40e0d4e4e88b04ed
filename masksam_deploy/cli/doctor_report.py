"""What `masksam-deploy doctor` found, for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from masksam_deploy.base.nvidia import Gpus
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.doctor import Diagnosis
from masksam_deploy.engines.choose import engine_states

_PIPE_WIDTH = 120


def report(found: Diagnosis, bundle: Bundle | None, file: IO[str]) -> None:
    """Write the tables; colours only if `file` is a terminal."""
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    console.print(_table("Machine", (), found.machine.items()))
    console.print(_table("NVIDIA", (), _gpu_rows(found.gpus)))
    packages = ((package.name, package.version or "-", package.problem or "") for package in found.packages)
    console.print(_table("Packages", ("package", "version", "what is missing"), packages))
    abilities = ((ability.target, _yes_or(ability.build), _yes_or(ability.run)) for ability in found.abilities)
    console.print(_table("Targets", ("target", "builds here", "runs here"), abilities))
    if bundle is not None:
        console.print(Text(f"{one_line(bundle.manifest.name)}: every file matches its hash"), soft_wrap=True)
        states = (
            (state.name, state.title, "yes" if state.judged else "NO", _yes_or(state.problem))
            for state in engine_states(bundle)
        )
        console.print(_table("Engines", ("engine", "what it is", "judged", "valid here"), states))


def _gpu_rows(gpus: Gpus) -> list[tuple[str, str]]:
    rows = [("driver", gpus.driver or "-"), ("CUDA of the driver", gpus.cuda or "-")]
    rows += [
        (f"GPU {index}", f"{gpu.name}, {gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB")
        for index, gpu in enumerate(gpus.devices)
    ]
    return rows + ([("GPU", gpus.problem)] if gpus.problem else [])


def _yes_or(problem: str | None) -> str:
    return "yes" if problem is None else f"no: {problem}"


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(columns))
    for column in columns or ("", ""):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell, 1000)) for cell in row))
    return table
