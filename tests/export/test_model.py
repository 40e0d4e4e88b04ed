"""The network against the outputs that the authors' code computed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.model.image_encoder import Attention
from masksam_export.families.masksam.model.masksam import Predictions
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.families.masksam.weights import config_from_shapes
from tests.export.golden import NAMES, NETWORK, Golden

# float32 against float64 is off by up to 5.4e-5 in these networks; a wrong epsilon moves logits by 1e-4 and more.
TOLERANCE = 1e-4
OFFICIAL = {"acdc": ACDC, "amos": AMOS, "synapse": SYNAPSE}


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden) -> MaskSAM:
    return golden.model()


@pytest.fixture(scope="module")
def image(golden: Golden) -> Tensor:
    return torch.from_numpy(golden.arrays["input"])


@pytest.fixture(scope="module")
def predictions(model: MaskSAM, image: Tensor) -> Predictions:
    with torch.inference_mode():
        return model.predict(image)


def assert_equals_golden(golden: Golden, key: str, actual: Tensor) -> None:
    found, expected = golden.expected(key, actual)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE, err_msg=key)


def test_encoder_taps_and_embedding_equal_the_official_ones(golden: Golden, model: MaskSAM, image: Tensor) -> None:
    taps, embedding = model.encode(image)
    for index, features in enumerate((*taps, embedding)):
        assert_equals_golden(golden, f"out/encoder_{index}", features)


def test_proposals_equal_the_official_ones(golden: Golden, predictions: Predictions) -> None:
    assert_equals_golden(golden, "out/pred_aux_masks", predictions.proposals.masks)
    assert_equals_golden(golden, "out/pred_aux_bboxes", predictions.proposals.boxes)
    assert_equals_golden(golden, "dbg/class_tokens", predictions.proposals.class_tokens)


def test_masks_and_class_logits_equal_the_official_ones(golden: Golden, predictions: Predictions) -> None:
    assert_equals_golden(golden, "out/pred_logits", predictions.logits)
    assert_equals_golden(golden, "out/pred_masks", predictions.masks)


def test_class_scores_and_their_argmax_equal_the_official_ones(golden: Golden, model: MaskSAM, image: Tensor) -> None:
    scores = model(image)
    assert_equals_golden(golden, "out/semseg", scores)
    expected = golden.arrays.get("out/semseg_argmax_u8")
    if expected is not None:
        assert (scores.argmax(1).numpy() != expected).sum() <= 2  # near-ties that float32 rounding decides


def test_stem_and_first_block_equal_the_official_ones(golden: Golden, model: MaskSAM, image: Tensor) -> None:
    stem = model.first_conv(image)
    np.testing.assert_allclose(stem[..., ::4, ::4].numpy(), golden.arrays["dbg/first_conv_s4"], atol=TOLERANCE)
    captured: list[Tensor] = []
    hook = model.sam_model.image_encoder.blocks[0].register_forward_hook(lambda *args: captured.append(args[2]))
    model.encode(image)
    hook.remove()
    np.testing.assert_allclose(captured[0].numpy(), golden.arrays["dbg/block0"], atol=TOLERANCE)


def test_prompts_equal_the_official_ones(golden: Golden, model: MaskSAM, predictions: Predictions) -> None:
    encoder, proposals = model.sam_model.prompt_encoder, predictions.proposals
    boxes = model.box_prompts(proposals.boxes)
    np.testing.assert_array_equal(boxes.numpy(), golden.arrays["dbg/box_tensor"])
    np.testing.assert_allclose(encoder.embed_boxes(boxes).numpy(), golden.arrays["dbg/sparse"], atol=TOLERANCE)
    dense = encoder.mask_downscaling(model.mask_prompts(proposals.masks))
    step = dense.shape[1] // golden.arrays["dbg/dense_c16"].shape[1]
    np.testing.assert_allclose(dense[:, ::step].numpy(), golden.arrays["dbg/dense_c16"], atol=TOLERANCE)
    grid = model.config.grid
    positions = encoder.image_positions()[:, 0].transpose(1, 2).reshape(-1, model.config.prompt_dim, grid, grid)
    step = positions.shape[1] // golden.arrays["dbg/dense_pe_c8"].shape[1]
    np.testing.assert_allclose(positions[:, ::step].numpy(), golden.arrays["dbg/dense_pe_c8"], atol=TOLERANCE)


def test_decoder_tokens_and_raw_masks_equal_the_official_ones(golden: Golden, model: MaskSAM, image: Tensor) -> None:
    captured: list[object] = []
    hook = model.sam_model.mask_decoder.register_forward_hook(lambda *args: captured.append(args[2]))
    model.predict(image)
    hook.remove()
    decoded = captured[0]
    tokens, masks = decoded.tokens, decoded.low_res_masks  # type: ignore[attr-defined]
    np.testing.assert_allclose(tokens.numpy(), golden.arrays["dbg/hs"], atol=TOLERANCE)
    assert_equals_golden(golden, "dbg/low_res_masks", masks)


def test_pooled_box_features_equal_the_official_ones(golden: Golden, model: MaskSAM, image: Tensor) -> None:
    captured: list[Tensor] = []
    hook = model.prompt_generator.bbox_conv.register_forward_hook(lambda *args: captured.append(args[2]))
    model.predict(image)
    hook.remove()
    np.testing.assert_allclose(captured[0].numpy(), golden.arrays["dbg/bbox_conv"], atol=TOLERANCE)


def test_batch_elements_do_not_influence_each_other(model: MaskSAM, image: Tensor) -> None:
    other = image.flip(-1) * 0.5 + 0.1
    both = model(torch.cat([image, other]))
    assert (both[1:] - model(other)).abs().max() < 2e-5  # 4e-6 officially; summation order


def test_heads_computed_one_by_one_give_the_same(
    golden: Golden, model: MaskSAM, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masksam_export.families.masksam.model.image_encoder.LOGITS_LIMIT", 1)
    one_by_one = golden.model()
    assert heads_at_once(one_by_one) == {1}
    assert heads_at_once(model) == {model.config.heads}
    assert (one_by_one.encode(image)[1] - model.encode(image)[1]).abs().max() < 1e-5


def heads_at_once(model: MaskSAM) -> set[int]:
    return {module.heads_at_once for module in model.modules() if isinstance(module, Attention)}


def test_state_dict_has_every_official_name_and_alias(golden: Golden, model: MaskSAM) -> None:
    assert set(model.state_dict()) == set(golden.weights)


@pytest.mark.parametrize("variant", OFFICIAL)
def test_full_size_networks_have_the_official_names_shapes_and_aliases(variant: str) -> None:
    with gzip.open(NETWORK / f"manifest_{variant}_official.json.gz", "rt") as file:
        manifest = json.load(file)
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    with torch.device("meta"):
        state = MaskSAM(OFFICIAL[variant]).state_dict(keep_vars=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert all(state[alias] is state[name] for alias, name in manifest["aliases"].items())
    assert len({id(tensor) for tensor in state.values()}) == manifest["unique"]


@pytest.mark.parametrize("variant", OFFICIAL)
def test_configuration_is_read_off_the_official_shapes(variant: str) -> None:
    with gzip.open(NETWORK / f"manifest_{variant}_official.json.gz", "rt") as file:
        shapes = json.load(file)["shapes"]
    assert config_from_shapes({name: tuple(shape) for name, shape in shapes.items()}) == OFFICIAL[variant]


def reduced(config: ModelConfig) -> ModelConfig:
    """Narrow enough for a test, with everything else as in `config`."""
    return replace(
        config,
        embed_dim=32,
        depth=4,
        heads=2,
        global_blocks=(0, 1, 2, 3),
        window=5,
        mlp_dim=64,
        adapter_dim=8,
        canvas_grid=8,
        prompt_dim=16,
        decoder_mlp_dim=32,
        decoder_adapter_dim=4,
        iou_hidden_dim=16,
        upscaling_widths=(4, 2),
        levels=tuple(replace(level, width=8) for level in config.levels),
    )


def variations() -> Iterator[ModelConfig]:
    acdc, amos = reduced(ACDC), reduced(AMOS)
    yield replace(acdc, grid=8, frames=1, queries=1, temporal_mlp_dim=4)
    yield replace(acdc, grid=8, frames=2, conv_bias=False, norm_affine=False, temporal_mlp_dim=8)
    yield replace(amos, grid=3, frames=2, queries=3, classes=1, head_width=4, temporal_mlp_dim=8)
    yield replace(amos, grid=5, frames=3, depth=8, global_blocks=(1, 3, 5, 7), head_width=4, temporal_mlp_dim=12)
    yield replace(amos, grid=4, in_channels=3, canvas_grid=16, variant="p256", head_width=4)


@pytest.mark.parametrize(
    "config", list(variations()), ids=lambda config: f"{config.variant}-{config.grid}-{config.frames}"
)
def test_any_sizes_give_scores_of_the_right_shape_and_are_recognised_again(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = MaskSAM(config).eval().requires_grad_(False)
    scores = model(torch.randn(2, *config.input_shape))
    assert scores.shape == (2, config.classes, *config.input_shape[1:])
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = config_from_shapes(shapes)
    windowed = len(config.global_blocks) < config.depth
    assert found == (config if windowed else replace(config, window=found.window))
