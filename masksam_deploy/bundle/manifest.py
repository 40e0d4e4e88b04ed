"""The schema of a bundle's `manifest.json`: all that crosses from torch to the runtime besides the graphs.

Minor versions may add fields (unknown ones are ignored); a major version may change meaning and is refused
by readers that do not know it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt

from masksam_deploy.base.records import OpenRecord

SCHEMA_VERSION = "1.1"

Dim = PositiveInt | str
Decision = Literal["argmax", "regions"]
"""How class scores become labels; `decision.py` applies it."""
NormalizationScheme = Literal[
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]


class Normalization(OpenRecord):
    """How one input channel is normalised (nnU-Net's scheme names)."""

    scheme: NormalizationScheme
    use_mask: bool = False
    """Z-score only: statistics and change restricted to the nonzero mask."""
    lower: float | None = None
    """CT only: clip bounds and constants, in scan intensities (`percentile_00_5`, `percentile_99_5`)."""
    upper: float | None = None
    mean: float | None = None
    std: float | None = None


class Resampling(OpenRecord):
    """Spline orders, in the plane and across it, and nnU-Net's tri-state switch for anisotropic data."""

    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3]
    force_separate_z: bool | None = None


class Preprocessing(OpenRecord):
    """Everything inference needs to turn a scan into network input and back."""

    channel_names: tuple[str, ...] = Field(min_length=1)
    transpose_forward: tuple[int, int, int]
    """New axis i is old array axis `transpose_forward[i]` (array axes z, y, x)."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Target spacing in mm, in the order of the transposed axes."""
    normalization: tuple[Normalization, ...] = Field(min_length=1)
    resample_data: Resampling
    resample_scores: Resampling


class Label(OpenRecord):
    """One output value. `value` is what the label map holds; `name` is for people."""

    name: str
    value: int = Field(ge=0, le=65535)


class Labels(OpenRecord):
    """How class scores become label values.

    `argmax`: class k becomes `classes[k].value`. `regions`: every class whose sigmoid exceeds 0.5 paints its
    value, in order, later ones over earlier ones; voxels painted by none stay 0.
    """

    decision: Decision = "argmax"
    classes: tuple[Label, ...] = Field(min_length=1)


class Port(OpenRecord):
    """One named tensor of a graph; the first dimension, `B`, is the dynamic batch."""

    name: str = Field(min_length=1)
    dtype: str
    shape: tuple[Dim, ...]


class Graph(OpenRecord):
    """One ONNX file. Each input is `image` or an output of the same name of an earlier graph."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    file: str
    inputs: tuple[Port, ...] = Field(min_length=1)
    outputs: tuple[Port, ...] = Field(min_length=1)


class ValidationCase(OpenRecord):
    """A small scan that travels with the bundle, to judge engines by."""

    name: str
    scans: tuple[str, ...] = Field(min_length=1)
    """Files of the bundle, one per input channel."""
    reference: str | None = None
    """A label map on the scan's grid."""


class FileDigest(OpenRecord):
    """Size and hash of one file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Provenance(OpenRecord):
    """Where the bundle came from and how well it agrees with its source."""

    source_name: str
    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_utc: str
    tools: dict[str, str]
    parity: dict[str, JsonValue]
    """Per checked input: maximum absolute error per port, and the share of voxels to which `semseg` gives the same
    label, as `argmax_agreement` or `regions_agreement`."""


class Manifest(OpenRecord):
    """The whole of `manifest.json`."""

    schema_version: str = SCHEMA_VERSION
    name: str
    model: dict[str, JsonValue]
    """The network's configuration, for people and tools; the runtime reads only ports."""
    graphs: tuple[Graph, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    labels: Labels
    mirror_axes: tuple[Literal[0, 1, 2], ...]
    """Axes of the transposed array along which the network may be mirrored; empty means never."""
    provenance: Provenance
    validation: tuple[ValidationCase, ...] = ()
    files: dict[str, FileDigest]
