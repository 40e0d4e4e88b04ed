"""How the 3D convolutions appear in a graph."""

from __future__ import annotations

from typing import Literal, TypeAlias

import onnx_ir

from masksam_export.passes.frame_convolutions import save_frame_products
from masksam_export.passes.upsampled_convolutions import convolve_before_upsampling

Convolutions: TypeAlias = Literal["saving", "direct"]
DEFAULT_CONVOLUTIONS: Convolutions = "saving"
"""The fastest on ONNX Runtime's CPU; see `benchmarks/results/graph_rewrites.json`."""


def settle_convolutions(model: onnx_ir.Model, convolutions: Convolutions) -> None:
    """Convolutions as asked for: with fewer multiplications for the same function, or as the network has them."""
    if convolutions == "saving":
        convolve_before_upsampling(model)
        save_frame_products(model)
