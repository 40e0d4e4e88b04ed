"""The image as the mask decoder's tokens see it, one per prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class PromptedImage:
    """Image tokens before the decoder changed them: the frame's embedding plus the prompt's embedded mask.

    The first is the same for all queries of a frame. The second comes from few channels, so that a Linear of it is one
    small product. A Linear of the sum needs no large product per query at all.

    Attributes:
        shared: `[B*T, 1, g*g, C]`.
        prompts: what the mask prompts add, before its last Linear, `[B*T, Q, g*g, c]`.
        weight: of that Linear, `[C, c]`.
    """

    shared: Tensor
    prompts: Tensor
    weight: Tensor

    def located(self, positions: Tensor) -> PromptedImage:
        """With positions `[T, 1, g*g, C]` added."""
        by_window = self.shared.reshape(-1, *positions.shape) + positions
        return replace(self, shared=by_window.reshape(self.shared.shape))

    def tokens(self) -> Tensor:
        """`[B*T*Q, g*g, C]`."""
        return (functional.linear(self.prompts, self.weight) + self.shared).flatten(0, 1)

    def through(self, linear: nn.Linear) -> Tensor:
        """A Linear of the tokens, `[B*T*Q, g*g, c']`."""
        narrow = functional.linear(self.prompts, linear.weight @ self.weight)
        return (narrow + linear(self.shared)).flatten(0, 1)


@dataclass(frozen=True)
class DecodedImage:
    """Image tokens that already differ between queries, `[B*T*Q, g*g, C]`, rows (b t q)."""

    rows: Tensor
    queries: int

    def located(self, positions: Tensor) -> DecodedImage:
        """With positions `[T, 1, g*g, C]` added."""
        by_frame = self.rows.reshape(-1, len(positions), self.queries, *self.rows.shape[1:])
        return replace(self, rows=(by_frame + positions).reshape(-1, *self.rows.shape[1:]))

    def tokens(self) -> Tensor:
        """`[B*T*Q, g*g, C]`."""
        return self.rows

    def through(self, linear: nn.Linear) -> Tensor:
        """A Linear of the tokens, `[B*T*Q, g*g, c']`."""
        mixed: Tensor = linear(self.rows)
        return mixed


ImageTokens = PromptedImage | DecodedImage
