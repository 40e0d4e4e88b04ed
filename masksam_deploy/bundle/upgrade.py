"""Manifests of schema 1.x as manifests of today, in memory.

Their bytes and hashes stay as they are, so engines that were stored for them stay valid.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.records import OpenRecord
from masksam_deploy.bundle.manifest import FileDigest, Graph, Labels, Manifest, Provenance, ValidationCase
from masksam_deploy.bundle.nnunet import Preprocessing, preprocessing_problems, recipe_of


class Manifest1(OpenRecord):
    """The whole of a `manifest.json` of schema 1.x, which knew MaskSAM and nnU-Net's preprocessing only."""

    schema_version: str
    name: str
    model: dict[str, JsonValue]
    graphs: tuple[Graph, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    labels: Labels
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    provenance: Provenance
    validation: tuple[ValidationCase, ...] = ()
    files: dict[str, FileDigest]


def upgraded(old: Manifest1, where: str) -> Manifest:
    """The same bundle in today's terms.

    Args:
        old: as it was read.
        where: what to call the manifest in messages.

    Raises:
        BundleError: its preprocessing contradicts itself.
    """
    for problem in preprocessing_problems(old.preprocessing):
        raise BundleError(f"{where}: {problem}; export the bundle again")
    return Manifest(
        schema_version=old.schema_version,
        name=old.name,
        family="masksam",
        network=old.model,
        graphs=old.graphs,
        recipe=recipe_of(old.preprocessing, mirror_axes=old.mirror_axes),
        labels=old.labels,
        provenance=old.provenance,
        validation=old.validation,
        files=old.files,
    )
