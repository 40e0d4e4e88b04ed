"""From a dataset folder to a finished run folder: check, plan, prepare, train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import CheckpointError, DatasetError, OutputError
from masksam_deploy.bundle.directory import file_digest
from masksam_deploy.scan_path.resample import ANISOTROPY_THRESHOLD
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.training.augmentation import Augmentation
from masksam_export.families.masksam.training.dataset import Dataset, read_dataset
from masksam_export.families.masksam.training.fine_tuning import load_masksam_weights
from masksam_export.families.masksam.training.freezing import freeze_sam
from masksam_export.families.masksam.training.loop import LATEST, Trainer, Watcher, with_flips
from masksam_export.families.masksam.training.network import (
    NetworkName,
    default_epochs,
    default_queries,
    largest_side,
    network_config,
    new_network,
    side_multiple,
    weight_count,
)
from masksam_export.families.masksam.training.planning import (
    Fingerprint,
    make_plans,
    measure,
    suggest_patch,
    target_grid,
)
from masksam_export.families.masksam.training.preparation import Data, Progress, check_disk, prepare_data
from masksam_export.families.masksam.training.sam_weights import load_sam_weights
from masksam_export.families.masksam.training.settings import OptimizerName, Settings, freezes_sam, read_settings
from masksam_export.families.masksam.training.trainer_form import CONFIGURATION

SETTINGS, PLANS, DATASET = "settings.json", "plans.json", "dataset.json"


@dataclass(frozen=True)
class Request:
    """What the user asked for; None leaves the choice to the data or the network. See the command's options."""

    network: NetworkName = "tiny"
    patch: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    queries: int | None = None
    epochs: int | None = None
    iterations: int = 250
    batch: int = 2
    optimizer: OptimizerName | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 3e-5
    warmup: int = 0
    foreground_share: float = 0.33
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    shading: float = 0.0
    fold: int | None = 0
    validate_every: int = 1
    seed: int = 0
    sam_checkpoint: Path | None = None
    checkpoint: Path | None = None


def prepare_run(
    dataset_root: Path, run: Path, request: Request | None, watcher: Watcher, progress: Progress, device: str = "cpu"
) -> tuple[Trainer, tuple[str, ...]]:
    """Everything up to the first epoch; the trainer, and what people want to know about it.

    Nothing is written before all the data have been read and found good.

    Args:
        dataset_root: in nnU-Net's raw layout.
        run: the folder to write to; new, or that of an interrupted run.
        request: what was asked for; None: go on with the interrupted run as it was begun.
        watcher: told how the training goes.
        progress: told how the preparation goes.
        device: `cpu` or `cuda`.

    Raises:
        DatasetError: the data are incomplete or inconsistent, do not fit the network, or are not those of the
            interrupted run.
        CheckpointError: the weights to start from do not fit, or there is no run to go on with.
        OutputError: the run folder holds something already, or the disk is too small.
    """
    _check_run_folder(run, resume=request is None)
    torch_device = _device(device)
    stored = read_settings(run / SETTINGS) if request is None else None
    dataset = read_dataset(dataset_root)
    fingerprint = measure(dataset, lambda done, total: progress("checking", done, total))
    settings = stored or _settings(request or Request(), dataset, fingerprint)
    plans = make_plans(
        fingerprint,
        dataset,
        patch=settings.patch,
        batch_size=settings.batch,
        spacing=settings.spacing,
        architecture=ARCHITECTURE,
        configuration=CONFIGURATION,
    )
    if stored:
        _check_same_data(run, stored, dataset, plans)
    model, note = _network(settings, request, dataset)
    run.mkdir(parents=True, exist_ok=True)
    try:
        grid = target_grid(fingerprint, settings.spacing)
        needed = check_disk(fingerprint, grid, len(dataset.channel_names), len(dataset.label_names), run)
        data = prepare_data(dataset, plans, settings, run, progress)
    except BaseException:
        with suppress(OSError):  # not empty where a run is resumed
            run.rmdir()
        raise
    if not stored:
        _write_facts(run, settings, data)
    trainer = Trainer(model, data, settings, _augmentation(settings, data), run, torch_device, watcher)
    if stored:
        trainer.resume()
    return trainer, (note, *_notes(data, settings, needed))


def _check_run_folder(run: Path, *, resume: bool) -> None:
    if resume:
        if not (run / LATEST).is_file():
            raise CheckpointError(
                f"'{run}' has no {LATEST}; expected the folder of a run that finished an epoch: start without --resume"
            )
        return
    if run.exists() and not run.is_dir():
        raise OutputError(f"'{run}' is a file; give a folder for the run")
    # A run that ended before its first epoch leaves only these behind.
    if run.is_dir() and {path.name for path in run.iterdir()} - {SETTINGS, PLANS, DATASET}:
        raise OutputError(f"'{run}' exists and is not empty; choose another folder, or go on with --resume")


def _check_same_data(run: Path, settings: Settings, dataset: Dataset, plans: Mapping[str, Any]) -> None:
    """Other cases would be split another way: some trained on before would be validated on now."""
    names = {case.name for case in dataset.cases}
    if changed := sorted(names ^ set(settings.cases)):
        raise DatasetError(
            f"the data set has changed since '{run}' was begun: {', '.join(changed[:8])} were added or removed; "
            "restore it, or start a new run"
        )
    try:
        same = json.loads((run / PLANS).read_text(encoding="utf-8")) == plans
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        raise DatasetError(
            f"the data give other plans than '{run / PLANS}': intensities, spacings or shapes have changed since the "
            "run was begun; restore the data, or start a new run"
        )


def _digest(path: Path | None) -> str | None:
    """Of a file to start from; what is wrong with it is said when it is loaded."""
    return file_digest(path).sha256 if path and path.is_file() else None


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
    classes = len(dataset.label_names)
    return Settings(
        network=request.network,
        patch=patch,
        spacing=request.spacing,
        queries=request.queries if request.queries is not None else default_queries(request.network, classes),
        epochs=request.epochs if request.epochs is not None else default_epochs(request.network),
        iterations=request.iterations,
        batch=request.batch,
        optimizer=request.optimizer or ("sgd" if request.network in ("acdc", "synapse") else "adamw"),
        learning_rate=request.learning_rate,
        weight_decay=request.weight_decay,
        warmup=request.warmup,
        foreground_share=request.foreground_share,
        mirror_axes=request.mirror_axes,
        fold=request.fold,
        validate_every=request.validate_every,
        seed=request.seed,
        sam_sha256=_digest(request.sam_checkpoint),
        checkpoint_sha256=_digest(request.checkpoint),
        cases=tuple(case.name for case in dataset.cases),
        shading=request.shading,
    )


def _network(settings: Settings, request: Request | None, dataset: Dataset) -> tuple[MaskSAM, str]:
    """The network to train, and what to say about it. Without a request: an empty one, whose weights follow."""
    config = network_config(
        settings.network,
        channels=len(dataset.channel_names),
        patch=settings.patch,
        queries=settings.queries,
        classes=len(dataset.label_names),
    )
    model = new_network(config, settings.seed)
    start = "an interrupted run" if request is None else "scratch"
    if request and request.checkpoint:
        kept = load_masksam_weights(model, request.checkpoint)
        start = f"'{request.checkpoint.name}' ({kept} tensors)"
    elif request and request.sam_checkpoint:
        report = load_sam_weights(model, request.sam_checkpoint)
        start = f"'{request.sam_checkpoint.name}' ({report.loaded} tensors, {len(report.resampled)} resampled)"
    if freezes_sam(settings):
        freeze_sam(model)
    trained, every = weight_count(model, trained=True) / 1e6, weight_count(model) / 1e6
    return model, f"network: {settings.network} from {start}, {trained:.2f} M of {every:.2f} M weights are trained"


def _notes(data: Data, settings: Settings, needed: int) -> tuple[str, ...]:
    count = len(data.held_out)
    judged = f"validated on {count} others" if count else "none held out to validate on"
    spacing = tuple(round(value, 4) for value in data.preprocessing.spacing)
    return (
        f"data: {len(data.train)} cases to train on, {judged}; {len(data.labels.classes)} classes; "
        f"{needed / 2**30:.2f} GiB on disk while training runs",
        f"grid: patch {settings.patch} at {spacing} mm, {settings.queries} queries",
        f"work: {settings.iterations * settings.batch} patches an epoch, and every {settings.validate_every} epochs "
        f"{data.validation_windows(settings.patch)} windows to validate on (--validate-every)",
    )


def _augmentation(settings: Settings, data: Data) -> Augmentation:
    depth, *plane = data.preprocessing.spacing
    augmentation = Augmentation(
        spacing=data.preprocessing.spacing,
        isotropic=depth <= ANISOTROPY_THRESHOLD * max(plane),
        shading=settings.shading,
    )
    return with_flips(augmentation, settings.mirror_axes)


def _write_facts(run: Path, settings: Settings, data: Data) -> None:
    texts = {
        SETTINGS: settings.to_json(),
        PLANS: json.dumps(data.plans, indent=2),
        DATASET: json.dumps(data.dataset_json, indent=2),
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
