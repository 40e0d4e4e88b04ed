"""What is known after each epoch: a table as CSV, curves as PNG."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.optional import OptionalPackage


@dataclass(frozen=True)
class Epoch:
    """One row.

    Attributes:
        number: from 0.
        learning_rate: at the end of the epoch.
        train_loss: mean weighted sum over the epoch's iterations.
        terms: mean of each unweighted term.
        val_loss: the same on unchanged patches of the validation cases; None where not measured.
        dice: of each foreground class, mean over the validation cases; None where not measured, NaN for a class
            that is in none of them.
        started: UNIX time in seconds.
        ended: UNIX time in seconds.
    """

    number: int
    learning_rate: float
    train_loss: float
    terms: dict[str, float]
    val_loss: float | None
    dice: tuple[float, ...] | None
    started: float
    ended: float

    @property
    def mean_dice(self) -> float | None:
        """Over the foreground classes that were measured."""
        found = [value for value in self.dice or () if isfinite(value)]
        return sum(found) / len(found) if found else None


def write_csv(path: Path, epochs: Sequence[Epoch], label_names: Sequence[str]) -> None:
    """All epochs, one row each, atomically."""
    names = [f"dice {name}" for name in label_names[1:]]
    terms = list(epochs[0].terms) if epochs else []
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "learning rate", "train loss", *terms, "validation loss", *names, "seconds"])
        for epoch in epochs:
            dice = epoch.dice or (None,) * len(names)
            writer.writerow(
                [
                    epoch.number,
                    f"{epoch.learning_rate:.6g}",
                    f"{epoch.train_loss:.5f}",
                    *(f"{epoch.terms[name]:.5f}" for name in terms),
                    _cell(epoch.val_loss),
                    *map(_cell, dice),
                    f"{epoch.ended - epoch.started:.1f}",
                ]
            )


def _plain(name: str) -> str:
    """A name that matplotlib neither reads as a formula nor hides for its first character."""
    return " " + name.replace("$", r"\$")


def _cell(value: float | None) -> str:
    return "" if value is None or not isfinite(value) else f"{value:.5f}"


_MATPLOTLIB = OptionalPackage("matplotlib.figure", "matplotlib", "cpu,train", "training curves")


def draw_curves(path: Path, epochs: Sequence[Epoch], label_names: Sequence[str]) -> None:
    """Losses and learning rate above, validation Dice below, as a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    _MATPLOTLIB.require()
    from matplotlib.figure import Figure

    measured = [epoch for epoch in epochs if epoch.dice is not None]
    panels = 2 if measured else 1  # without validation there is no Dice to show
    figure = Figure(figsize=(8, 3.5 * panels), layout="constrained")
    loss, *below = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    numbers = [epoch.number for epoch in epochs]
    loss.plot(numbers, [epoch.train_loss for epoch in epochs], label="training")
    validated = [epoch for epoch in measured if epoch.val_loss is not None]
    if validated:
        loss.plot([e.number for e in validated], [e.val_loss for e in validated], label="validation")
    loss.set_ylabel("loss (weighted sum)")
    loss.legend(loc="upper right")
    rate = loss.twinx()
    rate.plot(numbers, [epoch.learning_rate for epoch in epochs], color="0.6", linestyle=":")
    rate.set_ylabel("learning rate (dotted)")
    for dice in below:
        for index, name in enumerate(label_names[1:]):
            values = [e.dice[index] for e in measured if e.dice is not None]
            dice.plot([e.number for e in measured], values, marker=".", label=_plain(name))
        dice.set_ylim(0, 1)
        dice.set_ylabel("validation Dice")
        dice.grid(alpha=0.3)
        dice.legend(loc="lower right")
    bottom = below[-1] if below else loss
    bottom.set_xlabel("epoch")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
