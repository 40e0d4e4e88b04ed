"""The schema of a bundle's `manifest.json`: all that crosses from torch to the runtime besides the graphs.

Minor versions may add fields (unknown ones are ignored); a major version may change meaning and is refused
by readers that do not know it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, PositiveInt

from masksam_deploy.base.records import OpenRecord, Record
from masksam_deploy.bundle.recipe import Axis, Recipe

SCHEMA_VERSION = "2.0"
OLDEST_MAJOR = 1
"""Manifests of schema 1.x are read, too: see `upgrade.py`."""

Dim = PositiveInt | str
Decision = Literal["argmax", "regions"]
"""How class scores become labels; `decision.py` applies it."""


class Label(OpenRecord):
    """One output value. `value` is what the label map holds; `name` is for people."""

    name: str
    value: int = Field(ge=0, le=65535)


class Labels(OpenRecord):
    """How class scores become label values.

    `argmax`: class k becomes `classes[k].value`; of equal classes the lowest wins. `regions`: every class whose sigmoid
    exceeds 0.5 paints its value, in order, later ones over earlier ones; voxels painted by none stay 0.
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


class Cost(Record):
    """What one way to run this network costs, measured against float32 with every window's neighbours half overlapping.

    Attributes:
        step: distance of windows as a share of the patch.
        precision: of all graphs.
        mean_dice: over the scans.
        mean_cost: Dice lost, over the scans; negative for a gain.
        worst_cost: in the scan that lost most.
        runs_per_scan: of the network, on average.
    """

    step: float
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    mean_dice: float
    mean_cost: float
    worst_cost: float
    runs_per_scan: float


class Measured(Record):
    """What was measured of this very network on scans that no training saw.

    Attributes:
        source_sha256: of the checkpoint that was measured.
        scans: how many.
        where: what ran it.
        mirror_axes: along which it was mirrored where mirroring was asked for; none means that the gain of mirroring
            was not measured.
        commit, date: of the measurement.
        costs: without mirroring, summed in float32.
    """

    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scans: PositiveInt
    where: str
    mirror_axes: tuple[Axis, ...]
    commit: str
    date: str
    costs: tuple[Cost, ...]


class Manifest(OpenRecord):
    """The whole of `manifest.json`.

    Attributes:
        schema_version: as it was read; 2.0 where it is written.
        name: of the bundle, for people.
        family: of networks, for people and tools; the runtime knows none.
        contract: how the graphs are run. `dense`: `image [B,C,T,H,W]` to `semseg [B,K,T,H,W]`, joined by port names.
        network: the network's configuration, for people and tools; the runtime reads only ports.
        graphs: in the order in which they run.
        recipe: what happens to a scan besides the network.
        labels: what the scores' classes become.
        measured: what this network was measured to cost in faster ways to run it.
        provenance: where it comes from.
        validation: scans that travel with the bundle.
        files: all files but the manifest.
    """

    schema_version: str = SCHEMA_VERSION
    name: str
    family: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    contract: Literal["dense"] = "dense"
    network: dict[str, JsonValue]
    graphs: tuple[Graph, ...] = Field(min_length=1)
    recipe: Recipe
    labels: Labels
    measured: Measured | None = None
    provenance: Provenance
    validation: tuple[ValidationCase, ...] = ()
    files: dict[str, FileDigest]

    @property
    def mirror_axes(self) -> tuple[Axis, ...]:
        """Axes of the network's grid along which it may be mirrored; none means never."""
        return self.recipe.windows.mirror_axes
