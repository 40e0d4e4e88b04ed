"""What a family of networks offers to the exporter, and what it says of one trained network.

Nothing here imports torch, or anything else that takes long, so that a family's options can be shown without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import click

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir
    from numpy.typing import NDArray
    from pydantic import JsonValue
    from torch import nn

    from masksam_deploy.bundle.manifest import Labels
    from masksam_deploy.bundle.recipe import Recipe
    from masksam_export.families.parts import GraphPart
    from masksam_export.torch_files.checkpoint_file import CheckpointFile

Float: TypeAlias = "NDArray[np.float32]"
Mask: TypeAlias = "NDArray[np.bool_]"
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Of the weights in a checkpoint, by name."""
Rewrite: TypeAlias = "Callable[[onnx_ir.Model], None]"
"""Changes a traced graph in place, for the same function."""


@dataclass(frozen=True)
class LoadRequest:
    """A checkpoint that a family recognises, and how it was asked to be exported.

    Attributes:
        file: what the checkpoint holds.
        options: values of the family's own options, by parameter name; those that were not given have their defaults.
        owned: copy the weights into memory of their own, which `parts.release` can free, instead of mapping the file.
    """

    file: CheckpointFile
    options: Mapping[str, object]
    owned: bool = False


class Family(Protocol):
    """A family of networks. Importing its module must not import torch; `load` may."""

    @property
    def name(self) -> str:
        """What manifests and `--family` call it: lower case, no spaces."""

    @property
    def title(self) -> str:
        """Which networks these are, for people."""

    def options(self) -> Sequence[click.Option]:
        """The family's own options of `masksam-deploy export`, made anew at each call.

        Families may share an option; then all of them declare it alike.
        """

    def recognises(self, shapes: Shapes) -> bool:
        """Whether weights of these names and shapes look like this family's, complete or not."""

    def load(self, request: LoadRequest) -> Trained:
        """The network of a checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged, incomplete or inconsistent; the message lists all of it.
            ExportError: an option does not fit the network.
        """


@dataclass(frozen=True)
class Reference:
    """What the network computes in PyTorch for one input.

    Attributes:
        ports: the value of every port of every graph, `image` included, by name.
        may_differ: of a port's shape, true where rounding in float32 decides, such as next to a threshold. There any
            value is right. Ports that are not named have no such places.
        whole: names of the ports that carry decisions, such as masks of zeros and ones. They have to be equal, where
            other ports have to be close.
    """

    ports: Mapping[str, Float]
    may_differ: Mapping[str, Mask] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Tolerances:
    """How far the exported graphs may be from the network.

    Attributes:
        scores: largest difference of class scores, in their own units.
        tie_margin: voxels whose scores are closer than this to another label are ties, which rounding decides.
        agreement: least share of the voxels, ties left out, that get the same label.
        features: largest difference on ports inside the chain, as a share of the port's largest value (at least 1).
    """

    scores: float = 1e-3
    tie_margin: float = 1e-4
    agreement: float = 0.9999
    features: float = 1e-3


DEFAULT_TOLERANCES = Tolerances()


def _no_files(_: Path) -> None:
    """For families whose bundles hold graphs alone."""


@dataclass(frozen=True)
class Trained:
    """A trained network with all that the exporter and the runtime need to know about it.

    Attributes:
        family: the family's name.
        source: the checkpoint file.
        sha256: hash of that file.
        network: sizes and settings of the network, for people and tools; the runtime reads only ports.
        recipe: all that happens to a scan besides the network.
        labels: what the classes mean and how scores are decided.
        module: the whole network in evaluation mode, `image [B, C, T, H, W]` to `semseg [B, K, T, H, W]`, float32. 2D
            networks have T = 1.
        parts: gives the graphs to be, in the order in which they chain: the first takes `image`, the last gives
            `semseg`. The network is ready to be traced while the context is open.
        reference: the values of all ports for one image `[B, C, T, H, W]`.
        examples: images `[1, C, T, H, W]` that the graphs are verified with, by name.
        rewrites: applied to each traced graph before constants are folded.
        extra_files: writes files that the bundle carries besides its graphs into its folder.
        tolerances: how far the graphs may be from the network.
        notes: what was inferred, for people.
    """

    family: str
    source: Path
    sha256: str
    network: dict[str, JsonValue]
    recipe: Recipe
    labels: Labels
    module: nn.Module
    parts: Callable[[], AbstractContextManager[Sequence[GraphPart]]]
    reference: Callable[[Float], Reference]
    examples: Callable[[], Mapping[str, Float]]
    rewrites: tuple[Rewrite, ...] = ()
    extra_files: Callable[[Path], None] = _no_files
    tolerances: Tolerances = DEFAULT_TOLERANCES
    notes: tuple[str, ...] = ()
