"""A family of networks as small as one can be: three 2D convolutions of one slice, three classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import click
import torch
from torch import Tensor, nn

from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.recipe import Channel, Grid, Keep, Recipe, Resampling, Scores, Windows, ZScore
from masksam_export.families.base import Float, LoadRequest, Reference, Shapes, Trained
from masksam_export.families.example_windows import example_windows
from masksam_export.families.parts import GraphPart, port

NAME = "toy"
CLASSES = ("background", "dim", "bright")


class ToyNetwork(nn.Module):
    """`[B, 1, 1, H, W]` to `[B, 3, 1, H, W]`."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.toy(image.squeeze(2))
        return scores.unsqueeze(2)


class ToyPart(GraphPart):
    """The whole network as one graph."""

    name = "toy"

    def __init__(self, network: ToyNetwork, side: int) -> None:
        super().__init__((port("image", 1, 1, side, side),), (port("semseg", len(CLASSES), 1, side, side),))
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.network(image)
        return scores


class ToyFamily:
    """See `masksam_export.families.base.Family`."""

    name = NAME
    title = "three convolutions"

    def options(self) -> Sequence[click.Option]:
        return [click.Option(["--side"], type=int, default=24, show_default=True, help="Rows and columns of a window.")]

    def recognises(self, shapes: Shapes) -> bool:
        return shapes.get("toy.0.weight") == (4, 1, 3, 3)

    def load(self, request: LoadRequest) -> Trained:
        network, side = ToyNetwork().eval().requires_grad_(False), cast("int", request.options["side"])
        network.load_state_dict(request.file.weights("a toy"))
        labels = tuple(Label(name=name, value=value) for value, name in enumerate(CLASSES))
        return Trained(
            family=NAME,
            source=request.file.path,
            sha256=request.file.sha256,
            network={"side": side},
            recipe=toy_recipe(),
            labels=Labels(classes=labels),
            module=network,
            parts=partial(toy_parts, network, side),
            reference=partial(toy_reference, network),
            examples=partial(example_windows, (1, 1, side, side)),
            notes=(f"network: a toy of {side}x{side}",),
        )


def toy_recipe() -> Recipe:
    """Every slice is a window; nothing is resampled."""
    nearest = Resampling(order=0, order_z=0)
    return Recipe(
        channels=(Channel(name="MR", before=(ZScore(),)),),
        grid=Grid(crop="none", size=(Keep(), Keep(), Keep()), resampling=nearest),
        windows=Windows(weight="uniform"),
        scores=Scores(resampling=nearest),
    )


@contextmanager
def toy_parts(network: ToyNetwork, side: int) -> Iterator[list[GraphPart]]:
    yield [ToyPart(network, side)]


def toy_reference(network: ToyNetwork, image: Float) -> Reference:
    with torch.inference_mode():
        return Reference({"image": image, "semseg": network(torch.from_numpy(image)).numpy()})


def save_toy(path: Path, seed: int = 10) -> ToyNetwork:
    """A toy with random weights as a trainer would save it; those of seed 10 give all classes on noise."""
    torch.manual_seed(seed)
    network = ToyNetwork().eval().requires_grad_(False)
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, path)
    return network
