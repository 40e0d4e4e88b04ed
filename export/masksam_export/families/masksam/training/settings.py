"""All choices of one training run, written beside its results so that it can be repeated and resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from masksam_deploy.base.errors import CheckpointError
from masksam_export.families.masksam.training.network import NetworkName

OptimizerName = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Settings:
    """Attributes as the options of `masksam-deploy train`; sizes in voxels, transposed axis order (z, y, x)."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # of the file that `read_settings` reads

    network: NetworkName
    patch: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    """In mm, where it was asked for; None: the data's median."""
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
    """Hash of the SAM weights that training started from."""
    checkpoint_sha256: str | None
    """Hash of the MaskSAM checkpoint that training started from. Neither this nor SAM's: from scratch."""
    cases: tuple[str, ...]
    """All cases of the data set, those held out included."""
    shading: float = 0.0
    """Largest coefficient of a smooth random gain; see `augmentation.shade`."""

    def to_json(self) -> str:
        """For `settings.json`."""
        return json.dumps(asdict(self), indent=2)


def read_settings(path: Path) -> Settings:
    """The settings of an interrupted run.

    Raises:
        CheckpointError: the file is missing, damaged, or not one that `train` wrote.
    """
    try:
        return TypeAdapter(Settings).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read; expected the settings of an interrupted run: start a new one without --resume"
        ) from error


def freezes_sam(settings: Settings) -> bool:
    """Whether SAM's own weights stay as they are: where they come from SAM, as in the published networks."""
    from_sam = settings.sam_sha256 is not None
    return from_sam or (settings.checkpoint_sha256 is not None and settings.network != "tiny")
