"""The recipe of a bundle whose manifest still has nnU-Net's terms (schema 1.x)."""

from __future__ import annotations

from masksam_deploy.bundle import manifest, nnunet
from masksam_deploy.bundle.recipe import Recipe


def recipe_from(preprocessing: manifest.Preprocessing, mirror_axes: tuple[int, ...] = ()) -> Recipe:
    """What `preprocessing` and `mirror_axes` of a manifest amount to.

    Raises:
        ValueError: see `nnunet.recipe_of`.
    """
    same = nnunet.Preprocessing.model_validate(preprocessing.model_dump())
    return nnunet.recipe_of(same, mirror_axes=mirror_axes)
