"""Each kind of block's attention alone, in every formulation: held to float64, then timed in a CUDA graph."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.gpu.attention_forms import FORMULATIONS, Formulation, prepare
from benchmarks.gpu.half_form import Choice
from benchmarks.gpu.place import half
from benchmarks.gpu.project import Attention, Block, MaskSAM, windows_per_side
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import free, graphed, median_ms, relative

ALLOWED_ERROR = 2e-2
KINDS = ("windowed", "global")


def measure_attention(results: Results, model: MaskSAM, repeats: int) -> None:
    """Every formulation, in the first block of either kind."""
    cfg = model.config
    for kind in KINDS:
        index = next((i for i in range(cfg.depth) if (i in cfg.global_blocks) == (kind == "global")), None)
        if index is None:
            continue
        attention = cast(Block, model.sam_model.image_encoder.blocks[index]).attn
        rows = cfg.frames * windows_per_side(cfg.grid, attention.side) ** 2
        inputs = _Inputs(attention, rows, cfg.embed_dim // cfg.heads)
        for name, form in FORMULATIONS.items():
            results.attempt(f"attention_{kind}", name, partial(inputs.judged, form, repeats))
            free()


def fastest(results: Results) -> Choice:
    """The fastest formulation of either kind among those that were measured; the explicit one if none was."""

    def best(kind: str) -> str:
        found = results.content.get(f"attention_{kind}", {})
        good = {name: row["median_ms"] for name, row in found.items() if "median_ms" in row}
        return str(min(good, key=good.__getitem__, default="explicit"))

    choice = Choice(*map(best, KINDS))
    results.put("best_attention", vars(choice))
    return choice


class _Inputs:
    """Random queries, keys and values of one block, and what is expected of one square of tokens and two heads."""

    def __init__(self, attention: Attention, rows: int, dim: int) -> None:
        shape = (rows, attention.heads, attention.side**2, dim)
        self.qkv = [torch.randn(shape, device=attention.rel_pos_h.device, dtype=half()) for _ in range(3)]
        self.tables = [table.to(half()) for table in attention._positions()]
        self.scale = attention.scale
        prepare(attention.side, dim, self.qkv[0])
        few = [tensor[:1, :2].double() for tensor in self.qkv]  # all of them in float64 would not fit
        self.expected = self._run(FORMULATIONS["explicit"], few, [table.double() for table in self.tables])

    def _run(self, form: Formulation, qkv: list[Tensor], tables: list[Tensor]) -> Tensor:
        q, k, v = qkv
        rows, columns = tables
        return form(q, k, v, rows, columns, self.scale)

    def judged(self, form: Formulation, repeats: int) -> dict[str, Any]:
        """Error, then time.

        Raises:
            ValueError: the formulation is wrong; it is not timed.
        """
        error = relative(self._run(form, self.qkv, self.tables)[:1, :2], self.expected)
        if not error <= ALLOWED_ERROR:
            raise ValueError(f"off by {error} of the norm, allowed {ALLOWED_ERROR}: not timed")
        rows, heads, tokens, dim = self.qkv[0].shape
        replay, _ = graphed(lambda: self._run(form, self.qkv, self.tables))
        return {"error": error, **median_ms(replay, repeats), "plain_tflop": 4e-12 * rows * heads * tokens**2 * dim}
