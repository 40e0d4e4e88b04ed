"""The training loop: patches in, better weights out, everything written down after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from masksam_deploy.base.errors import MaskSamError
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.training import trainer_form
from masksam_export.families.masksam.training.augmentation import NO_AUGMENTATION, Augmentation
from masksam_export.families.masksam.training.history import Epoch, draw_curves, write_csv
from masksam_export.families.masksam.training.losses import Objective
from masksam_export.families.masksam.training.matching import ACDC_WEIGHTS, AMOS_WEIGHTS, Outputs
from masksam_export.families.masksam.training.patches import PatchSampler, Source
from masksam_export.families.masksam.training.points import PointSampling
from masksam_export.families.masksam.training.preparation import Data
from masksam_export.families.masksam.training.settings import Settings, freezes_sam
from masksam_export.families.masksam.training.targets import frame_targets
from masksam_export.families.masksam.training.validation import validate

GRADIENT_NORM = 12.0
POLYNOMIAL_POWER = 0.9
SGD_MOMENTUM = 0.99
SCRATCH_EPS = 1e-8
OFFICIAL_EPS = 1e-4  # AMOS, whose trained weights start from SAM; from scratch it holds small gradients back
VALIDATION_SHARE = 10  # one validation patch per so many training patches
MOST_SKIPPED = 20  # steps of an epoch that overflow in half precision
LATEST = "checkpoint_latest.pth"
_EPOCH_STRIDE = 1_000_003


class Watcher(Protocol):
    """Told how the training goes."""

    def iteration(self, epoch: int, done: int, loss: float) -> None:
        """After every step of the optimizer."""

    def validated(self, done: int, total: int) -> None:
        """After every validation case."""

    def epoch(self, epoch: Epoch, best: bool) -> None:
        """After every epoch, when its files are written."""


class Trainer:
    """One run in one folder.

    Args:
        model: fresh or loaded weights; parameters that do not require gradients stay as they are.
        data: preprocessed cases.
        settings: all choices.
        augmentation: how training patches vary.
        run: the folder to write to; it exists.
        device: to train on. On CUDA, mixed precision with a gradient scaler.
        watcher: told how it goes.
    """

    def __init__(
        self,
        model: MaskSAM,
        data: Data,
        settings: Settings,
        augmentation: Augmentation,
        run: Path,
        device: torch.device,
        watcher: Watcher,
    ) -> None:
        self.model = _channels_last(model.to(device)).train()
        self.data = data
        self.settings = settings
        self.augmentation = augmentation
        self.run = run
        self.device = device
        self.watcher = watcher
        self.epochs: list[Epoch] = []
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = new_optimizer(self._trained, settings)
        self._scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def resume(self) -> None:
        """Go on where `checkpoint_latest.pth` ended; epochs are seeded one by one, so the run is the same.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        self.epochs = trainer_form.restore(self.run / LATEST, self.model, self._optimizer, self._scaler)

    def fit(self) -> None:
        """Train to the last epoch and write all files.

        Raises:
            MaskSamError: the loss is no longer finite.
        """
        # One thread for the whole run: an interruption while a thread starts would leave it running unseen.
        with ThreadPoolExecutor(1) as pool:
            while len(self.epochs) < self.settings.epochs:
                self._epoch(len(self.epochs), pool)
        self._save("checkpoint_final.pth")
        self._save("checkpoint_release.pth", trainable=False)

    def _epoch(self, number: int, pool: Executor) -> None:
        started = time.time()
        loss, terms = self._train(number, pool)
        measured = (number + 1) % self.settings.validate_every == 0 or number + 1 == self.settings.epochs
        dice = val_loss = None
        if measured and self.data.held_out:
            dice = self._validate()
            val_loss = self._validation_loss()
        self.epochs.append(Epoch(number, self._learning_rate(), loss, terms, val_loss, dice, started, time.time()))
        best = trainer_form.is_best(self.epochs)
        self._save(LATEST)
        if best:
            self._save("checkpoint_best.pth")
        write_csv(self.run / "progress.csv", self.epochs, self.data.label_names)
        draw_curves(self.run / "curves.png", self.epochs, self.data.label_names)
        self.watcher.epoch(self.epochs[-1], best)

    def _train(self, number: int, pool: Executor) -> tuple[float, dict[str, float]]:
        """One epoch, its patches cut by the pool; the mean loss and the mean of every term."""
        settings = self.settings
        sampler = self._sampler(self.data.train, self.augmentation, settings.foreground_share, number)
        objective = self._objective(number)
        totals: dict[str, float] = {}
        skipped = 0
        batches = _ahead(pool, lambda: sampler.batch(settings.batch), settings.iterations)
        for done, (images, labels) in enumerate(batches, 1):
            self._set_learning_rate(number, done)
            loss, terms = self._losses(objective, images, labels)
            value = float(loss.detach())
            if math.isfinite(value):
                for name, term in {"loss": loss, **terms}.items():
                    totals[name] = totals.get(name, 0.0) + float(term.detach())
            else:
                skipped += 1
                self._check_divergence(value, number, done, skipped)
            self._step(loss)
            self.watcher.iteration(number, done, value)
        means = {name: total / (settings.iterations - skipped) for name, total in totals.items()}
        return means.pop("loss"), means

    def _check_divergence(self, loss: float, number: int, done: int, skipped: int) -> None:
        """In half precision a single step may overflow: the scaler then skips it. In full precision none may."""
        if self._scaler.is_enabled() and skipped < min(MOST_SKIPPED, self.settings.iterations):
            return
        kept = f"; {LATEST} holds the {number} epochs before" if number else ""
        raise MaskSamError(
            f"the loss is {loss} in epoch {number + 1}, step {done}: the training diverged; lower --learning-rate or "
            f"look at the data{kept}"
        )

    def _losses(self, objective: Objective, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            found = self.model.predict(images.to(self.device))
        outputs = Outputs(found.logits, found.masks, found.proposals.mask_logits, found.proposals.boxes)
        return objective(outputs, frame_targets(labels.to(self.device)))

    def _step(self, loss: Tensor) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._trained, GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _validate(self) -> tuple[float, ...]:
        data = self.data
        return validate(self.model, data.held_out, data.preprocessing, data.labels, self.device, self.watcher.validated)

    def _validation_loss(self) -> float:
        """On the same unchanged patches every time."""
        count = max(1, self.settings.iterations // VALIDATION_SHARE)
        sampler = self._sampler(self.data.validation, NO_AUGMENTATION, 1.0, 0)
        objective = self._objective(0)
        with torch.no_grad():
            losses = [float(self._losses(objective, *sampler.batch(self.settings.batch))[0]) for _ in range(count)]
        return sum(losses) / count

    def _sampler(
        self, cases: Sequence[Source], augmentation: Augmentation, foreground_share: float, epoch: int
    ) -> PatchSampler:
        generator = torch.Generator().manual_seed(self._seed(epoch, 1))
        return PatchSampler(cases, self.settings.patch, augmentation, foreground_share, generator)

    def _objective(self, epoch: int) -> Objective:
        config = self.model.config
        # Officially half of the patch's pixels: 131,072 of 512 x 512 (AMOS), 32,768 of 256 x 256.
        sampling = PointSampling(count=config.patch_side**2 // 2)
        weights = AMOS_WEIGHTS if self.settings.network == "amos" else ACDC_WEIGHTS
        return Objective(weights, sampling, torch.Generator(self.device).manual_seed(self._seed(epoch, 2)))

    def _seed(self, epoch: int, purpose: int) -> int:
        return (self.settings.seed * _EPOCH_STRIDE + epoch) * 4 + purpose

    def _set_learning_rate(self, epoch: int, iteration: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, epoch, iteration)

    def _learning_rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _save(self, name: str, *, trainable: bool = True) -> None:
        arguments = trainer_form.init_args(
            self.data.plans, self.data.dataset_json, self.settings.fold, torch.device(self.device.type)
        )
        checkpoint = trainer_form.content(
            self.model,
            arguments,
            self.epochs,
            self.settings.mirror_axes,
            optimizer=self._optimizer if trainable else None,
            scaler=self._scaler if trainable else None,
        )
        trainer_form.save(self.run / name, checkpoint)


def _channels_last(model: MaskSAM) -> MaskSAM:
    """The same network, its 3D convolutions' weights laid out with channels last.

    That makes torch choose this layout for their work: the gradients of the few-channel convolutions at full
    resolution are then found six times as fast on a CPU.
    """
    for parameter in model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model


def new_optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """AdamW as for AMOS, or SGD as for ACDC and Synapse."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            momentum=SGD_MOMENTUM,
            nesterov=True,
        )
    eps = OFFICIAL_EPS if freezes_sam(settings) else SCRATCH_EPS
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, eps=eps)


def learning_rate(settings: Settings, epoch: int, iteration: int) -> float:
    """Polynomial over the epochs; over the first `warmup` iterations of the run it rises from zero.

    Args:
        settings: of the run.
        epoch: from 0.
        iteration: of the epoch, from 1.
    """
    rate = settings.learning_rate * (1 - epoch / settings.epochs) ** POLYNOMIAL_POWER
    done = epoch * settings.iterations + iteration
    return rate * min(1.0, done / settings.warmup) if settings.warmup else rate


def _ahead(pool: Executor, make: Callable[[], tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`count` results, the next one made by the pool while the last is used; in order."""
    waiting = pool.submit(make)
    for index in range(count):
        ready = waiting.result()
        if index + 1 < count:
            waiting = pool.submit(make)
        yield ready


def with_flips(augmentation: Augmentation, mirror_axes: Sequence[int]) -> Augmentation:
    """Flips along these axes only, half of the time."""
    z, y, x = (0.5 if axis in mirror_axes else 0.0 for axis in range(3))
    return replace(augmentation, flips=(z, y, x))
