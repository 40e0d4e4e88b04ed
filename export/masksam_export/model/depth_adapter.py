"""The adapters that give a 2D network depth: a depthwise 3D convolution, or an MLP along the frames."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from masksam_export.model.blocks import ChannelLayerNorm


class DepthConvAdapter(nn.Module):
    """Linear -> GELU -> depthwise Conv3d 3x3x3 -> channel layer norm -> GELU -> add -> Linear.

    The depth axis is formed from `frames` consecutive rows of the input. In the windowed encoder blocks these
    rows are windows, not frames: that is how the official weights were trained.
    """

    def __init__(self, dim: int, hidden: int, *, frames: int, skip: bool) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.T_DWconv = nn.Conv3d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = ChannelLayerNorm(hidden)
        self.frames = frames
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """`[N, h, w, dim]` -> same shape; N is a multiple of `frames`."""
        rows, height, width = -1, int(x.shape[1]), int(x.shape[2])
        hidden = functional.gelu(self.D_fc1(x)).reshape(rows, self.frames, height, width, self.T_DWconv.in_channels)
        y = self.D_fc2(hidden + self._mix(hidden)).reshape(rows, height, width, self.D_fc2.out_features)
        return x + y if self.skip else y

    def forward_prompts(self, x: Tensor, queries: int, grid: int) -> Tensor:
        """Rows `(b t q)`: `[B*T*Q, grid*grid, dim]` -> same shape, depth is the frame."""
        channels = self.T_DWconv.in_channels
        hidden = functional.gelu(self.D_fc1(x)).reshape(-1, self.frames, queries, grid, grid, channels)
        by_query = hidden.transpose(1, 2).reshape(-1, self.frames, grid, grid, channels)
        mixed = self._mix(by_query).reshape(-1, queries, self.frames, grid, grid, channels).transpose(1, 2)
        y = self.D_fc2((hidden + mixed).reshape(-1, grid * grid, channels))
        return x + y if self.skip else y

    def _mix(self, hidden: Tensor) -> Tensor:
        """`[N, frames, h, w, C]` -> same shape."""
        mixed = self.T_DWconv(hidden.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        return functional.gelu(self.norm.channel_last(mixed))


class DepthMlpAdapter(nn.Module):
    """An MLP along the frames, independently for each query, token and channel of the decoder's tokens."""

    def __init__(self, dim: int, hidden: int, *, frames: int, temporal_hidden: int, queries: int, skip: bool) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(dim, hidden)
        self.D_fc2 = nn.Linear(hidden, dim)
        self.T_fc1 = nn.Linear(frames, temporal_hidden)
        self.T_fc2 = nn.Linear(temporal_hidden, frames)
        self.frames = frames
        self.queries = queries
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """`[B*T*Q, n, dim]` -> same shape."""
        tokens, channels = int(x.shape[1]), self.D_fc1.out_features
        hidden = functional.gelu(self.D_fc1(x))
        along_time = hidden.reshape(-1, self.frames, self.queries, tokens, channels).permute(0, 2, 3, 4, 1)
        mixed = self.T_fc2(functional.gelu(self.T_fc1(along_time)))
        mixed = mixed.permute(0, 4, 1, 2, 3).reshape(-1, tokens, channels)
        y = self.D_fc2(hidden + mixed)
        return x + y if self.skip else y
