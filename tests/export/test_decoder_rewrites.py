"""What the mask decoder computes in another order than it is defined in, against the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masksam_export.families.masksam.model.image_tokens import DecodedImage, ImageTokens, PromptedImage
from masksam_export.families.masksam.model.mask_upscaling import MaskUpscaling

WIDTH = 12


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(
    windows=st.integers(1, 3),
    frames=st.integers(1, 3),
    queries=st.integers(1, 3),
    cells=st.integers(1, 9),
    channels=st.integers(1, 4),
)
@torch.no_grad()
def test_a_linear_of_a_prompted_image_is_that_of_its_tokens(
    windows: int, frames: int, queries: int, cells: int, channels: int
) -> None:
    torch.manual_seed(windows + 10 * frames)
    widen, linear = nn.Linear(channels, WIDTH).double(), nn.Linear(WIDTH, 5).double()
    embedding, positions = random(windows * frames, 1, cells, WIDTH), random(frames, 1, cells, WIDTH)
    prompts = random(windows * frames, queries, cells, channels)
    image = PromptedImage(embedding + widen.bias, prompts, widen.weight)
    tokens = (widen(prompts) + embedding).flatten(0, 1)
    rows = (windows, frames, queries, cells, WIDTH)
    located = (tokens.reshape(rows) + positions).reshape(tokens.shape)
    decoded = DecodedImage(tokens, queries)
    for found in (image, decoded):
        torch.testing.assert_close(found.tokens(), tokens)
        torch.testing.assert_close(found.through(linear), linear(tokens))
        torch.testing.assert_close(found.located(positions).through(linear), linear(located))


def test_positions_leave_the_image_itself_alone() -> None:
    images: list[ImageTokens] = [
        PromptedImage(random(2, 1, 4, WIDTH), random(2, 3, 4, 5), random(WIDTH, 5)),
        DecodedImage(random(6, 4, WIDTH), queries=3),
    ]
    for image in images:
        before = image.tokens().clone()
        image.located(random(2, 1, 4, WIDTH))
        torch.testing.assert_close(image.tokens(), before, rtol=0, atol=0)


@pytest.mark.parametrize("grid", [1, 2, 5])
@torch.no_grad()
def test_masks_are_those_of_transposed_convolutions(grid: int) -> None:
    torch.manual_seed(grid)
    upscaling = MaskUpscaling(WIDTH, 6, 4).double()
    for parameter in upscaling.parameters():
        nn.init.normal_(parameter)
    tokens, weights = random(3, grid * grid, WIDTH), random(3, 1, 4)
    maps = nn.Sequential(*upscaling)(tokens.transpose(1, 2).reshape(3, WIDTH, grid, grid))
    expected = (weights @ maps.flatten(2)).reshape(3, 1, 4 * grid, 4 * grid)
    torch.testing.assert_close(upscaling(tokens, weights), expected)
