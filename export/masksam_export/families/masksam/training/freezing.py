"""Which weights are trained: SAM's own stay as they are, what MaskSAM adds to it learns."""

from __future__ import annotations

from masksam_export.families.masksam.model import MaskSAM

SAM_PREFIX = "sam_model."
ADDED_TO_SAM = ("temporal_embedding", "Adapter", "adapter")
"""Names inside `sam_model` that contain one of these are MaskSAM's, not SAM's."""


def is_added_to_sam(name: str) -> bool:
    """Whether a parameter or buffer inside `sam_model` is MaskSAM's addition rather than SAM's own."""
    return any(part in name for part in ADDED_TO_SAM)


def freeze_sam(model: MaskSAM) -> tuple[int, int]:
    """Let only what MaskSAM adds to SAM be trained, by the rule of the authors' released trainers.

    Frozen is everything inside `sam_model` but the adapters, the classifier token and layer (their names say
    "Adapter") and the temporal embeddings; trained is the rest. Sets `requires_grad` of every parameter, so an
    earlier choice is forgotten.

    Returns:
        How many weights are trained and how many are frozen, ties counted once.
    """
    trained = frozen = 0
    for name, parameter in model.named_parameters():
        learns = not name.startswith(SAM_PREFIX) or is_added_to_sam(name)
        parameter.requires_grad_(learns)
        if learns:
            trained += parameter.numel()
        else:
            frozen += parameter.numel()
    return trained, frozen
