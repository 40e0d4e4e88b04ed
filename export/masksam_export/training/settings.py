"""All choices of one training run, written beside its results so that it can be repeated and resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from masksam_deploy.errors import CheckpointError
from masksam_export.training.network import NetworkName

OptimizerName = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Settings:
    """Attributes as the options of `masksam-deploy train`; sizes in voxels, transposed axis order (z, y, x)."""

    network: NetworkName
    patch: tuple[int, int, int]
    queries: int
    epochs: int
    iterations: int
    batch: int
    optimizer: OptimizerName
    learning_rate: float
    weight_decay: float
    warmup: int
    """Iterations over which the learning rate rises to its first value."""
    foreground_share: float
    mirror_axes: tuple[int, ...]
    """Axes that training mirrors at random, and that inference may therefore mirror."""
    fold: int | None
    """None: train on all cases (nnU-Net's "all")."""
    validate_every: int
    seed: int
    sam_sha256: str | None
    """Hash of the SAM weights that training started from; None: from scratch, all weights trained."""

    def to_json(self) -> str:
        """For `settings.json`."""
        return json.dumps(asdict(self), indent=2)


def changed(settings: Settings, path: Path) -> list[str]:
    """Names and values that differ from those in `settings.json`.

    Raises:
        CheckpointError: the file is missing or unreadable.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read; expected the settings of an interrupted run: start a new one without --resume"
        ) from error
    now = json.loads(settings.to_json())
    return [
        f"{field.name} is {now[field.name]}, was {stored.get(field.name)}"
        for field in fields(settings)
        if now[field.name] != stored.get(field.name)
    ]
