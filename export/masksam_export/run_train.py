"""The train command's work: show progress, train, say where the results are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from masksam_deploy.base.errors import MemoryLimitError
from masksam_deploy.base.text import one_line, printable
from masksam_export.families.masksam.training.history import Epoch
from masksam_export.families.masksam.training.loop import Trainer
from masksam_export.families.masksam.training.run import Request, prepare_run


def run_train(
    dataset: Path, run: Path, request: Request | None, *, device: str, threads: int | None, as_json: bool
) -> None:
    """Train and report; see the command's options. Without a request the interrupted run goes on."""
    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=True, highlight=False, markup=False)
    started = time.perf_counter()
    with _bars(console) as bars:
        watcher = _Watcher(bars, console)
        trainer, notes = prepare_run(dataset, run, request, watcher, watcher.preparing, device)
        for note in notes:
            console.print(one_line(note, limit=2000), soft_wrap=True)
        watcher.start(trainer)
        try:
            trainer.fit()
        except (KeyboardInterrupt, SystemExit):  # the command line turns signals into exits
            if trainer.epochs:
                done = f"{len(trainer.epochs)} of {trainer.settings.epochs} epochs"
                console.print(f"interrupted; {done} are saved: go on with --resume")
            raise
        except torch.OutOfMemoryError as error:
            raise MemoryLimitError(
                f"the device ran out of memory ({one_line(str(error))}); start again with a smaller --batch or --patch"
            ) from error
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_summary(trainer, run, seconds), indent=2))
    else:
        _tell(trainer, run, seconds)


class _Watcher:
    """Bars on a terminal; one line per epoch everywhere."""

    def __init__(self, bars: Progress, console: Console) -> None:
        self._bars = bars
        self._console = console
        self._preparing = bars.add_task("checking", total=None)
        self._steps = bars.add_task("training", total=None, visible=False)
        self._cases = bars.add_task("validating", total=None, visible=False)

    def preparing(self, what: str, done: int, total: int) -> None:
        self._bars.update(self._preparing, description=what, completed=done, total=total)

    def start(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._bars.remove_task(self._preparing)
        settings = trainer.settings
        done, total = len(trainer.epochs) * settings.iterations, settings.epochs * settings.iterations
        self._bars.update(self._steps, visible=True, completed=done, total=total)

    def iteration(self, epoch: int, done: int, loss: float) -> None:
        self._bars.update(
            self._steps,
            completed=epoch * self._trainer.settings.iterations + done,
            description=f"epoch {epoch + 1}/{self._trainer.settings.epochs}, loss {loss:.3f}",
        )

    def validated(self, done: int, total: int) -> None:
        self._bars.update(self._cases, completed=done, total=total, visible=done < total)

    def epoch(self, epoch: Epoch, best: bool) -> None:
        names = self._trainer.data.label_names[1:]
        parts = [f"epoch {epoch.number + 1}", f"loss {epoch.train_loss:.3f}"]
        if epoch.val_loss is not None:
            parts.append(f"validation {epoch.val_loss:.3f}")
        if epoch.dice is not None:
            parts += [f"Dice {name} {value:.3f}" for name, value in zip(names, epoch.dice, strict=True)]
        parts.append(f"{epoch.ended - epoch.started:.0f} s")
        self._console.print(one_line("  ".join(parts) + ("  best" if best else ""), limit=2000), soft_wrap=True)


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def _summary(trainer: Trainer, run: Path, seconds: float) -> dict[str, object]:
    last = trainer.epochs[-1]
    names = trainer.data.label_names[1:]
    return {
        "run": str(run),
        "epochs": len(trainer.epochs),
        "seconds": round(seconds, 1),
        "train_loss": last.train_loss,
        "validation_dice": None if last.dice is None else dict(zip(names, map(_or_none, last.dice), strict=True)),
        "checkpoint": str(run / "checkpoint_final.pth"),
    }


def _tell(trainer: Trainer, run: Path, seconds: float) -> None:
    names = trainer.data.label_names[1:]
    for name, value in zip(names, trainer.epochs[-1].dice or (), strict=False):
        click.echo(f"validation Dice, {printable(name)}: {value:.4f}")
    click.echo(f"wrote {printable(run)} ({seconds / 60:.1f} min): checkpoints, curves.png, progress.csv")
    click.echo(
        f"next: masksam-deploy export {printable(run / 'checkpoint_final.pth')} -o {printable(run.name)}.masksam"
    )


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if isfinite(value) else None
