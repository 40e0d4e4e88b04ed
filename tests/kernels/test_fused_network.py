"""A network with fused adapters against what the authors' code computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from masksam_export.model import MaskSAM
from tests.export.golden import NAMES, Golden
from tests.kernels.middles import DEVICE


@pytest.mark.parametrize("name", NAMES)
def test_fused_adapters_give_the_official_outputs(name: str) -> None:
    golden = Golden.read(name)
    eager = golden.model()
    fused = MaskSAM(eager.config, adapter="fused").to(DEVICE).eval().requires_grad_(False)
    fused.load_state_dict(eager.state_dict(), strict=True)
    with torch.inference_mode():
        predictions = fused.predict(torch.from_numpy(golden.arrays["input"]).to(DEVICE))
    for key, tensor in {"out/pred_logits": predictions.logits, "out/pred_masks": predictions.masks}.items():
        found, expected = golden.expected(key, tensor)
        np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=0, atol=1e-4, err_msg=key)
