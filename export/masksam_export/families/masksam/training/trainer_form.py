"""Checkpoints in the form of nnU-Net's trainer: the official code and `load_checkpoint` both read them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.training.history import Epoch
from masksam_export.torch_files.quoting import reason
from masksam_export.torch_files.safe_load import load_mapping
from masksam_export.torch_files.state_dict import in_float32, named_tensors

CONFIGURATION = "3d_fullres"
TRAINER_NAMES = {"acdc": "MaskSAM_ACDC", "p512": "MaskSAM_AMOS", "p256": "MaskSAM_Synapse"}
EMA_KEPT = 0.9  # nnU-Net's moving average of the Dice
LATEST = "checkpoint_latest.pth of an interrupted `train` run"
STEP = "step"  # a number; the other moments are as large as their parameters
MOMENTS: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {STEP, "exp_avg", "exp_avg_sq"},
}
PROGRESS = "masksam_deploy_progress"
"""Our own entry, which the official code ignores: the epochs with all that `logging` has no place for."""


def init_args(
    plans: Mapping[str, Any], dataset_json: Mapping[str, Any], fold: int | None, device: torch.device
) -> dict[str, Any]:
    """What the official trainer is constructed from."""
    return {
        "plans": dict(plans),
        "configuration": CONFIGURATION,
        "fold": "all" if fold is None else fold,
        "dataset_json": dict(dataset_json),
        "unpack_dataset": True,
        "device": device,
    }


def content(
    model: MaskSAM,
    arguments: Mapping[str, Any],
    epochs: Sequence[Epoch],
    mirror_axes: tuple[int, ...],
    *,
    optimizer: torch.optim.Optimizer | None,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, Any]:
    """The dict that is saved. Without `optimizer`: weights to run, not to go on training with."""
    return {
        "network_weights": _on_cpu(model.state_dict()),
        "optimizer_state": optimizer.state_dict() if optimizer else None,
        "grad_scaler_state": scaler.state_dict() if scaler and scaler.is_enabled() else None,
        "logging": logging(epochs),
        "_best_ema": best_ema(epochs),
        "current_epoch": len(epochs),
        "init_args": dict(arguments),
        "trainer_name": TRAINER_NAMES[model.config.variant],
        "inference_allowed_mirroring_axes": mirror_axes or None,  # nnU-Net takes an empty tuple badly
        PROGRESS: [_plain(epoch) for epoch in epochs],
    }


def save(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint; a reader never sees half of it."""
    with atomic_path(path) as temporary:
        torch.save(dict(checkpoint), temporary)


def restore(path: Path, model: MaskSAM, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> list[Epoch]:
    """Load what `content` made into a new trainer, and return the epochs done.

    Raises:
        CheckpointError: unsafe, damaged, of another network, or without what resuming needs.
    """
    stored, name = load_mapping(path), one_line(path.name)
    missing = [
        entry for entry in ("network_weights", "optimizer_state", PROGRESS) if stored.get(entry) in (None, [], {})
    ]
    if missing:
        raise CheckpointError(
            f"'{name}' has no {', '.join(missing)}; expected checkpoint_latest.pth of an interrupted `train` run"
        )
    weights = in_float32(named_tensors(stored["network_weights"], f"'{name}'", LATEST))
    try:
        epochs = [_epoch(row) for row in stored[PROGRESS]]
        if [epoch.number for epoch in epochs] != list(range(len(epochs))):
            raise ValueError("its epochs are not numbered from 0")
        model.load_state_dict(weights, strict=True)
        optimizer.load_state_dict(_optimizer_state(stored["optimizer_state"], optimizer))
        scaler.load_state_dict(_scaler_state(stored.get("grad_scaler_state"), scaler))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"'{name}' does not belong to this run: {reason(error)}; start a new one without --resume"
        ) from error
    return epochs


def _optimizer_state(stored: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The stored moments, in memory of their own, with the hyperparameters of this run.

    The optimizer itself takes any moments, and fails at its first step.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for number, moments in stored["state"].items():
        if number not in parameters or moments.keys() != MOMENTS[type(optimizer)]:
            raise ValueError(f"the state of its optimizer has no place for {one_line(str(number))}")
        for name, moment in moments.items():
            shape = torch.Size() if name == STEP else parameters[number].shape
            if moment.shape != shape or not bool(torch.isfinite(moment.float()).all()):
                raise ValueError(f"the state of its optimizer does not fit parameter {number}")
    # Copied, because loading keeps references into the file, which the next epoch replaces.
    return {"state": deepcopy(stored["state"]), "param_groups": groups}


def _scaler_state(stored: Any, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The stored scale, with the settings of this run."""
    own = scaler.state_dict()
    if not own or not stored:
        return own
    scale, tracker = float(stored["scale"]), int(stored["_growth_tracker"])
    if not (0 < scale < math.inf and 0 <= tracker <= own["growth_interval"]):
        raise ValueError("its gradient scale is not a positive number")
    return {**own, "scale": scale, "_growth_tracker": tracker}


def logging(epochs: Sequence[Epoch]) -> dict[str, list[Any]]:
    """nnU-Net's logger: one value per epoch in each list; NaN where nothing was measured."""
    return {
        "mean_fg_dice": [_or_nan(epoch.mean_dice) for epoch in epochs],
        "ema_fg_dice": [_or_nan(value) for value in _ema(epochs)],
        "dice_per_class_or_region": [list(epoch.dice or ()) for epoch in epochs],
        "train_losses": [epoch.train_loss for epoch in epochs],
        "val_losses": [_or_nan(epoch.val_loss) for epoch in epochs],
        "lrs": [epoch.learning_rate for epoch in epochs],
        "epoch_start_timestamps": [epoch.started for epoch in epochs],
        "epoch_end_timestamps": [epoch.ended for epoch in epochs],
    }


def best_ema(epochs: Sequence[Epoch]) -> float | None:
    """The best moving average of the mean foreground Dice so far."""
    return max((value for value in _ema(epochs) if value is not None), default=None)


def is_best(epochs: Sequence[Epoch]) -> bool:
    """Whether the last epoch was measured and has the best moving average."""
    averages = _ema(epochs)
    return bool(epochs) and epochs[-1].dice is not None and averages[-1] == best_ema(epochs)


def _ema(epochs: Sequence[Epoch]) -> list[float | None]:
    averages: list[float | None] = []
    for epoch in epochs:
        last, new = (averages[-1] if averages else None), epoch.mean_dice
        averages.append(last if new is None else new if last is None else EMA_KEPT * last + (1 - EMA_KEPT) * new)
    return averages


def _on_cpu(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """In the plain layout; official names that share a weight go on sharing it."""
    moved: dict[int, Tensor] = {}
    return OrderedDict(
        (name, moved.setdefault(value.data_ptr(), value.detach().cpu().contiguous())) for name, value in state.items()
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(epoch: Epoch) -> dict[str, Any]:
    return {**vars(epoch), "dice": None if epoch.dice is None else list(epoch.dice)}


def _epoch(row: Mapping[str, Any]) -> Epoch:
    dice, val_loss = row["dice"], row["val_loss"]
    return Epoch(
        number=int(row["number"]),
        learning_rate=float(row["learning_rate"]),
        train_loss=float(row["train_loss"]),
        terms={str(name): float(value) for name, value in row["terms"].items()},
        val_loss=None if val_loss is None else float(val_loss),
        dice=None if dice is None else tuple(map(float, dice)),
        started=float(row["started"]),
        ended=float(row["ended"]),
    )
