"""What the published networks need of a GPU's memory, as far as their shapes alone say. Needs torch, no GPU.

`python benchmarks/gpu_memory.py` prints the table of docs/how-to/run-on-a-jetson.md. Not in it: what TensorRT works in
besides the one tensor that is listed, CUDA's own context, and code. Nothing is measured here.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from masksam_deploy.bundle.manifest import Graph
from masksam_deploy.runtimes.cuda.plan import plan_buffers
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.graphs import embedding_port, image_port, prompt_ports, semseg_port, tap_ports
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.image_encoder import Attention
from masksam_export.families.masksam.weights import config_from_shapes

NETWORK = Path(__file__).parents[1] / "tests" / "data" / "network"
VARIANTS = {"MaskSAM_ACDC": "acdc", "MaskSAM_AMOS": "amos", "MaskSAM_Synapse": "synapse"}
MIB = 2**20


def row(config: ModelConfig) -> dict[str, float]:
    """Sizes in MiB."""
    with torch.device("meta"):
        model = MaskSAM(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logits = [
        4 * config.frames * module.heads_at_once * module.side**4
        for module in model.modules()
        if isinstance(module, Attention) and module.side == config.grid
    ]
    features = (*tap_ports(config), embedding_port(config))
    graphs = (
        Graph(name="encoder", file="e", inputs=(image_port(config),), outputs=features),
        Graph(name="prompt_generator", file="p", inputs=features, outputs=prompt_ports(config)),
        Graph(name="decoder", file="d", inputs=prompt_ports(config), outputs=(semseg_port(config),)),
    )
    plan = plan_buffers(graphs)
    return {
        "weights fp32": 4 * parameters / MIB,
        "weights fp16": 2 * parameters / MIB,
        "tensors, 1 window": plan.device_bytes(1) / MIB,
        "of these on the GPU only": sum(plan.window_bytes[name] for name in plan.resident) / MIB,
        "largest attention, fp32": max(logits) / MIB,
    }


def main() -> None:
    """Print the table."""
    for position, (trainer, name) in enumerate(VARIANTS.items()):
        with gzip.open(NETWORK / f"manifest_{name}_official.json.gz", "rt") as file:
            shapes = json.load(file)["shapes"]
        sizes = row(config_from_shapes({key: tuple(shape) for key, shape in shapes.items()}))
        if position == 0:
            print("| MiB | " + " | ".join(sizes) + " |")
            print("|---|" + "---:|" * len(sizes))
        print(f"| {trainer} | " + " | ".join(f"{size:.0f}" for size in sizes.values()) + " |")


if __name__ == "__main__":
    main()
