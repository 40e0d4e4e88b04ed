"""A network with fused adapters against what the authors' code computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter
from masksam_kernels.depth_adapter import op
from masksam_kernels.depth_adapter.launch import launch_middle
from tests.export.golden import NAMES, Golden
from tests.kernels.middles import DEVICE


@pytest.mark.parametrize("name", NAMES)
def test_fused_adapters_give_the_official_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden.read(name)
    eager = golden.model()
    fused = MaskSAM(eager.config, adapter="fused").to(DEVICE).eval().requires_grad_(False)
    fused.load_state_dict(eager.state_dict(), strict=True)
    calls = 0

    def counted(*arguments: Any, **sizes: Any) -> None:
        nonlocal calls
        calls += 1
        launch_middle(*arguments, **sizes)

    monkeypatch.setattr(op, "launch_middle", counted)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with torch.inference_mode():
        predictions = fused.predict(torch.from_numpy(golden.arrays["input"]).to(DEVICE))
    assert calls == 2 * fused.config.depth + fused.config.decoder_depth
    for key, tensor in {"out/pred_logits": predictions.logits, "out/pred_masks": predictions.masks}.items():
        found, expected = golden.expected(key, tensor)
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=1e-4, err_msg=key)


def test_fused_adapters_run_where_only_the_products_are_half_precision() -> None:
    """Autocast, as training and validation use it on a GPU: weights float32, products narrow."""
    torch.manual_seed(0)
    adapter = DepthConvAdapter(24, 16, frames=3, skip=True).to(DEVICE).eval().requires_grad_(False)
    x = torch.randn(3, 4, 4, 24, device=DEVICE)
    expected = adapter(x)
    adapter.kind = "fused"
    with torch.autocast(DEVICE, torch.bfloat16):
        found = adapter(x)
    assert float((found - expected).norm() / expected.norm()) < 2e-2  # bfloat16 keeps 8 bits


def test_an_adapter_that_is_to_be_traced_does_not_run() -> None:
    adapter = DepthConvAdapter(8, 8, frames=1, skip=False)
    adapter.kind = "node"
    with pytest.raises(RuntimeError, match="can be traced, not run"):
        adapter(torch.zeros(1, 2, 2, 8))
