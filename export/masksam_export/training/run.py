"""From a dataset folder to a finished run folder: check, plan, prepare, train."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masksam_deploy.atomic import atomic_path
from masksam_deploy.bundle import file_digest
from masksam_deploy.errors import CheckpointError, DatasetError, OutputError
from masksam_deploy.resample import ANISOTROPY_THRESHOLD
from masksam_export.model import MaskSAM
from masksam_export.plans import Plan
from masksam_export.training.augmentation import Augmentation
from masksam_export.training.cases import prepare_case, split_cases
from masksam_export.training.dataset import Dataset, read_dataset
from masksam_export.training.freezing import freeze_sam
from masksam_export.training.loop import Data, Trainer, Watcher, with_flips
from masksam_export.training.network import (
    NetworkName,
    default_queries,
    largest_side,
    network_config,
    new_network,
    side_multiple,
    weight_count,
)
from masksam_export.training.planning import Fingerprint, make_plans, measure, suggest_patch, target_grid
from masksam_export.training.sam_weights import load_sam_weights
from masksam_export.training.settings import OptimizerName, Settings, changed
from masksam_export.training.trainer_form import CONFIGURATION

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for; None leaves the choice to the data or the network. See the command's options."""

    network: NetworkName = "tiny"
    patch: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    queries: int | None = None
    epochs: int = 1000
    iterations: int = 250
    batch: int = 2
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 3e-5
    warmup: int = 0
    foreground_share: float = 0.33
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    fold: int | None = 0
    validate_every: int = 1
    seed: int = 0
    device: str = "cpu"
    sam_checkpoint: Path | None = None


def prepare_run(
    dataset_root: Path, run: Path, request: Request, watcher: Watcher, progress: Progress, *, resume: bool
) -> tuple[Trainer, tuple[str, ...]]:
    """Everything up to the first epoch; the trainer, and what people want to know about it.

    Nothing is written before all the data have been read and found good.

    Raises:
        DatasetError: the data are incomplete or inconsistent, or do not fit the network.
        CheckpointError: SAM's weights do not fit, or `resume` finds no run with these settings.
        OutputError: the run folder holds something already.
    """
    _check_run_folder(run, resume=resume)
    device = _device(request.device)
    dataset = read_dataset(dataset_root)
    fingerprint = measure(dataset, lambda done, total: progress("checking", done, total))
    settings = _settings(request, dataset, fingerprint)
    plans = _plans(settings, request, dataset, fingerprint)
    model, notes = _network(settings, request, dataset)
    data, data_notes = _data(dataset, plans, settings, progress)
    if resume and (differences := changed(settings, run / "settings.json")):
        raise CheckpointError(f"cannot resume '{run}' with other settings: {'; '.join(differences)}")
    run.mkdir(parents=True, exist_ok=True)
    _write_facts(run, settings, plans, data)
    trainer = Trainer(model, data, settings, _augmentation(settings, data), run, device, watcher)
    if resume:
        trainer.resume()
    return trainer, (*notes, *data_notes)


def _check_run_folder(run: Path, *, resume: bool) -> None:
    if resume and not run.is_dir():
        raise CheckpointError(f"'{run}' does not exist; expected the folder of an interrupted run")
    if not resume and run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise OutputError(f"'{run}' exists and is not empty; choose another folder, or go on with --resume")


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise DatasetError("no CUDA device is available to torch; install a CUDA build, or train with --device cpu")
    return torch.device(name)


def _settings(request: Request, dataset: Dataset, fingerprint: Fingerprint) -> Settings:
    patch = request.patch or suggest_patch(
        target_grid(fingerprint, request.spacing).median_size,
        frames=None,
        multiple=side_multiple(request.network),
        largest=largest_side(request.network),
    )
    return Settings(
        network=request.network,
        patch=patch,
        queries=request.queries if request.queries is not None else default_queries(len(dataset.label_names)),
        epochs=request.epochs,
        iterations=request.iterations,
        batch=request.batch,
        optimizer=request.optimizer,
        learning_rate=request.learning_rate,
        weight_decay=request.weight_decay,
        warmup=request.warmup,
        foreground_share=request.foreground_share,
        mirror_axes=request.mirror_axes,
        fold=request.fold,
        validate_every=request.validate_every,
        seed=request.seed,
        sam_sha256=file_digest(request.sam_checkpoint).sha256 if request.sam_checkpoint else None,
    )


def _plans(settings: Settings, request: Request, dataset: Dataset, fingerprint: Fingerprint) -> dict[str, Any]:
    return make_plans(
        fingerprint,
        dataset,
        patch=settings.patch,
        batch_size=settings.batch,
        spacing=request.spacing,
        architecture=ARCHITECTURE,
        configuration=CONFIGURATION,
    )


def _network(settings: Settings, request: Request, dataset: Dataset) -> tuple[MaskSAM, tuple[str, ...]]:
    config = network_config(
        settings.network,
        channels=len(dataset.channel_names),
        patch=settings.patch,
        queries=settings.queries,
        classes=len(dataset.label_names),
    )
    model = new_network(config, settings.seed)
    if request.sam_checkpoint is None:
        note = f"network: {settings.network} from scratch, {weight_count(model) / 1e6:.2f} M weights, all trained"
        return model, (note,)
    report = load_sam_weights(model, request.sam_checkpoint)
    trained, frozen = freeze_sam(model)
    return model, (
        f"network: {settings.network} from '{request.sam_checkpoint.name}' ({report.loaded} tensors, "
        f"{len(report.resampled)} resampled), {trained / 1e6:.1f} M weights trained, {frozen / 1e6:.1f} M frozen",
    )


def _data(
    dataset: Dataset, plans: dict[str, Any], settings: Settings, progress: Progress
) -> tuple[Data, tuple[str, ...]]:
    plan = Plan(plans, dataset.json, CONFIGURATION)
    preprocessing, labels = plan.preprocessing(), plan.labels()
    names = [case.name for case in dataset.cases]
    training, validation = (names, names) if settings.fold is None else split_cases(names, fold=settings.fold)
    prepared = {}
    for done, case in enumerate(dataset.cases, 1):
        prepared[case.name] = prepare_case(case, dataset, preprocessing, keep_scan=case.name in validation)
        progress("preparing", done, len(names))
    data = Data(
        train=[prepared[name] for name in training],
        validation=[prepared[name] for name in validation],
        preprocessing=preprocessing,
        labels=labels,
        plans=plans,
        dataset_json=dataset.json,
    )
    judged = "the same cases (nothing is held out)" if settings.fold is None else f"{len(validation)} others"
    return data, (
        f"data: {len(training)} cases to train on, validated on {judged}; {len(labels.classes)} classes",
        f"grid: patch {settings.patch} at {tuple(round(s, 4) for s in preprocessing.spacing)} mm, "
        f"{settings.queries} queries",
    )


def _augmentation(settings: Settings, data: Data) -> Augmentation:
    depth, *plane = data.preprocessing.spacing
    augmentation = Augmentation(
        spacing=data.preprocessing.spacing, isotropic=depth <= ANISOTROPY_THRESHOLD * max(plane)
    )
    return with_flips(augmentation, settings.mirror_axes)


def _write_facts(run: Path, settings: Settings, plans: dict[str, Any], data: Data) -> None:
    texts = {
        "settings.json": settings.to_json(),
        "plans.json": json.dumps(plans, indent=2),
        "dataset.json": json.dumps(data.dataset_json, indent=2),
    }
    for name, text in texts.items():
        with atomic_path(run / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


# What the official network builder reads of a plan's architecture: kernels, convolutions per stage, bias, norm and
# activation. Feature widths and strides are nnU-Net's and are ignored by MaskSAM.
ARCHITECTURE: dict[str, Any] = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 2, 2]],
        "n_conv_per_stage": [2, 2, 2, 2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2, 2, 2, 2],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
