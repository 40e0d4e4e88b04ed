"""The encoder's blocks as they are computed, against their definition word for word, on ONNX Runtime's CPU.

    python -m benchmarks.encoder_rewrites      # writes benchmarks/results/encoder_rewrites.json

One block of each kind at the sizes of the published networks, random weights, exported as a bundle's graphs are. Both
forms are held to float64 torch before they are timed, in turns, in one process; medians. Then the attention's core
alone in four formulations, for as many heads as a graph computes at once.

Of a windowed block's tokens 16 % (ACDC), 42 % (AMOS) or 67 % (Synapse) are padding. Multiplications in its Linears,
definition over model: 1.06, 1.23, 1.65; without any padding they would be 1.07, 1.25, 1.71.

Exact as well, and not taken:

* Padded queries left out. The adapter's convolution sees the window before and after, at all nine places, so that
  outputs are needed at 94 % (ACDC), 81 % (AMOS), 83 % (Synapse) of all tokens; in rectangles 95 %, 86 %, 97 %. Only the
  attention and one narrow product are still computed for padding: too little for windows of several sizes.
* Padded keys as one. They share key and value; their position terms sum to products of two sums of exponentials. That
  leaves 84 %, 58 %, 33 % of the logits, for four kinds of windows, each with its own attention: four times the nodes.
* The attention's other formulations below: within the noise of each other in windowed blocks. `augmented` needs no
  bias, which a fused attention could use, and the least memory in ONNX Runtime (one global block on a 1024 canvas, one
  head: 0.6 GB instead of 1.1), but takes 1.4 times as long there: 128 channels beside 64. `summed` needs 1.6 GB.
  ONNX Runtime fuses none of them beyond scaling the product. torch's own `scaled_dot_product_attention` is exported
  with a Shape operator, which bundles do not hold, and is `summed` apart from that. On a GPU: not measured.
* Three products for queries, keys and values, which saves a split: 0.97 to 1.12 times as fast, and three launches.
* `ADAPTER_SCALE` in the weights of `MLP_Adapter.D_fc2`, which saves one pass over the tokens: not measured.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.parts import compare, random_values
from masksam_deploy.bench.machine import provenance
from masksam_deploy.bundle.manifest import Port
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model.image_encoder import ADAPTER_SCALE, Block, merge_windows, windows_per_side
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.families.parts import GraphPart

RESULTS = Path(__file__).parent / "results"
NETWORKS = {"ViT-B 1024 (ACDC)": ACDC, "ViT-H 512 (AMOS)": AMOS, "ViT-H 256 (Synapse)": SYNAPSE}

Core = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class PlainBlock(nn.Module):
    """A block's definition, word for word: pad, cut, norm, attend, adapt, undo."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """`[B*T, g, g, E]` -> same shape."""
        block, grid = self.block, int(x.shape[1])
        y = self._attention(block.norm1(split_windows(x, block.attn.side)))
        x = x + merge_windows(block.Space_Adapter(y), grid)
        z = block.norm2(x)
        out: Tensor = x + block.mlp(z) + ADAPTER_SCALE * block.MLP_Adapter(z)
        return out

    def _attention(self, x: Tensor) -> Tensor:
        attention = self.block.attn
        side, heads, dim = attention.side, attention.heads, int(x.shape[-1])
        qkv = attention.qkv(x).reshape(-1, side * side, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        parts = (part.split(attention.heads_at_once, dim=1) for part in qkv.unbind(0))
        tables = attention._frozen_positions or attention._positions()
        mixed = torch.cat([broadcast(q, k, v, *tables) for q, k, v in zip(*parts, strict=True)], dim=1)
        out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(-1, side, side, dim))
        return out


def split_windows(x: Tensor, window: int) -> Tensor:
    """`[N, g, g, E]` -> `[N*n*n, window, window, E]`, zero-padded at the bottom and right; rows (N, i, j)."""
    grid, dim = int(x.shape[1]), int(x.shape[3])
    count = windows_per_side(grid, window)
    padding = count * window - grid
    x = functional.pad(x, (0, 0, 0, padding, 0, padding)) if padding else x
    x = x.reshape(-1, count, window, count, window, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window, window, dim)


def position_logits(q: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """`q [N, h, side*side, d]` and tables `[side, side, d]` -> `[N, h, i, j, i']` and `[N, h, i, j, j']`."""
    q = q.reshape(-1, q.shape[1], len(rows), len(rows), q.shape[3])
    by_column = (q.transpose(2, 3) @ columns.transpose(-2, -1)).transpose(2, 3)
    return q @ rows.transpose(-2, -1), by_column


def broadcast(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Row and column terms are added to the logits, one after the other."""
    side, heads, tokens = len(rows), int(q.shape[1]), int(q.shape[2])
    by_row, by_column = position_logits(q, rows, columns)
    logits = ((q * width_scale(q)) @ k.transpose(-2, -1)).reshape(-1, heads, side, side, side, side)
    logits = logits + by_row[..., :, None] + by_column[..., None, :]
    return logits.reshape(-1, heads, tokens, tokens).softmax(dim=-1) @ v


def summed(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Row and column terms are added to each other, then to the logits: what a fused attention takes as its bias."""
    heads, tokens = int(q.shape[1]), int(q.shape[2])
    by_row, by_column = position_logits(q, rows, columns)
    bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(-1, heads, tokens, tokens)
    logits = (q * width_scale(q)) @ k.transpose(-2, -1)
    return (logits + bias).softmax(dim=-1) @ v


def selected(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The sum of row and column terms is a product with a constant matrix of ones and zeros."""
    terms = flat_positions(q, rows, columns) @ selectors(len(rows)).T
    logits = (q * width_scale(q)) @ k.transpose(-2, -1)
    return (logits + terms).softmax(dim=-1) @ v


def augmented(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Row and column terms as further channels of the queries, ones and zeros of the keys: attention without a bias."""
    chosen, width = selectors(len(rows)), int(q.shape[3])
    wide_q = torch.cat([q * width_scale(q), flat_positions(q, rows, columns)], dim=-1)
    wide_k = functional.pad(k, (0, int(chosen.shape[1]))) + functional.pad(chosen, (width, 0))
    return (wide_q @ wide_k.transpose(-2, -1)).softmax(dim=-1) @ v


def flat_positions(q: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`[N, h, side*side, 2*side]`."""
    return torch.cat(position_logits(q, rows, columns), dim=-1).reshape(-1, q.shape[1], q.shape[2], 2 * len(rows))


def width_scale(q: Tensor) -> float:
    """What queries are multiplied with before their product with the keys."""
    return 1 / math.sqrt(int(q.shape[3]))


def selectors(side: int) -> Tensor:
    """`[side*side, 2*side]`: ones at a token's row and column."""
    one = torch.eye(side)
    return torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], dim=1)


FORMULATIONS: dict[str, Core] = {
    "broadcast": broadcast,
    "summed": summed,
    "selected": selected,
    "augmented": augmented,
}


class BlockPart(GraphPart):
    """One block as a graph."""

    def __init__(self, name: str, block: nn.Module, config: ModelConfig) -> None:
        sizes = ("B", config.frames, config.grid, config.grid, config.embed_dim)
        inputs, outputs = (Port(name=port, dtype="float32", shape=sizes) for port in ("x", "y"))
        super().__init__((inputs,), (outputs,))
        self.name, self.block = name, block

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, g, g, E]` -> same shape."""
        return torch.as_tensor(self.block(x.flatten(0, 1))).reshape(-1, *x.shape[1:])


class CorePart(GraphPart):
    """The attention between the two Linears as a graph."""

    def __init__(self, name: str, core: Core, shape: tuple[int, int, int], tables: tuple[Tensor, Tensor]) -> None:
        port = [Port(name=port, dtype="float32", shape=("B", *shape)) for port in ("q", "k", "v", "out")]
        super().__init__(tuple(port[:3]), tuple(port[3:]))
        self.name, self.core = name, core
        self.rows, self.columns = (nn.Parameter(table) for table in tables)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[B, h, side*side, d]` three times -> the same shape."""
        return self.core(q, k, v, self.rows, self.columns)


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "encoder_rewrites.json")
    arguments = parser.parse_args()
    timing = {"repeats": arguments.repeats, "threads": arguments.threads}
    facts = provenance("torch", "onnx")
    cases = [(name, windowed) for name in NETWORKS for windowed in (True, False)]
    cores = [measure_core(*case, **timing) for case in cases]
    blocks = [measure_block(*case, **timing) for case in cases]
    result = {**timing, "blocks": blocks, "attention_cores": cores, **facts}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")


def measure_block(network: str, windowed: bool, *, repeats: int, threads: int) -> dict[str, Any]:
    """Medians in ms of the definition and of the model's own block."""
    config = NETWORKS[network]
    block = random_block(config, windowed=windowed)
    parts = {"plain": BlockPart("plain", PlainBlock(block), config), "block": BlockPart("block", block, config)}
    feeds = {"x": random_values(1, config.frames, config.grid, config.grid, config.embed_dim)}
    expected = PlainBlock(block.double())(torch.from_numpy(feeds["x"][0]).double()).numpy()
    block.float()
    row = compare(parts, feeds, expected[None], repeats=repeats, threads=threads)
    return report({"network": network, "windowed": windowed, "shape": list(feeds["x"].shape), **row}, "plain")


def measure_core(network: str, windowed: bool, *, repeats: int, threads: int) -> dict[str, Any]:
    """Medians in ms of the formulations, for as many heads as are computed at once."""
    config = NETWORKS[network]
    attention = random_block(config, windowed=windowed).attn
    rows = config.frames * windows_per_side(config.grid, attention.side) ** 2
    shape = (attention.heads_at_once, attention.side**2, config.embed_dim // attention.heads)
    tables = attention._positions()
    feeds = {name: random_values(rows, *shape, seed=seed) for seed, name in enumerate("qkv")}
    wide = (torch.from_numpy(feed).double() for feed in feeds.values())
    expected = broadcast(*wide, *(table.double() for table in tables)).numpy()
    parts = {name: CorePart(name, core, shape, tables) for name, core in FORMULATIONS.items()}
    row = compare(parts, feeds, expected, repeats=repeats, threads=threads)
    return report({"network": network, "windowed": windowed, "shape": [rows, *shape], **row}, "broadcast")


def random_block(config: ModelConfig, *, windowed: bool) -> Block:
    """With weights that keep values near one, and no bias, norm or position that could be left out unnoticed."""
    torch.manual_seed(0)
    index = next(i for i in range(config.depth) if (i not in config.global_blocks) is windowed)
    block = Block(config, index)
    for name, parameter in block.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
        elif "rel_pos" in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return block.eval().requires_grad_(False)


def report(row: dict[str, Any], first: str) -> dict[str, Any]:
    """The row with ratios, after it was printed."""
    medians = row["median_ms"]
    kind = "windowed" if row["windowed"] else "global"
    print(f"{row['network']}, {kind}: " + ", ".join(f"{name} {ms} ms" for name, ms in medians.items()), flush=True)
    ratios = {name: round(medians[first] / ms, 2) for name, ms in medians.items()}
    return {**row, f"times_faster_than_{first}": ratios}


if __name__ == "__main__":
    with torch.inference_mode():
        main()
