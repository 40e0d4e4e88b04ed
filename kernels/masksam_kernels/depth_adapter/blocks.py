"""How the kernel is cut into programs, per GPU architecture: a committed table, nothing is tuned at run time.

The entries were chosen from what the compiler reports (no spills, most warps per multiprocessor), **not from times on a
device**: none has been measured yet. `benchmarks/depth_adapter.py --tune` prints a table from measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from masksam_kernels.errors import KernelError

MAX_CHANNELS = 512


@dataclass(frozen=True)
class Block:
    """One program: `pixels` positions of one image and all channels, on `warps` warps of 32 threads."""

    pixels: int
    warps: int


# By architecture, then by channels rounded up to a power of two. `None` serves what an architecture leaves out.
TABLE: dict[int | None, dict[int, Block]] = {
    None: {
        16: Block(64, 4),
        32: Block(32, 4),
        64: Block(16, 4),
        128: Block(16, 8),
        256: Block(8, 8),
        512: Block(4, 8),
    },
}


def block_for(architecture: int | None, channels: int) -> Block:
    """The block for, say, 87 (sm_87) and 320 channels.

    Raises:
        KernelError: more channels than one program can hold.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise KernelError(f"the depth adapter's kernel takes 1 to {MAX_CHANNELS} channels, found {channels}")
    return {**TABLE[None], **TABLE.get(architecture, {})}[padded_channels(channels)]


def padded_channels(channels: int) -> int:
    """The power of two, at least 16, that a program's channel axis has."""
    return max(16, 1 << (channels - 1).bit_length())
