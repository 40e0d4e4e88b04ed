"""Starting from a trained MaskSAM, of the same or of other classes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.families.masksam.checkpoint import load_checkpoint
from masksam_export.families.masksam.model import MaskSAM

CLASSIFIER = "sam_model.mask_decoder.classifier_embed_Adapter."
"""The only layer that knows the classes."""


def load_masksam_weights(model: MaskSAM, path: Path) -> int:
    """Copy a trained network's weights; with another number of classes, all but the classifier's.

    Args:
        model: a fresh network of the same sizes, but for its classes.
        path: a checkpoint that `load_checkpoint` reads without further files.

    Returns:
        How many tensors were copied.

    Raises:
        CheckpointError: the checkpoint is unsafe, damaged, or of another network; the differing sizes are named.
    """
    trained = load_checkpoint(path).model
    theirs, ours = asdict(replace(trained.config, classes=0)), asdict(replace(model.config, classes=0))
    different = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if different:
        raise CheckpointError(
            f"'{one_line(path.name)}' is another network: {', '.join(different[:8])}; expected the one to be trained: "
            "choose --network, --patch and --queries as it was trained with"
        )
    same_classes = trained.config.classes == model.config.classes
    state = trained.state_dict()
    kept = {name: value for name, value in state.items() if same_classes or not name.startswith(CLASSIFIER)}
    with torch.no_grad():
        own = model.state_dict(keep_vars=True)
        for name, value in kept.items():
            own[name].copy_(value)
    return len(kept)
