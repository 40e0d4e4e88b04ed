"""The stored official networks: weights, input, every intermediate and output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksam_deploy.bundle.manifest import Graph, Labels
from masksam_deploy.bundle.nnunet import Preprocessing
from masksam_export.families.base import Trained
from masksam_export.families.masksam.adapter_nodes import Adapters, adapter_rewrites
from masksam_export.families.masksam.checkpoint import TrainedMaskSAM
from masksam_export.families.masksam.exportable import exportable
from masksam_export.families.masksam.graphs import graph_parts
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.weights import config_from_shapes
from masksam_export.onnx_export import export_graphs

NETWORK = Path(__file__).parents[1] / "data" / "network"
NAMES = ("tiny_acdc", "tiny_p512")


def export_masksam(model: MaskSAM, folder: Path, adapters: Adapters = "planes") -> tuple[Graph, ...]:
    """The three graphs of a network, as a bundle has them."""
    with graph_parts(model) as parts:
        return export_graphs(parts, folder, rewrites=adapter_rewrites(adapters))


@dataclass(frozen=True)
class Golden:
    """One stored network."""

    arrays: dict[str, NDArray[np.float32]]
    facts: dict[str, Any]
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, name: str) -> Golden:
        with np.load(NETWORK / f"{name}.npz") as archive:
            arrays = dict(archive)
        aliases = json.loads(str(arrays["aliases_json"]))
        order = json.loads(str(arrays["key_order_json"]))
        weights = {key: torch.from_numpy(arrays[aliases.get(key, key)]) for key in order}
        return cls(arrays, json.loads(str(arrays["config_json"])), weights)

    def model(self) -> MaskSAM:
        """The network with the stored weights, loaded as any torch user would."""
        model = MaskSAM(config_from_shapes({name: tuple(t.shape) for name, t in self.weights.items()}))
        model.load_state_dict(self.weights, strict=True)
        return model.eval().requires_grad_(False)

    def expected(self, key: str, like: Tensor) -> tuple[Tensor, NDArray[np.float32]]:
        """`like`, subsampled as the stored array is, and the stored array."""
        for suffix, step in (("", 1), ("_s2", 2), ("_s4", 4)):
            if key + suffix in self.arrays:
                return like[..., ::step, ::step], self.arrays[key + suffix]
        raise KeyError(key)


def trained_with(model: MaskSAM, **options: Any) -> Trained:
    """A network as if it had been trained on MR scans of 1 mm; `options` are those of `exportable`."""
    scheme = {"scheme": "ZScoreNormalization"}
    resampling = {"order": 3, "order_z": 0}
    checkpoint = TrainedMaskSAM(
        model=model,
        preprocessing=Preprocessing.model_validate(
            {
                "channel_names": ["MR"],
                "transpose_forward": [0, 1, 2],
                "spacing": [1, 1, 1],
                "normalization": [scheme],
                "resample_data": resampling,
                "resample_scores": {**resampling, "order": 1},
            }
        ),
        labels=Labels.model_validate({"classes": [{"name": str(k), "value": k} for k in range(model.config.classes)]}),
        mirror_axes=(),
        source=Path("random.pth"),
        sha256="0" * 64,
        notes=(),
    )
    return exportable(checkpoint, **options)
