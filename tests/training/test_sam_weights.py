"""Starting from SAM: Meta's own modules write the files, everything that is not exactly SAM is refused."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from masksam_deploy.base.errors import CheckpointError
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from masksam_export.families.masksam.training.freezing import freeze_sam
from masksam_export.families.masksam.training.sam_weights import (
    SamReport,
    check_sam_shapes,
    load_sam_weights,
    silence_additions,
)

State = dict[str, Tensor]
# The same float32 operations on values of about one, in another order of summation.
TOLERANCE = 1e-5

# Windows of 4 on a grid of 8: nothing is padded, and padding is where MaskSAM and SAM differ on purpose.
CONFIG = replace(
    ACDC,
    frames=2,
    temporal_mlp_dim=8,
    embed_dim=32,
    depth=6,
    heads=2,
    global_blocks=(1, 2, 3, 5),
    window=4,
    mlp_dim=128,
    adapter_dim=8,
    canvas_grid=8,
    grid=8,
    prompt_dim=64,
    decoder_mlp_dim=48,
    decoder_adapter_dim=8,
    upscaling_widths=(16, 8),
    iou_hidden_dim=16,
    stem_widths=(4, 4),
    levels=tuple(replace(level, width=8) for level in ACDC.levels),
)
POSITIONS = "image_encoder.pos_embed"
WINDOW_TABLE = "image_encoder.blocks.0.attn.rel_pos_h"
GLOBAL_TABLE = "image_encoder.blocks.1.attn.rel_pos_w"
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@pytest.fixture(scope="module")
def meta_sam() -> ModuleType:
    """segment-anything without its package's own imports, which need torchvision."""
    spec = importlib.machinery.PathFinder.find_spec("segment_anything")
    assert spec is not None
    sys.modules["segment_anything"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("segment_anything.build_sam")


def small_sam(build: Any, config: ModelConfig = CONFIG) -> nn.Module:
    """SAM itself in small, with random weights everywhere, its zero-initialised tables included."""
    torch.manual_seed(7)
    grid, side, dim = config.canvas_grid, config.canvas_side, config.prompt_dim
    encoder = build.ImageEncoderViT(
        img_size=side,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.heads,
        out_chans=dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_blocks,
    )
    prompts = build.PromptEncoder(dim, (grid, grid), (side, side), config.mask_prompt_widths[1])
    decoder = build.MaskDecoder(
        transformer_dim=dim,
        transformer=build.TwoWayTransformer(2, dim, config.decoder_heads, config.decoder_mlp_dim),
        iou_head_hidden_dim=config.iou_hidden_dim,
    )
    sam: nn.Module = build.Sam(encoder, prompts, decoder).eval().requires_grad_(False)
    for parameter in sam.parameters():
        parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
    return sam


@pytest.fixture(scope="module")
def sam(meta_sam: ModuleType) -> nn.Module:
    return small_sam(meta_sam)


@pytest.fixture
def state(sam: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in sam.state_dict().items()}


def network(config: ModelConfig = CONFIG) -> MaskSAM:
    """A network none of whose weights is zero, so that what is loaded or zeroed shows."""
    torch.manual_seed(11)
    model = MaskSAM(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def saved(content: Any, folder: Path) -> Path:
    path = folder / "sam_vit_b_01ec64.pth"
    torch.save(content, path)
    return path


def load(content: Any, folder: Path, model: MaskSAM | None = None) -> SamReport:
    return load_sam_weights(model or network(), saved(content, folder))


def refusal(content: Any, folder: Path, config: ModelConfig = CONFIG) -> str:
    """Why the file is refused; the network must be as it was."""
    model = network(config)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with pytest.raises(CheckpointError) as caught:
        load(content, folder, model)
    assert all(map(torch.equal, before, model.state_dict().values()))
    message = str(caught.value)
    assert "sam_vit_b_01ec64.pth" in message
    assert "\n" not in message
    return message


def test_every_tensor_of_sam_is_loaded_under_its_own_name(state: State, tmp_path: Path) -> None:
    model = network()
    report = load(state, tmp_path, model)
    ours = model.sam_model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())
    assert report.loaded == len(state)
    assert (report.resampled, report.ignored) == ((), ())


def test_buffer_of_random_frequencies_is_loaded(state: State, tmp_path: Path) -> None:
    model = network()
    assert not torch.equal(model.sam_model.state_dict()[GAUSSIAN], state[GAUSSIAN])
    load(state, tmp_path, model)
    assert torch.equal(model.sam_model.state_dict()[GAUSSIAN], state[GAUSSIAN])


def test_what_sam_does_not_have_is_named_and_keeps_its_values_or_adds_nothing(state: State, tmp_path: Path) -> None:
    model, untouched = network(), network()
    report = load(state, tmp_path, model)
    assert {
        "sam_model.image_encoder.temporal_embedding",
        "sam_model.prompt_encoder.temporal_embedding",
        "sam_model.mask_decoder.classifier_token_Adapter.weight",
        "sam_model.image_encoder.blocks.0.Space_Adapter.D_fc1.weight",
        "first_conv.0.convs.0.conv.weight",
        "image_decoder_stages.0.convs.0.conv.weight",
    } <= set(report.initial)
    assert len(report.initial) + report.loaded == len({id(t) for t in model.state_dict(keep_vars=True).values()})
    before, after = untouched.state_dict(), model.state_dict()
    changed = {name for name in report.initial if not torch.equal(before[name], after[name])}
    assert changed == {name for name in report.initial if ".D_fc2." in name or "temporal_embedding" in name}


def test_zeroed_adapters_add_nothing_and_can_still_learn() -> None:
    model = network()
    silence_additions(model)
    last = {name: p for name, p in model.named_parameters() if ".D_fc2." in name}
    # Two adapters a block, four and one in either decoder layer, one at the end; a weight and a bias each.
    assert len(last) == 2 * (2 * CONFIG.depth + 2 * 4 + 1)
    assert all(not parameter.any() for parameter in last.values())
    first_block = model.sam_model.image_encoder.blocks[0]
    x = torch.randn(2, 4, 4, 32)
    assert torch.equal(first_block.get_submodule("Space_Adapter")(x), x)
    assert not first_block.get_submodule("MLP_Adapter")(x).any()
    model.sam_model.image_encoder(torch.randn(2, 3, 128, 128))[1].square().sum().backward()
    gradient = last["sam_model.image_encoder.blocks.0.Space_Adapter.D_fc2.weight"].grad
    assert gradient is not None
    assert gradient.any()


@torch.no_grad()
def test_network_starts_as_sams_own_image_encoder(sam: nn.Module, state: State, tmp_path: Path) -> None:
    model = network()
    load(state, tmp_path, model)
    image = torch.randn(2, 3, 128, 128)
    _, embedding = model.sam_model.image_encoder(image)
    expected = sam.get_submodule("image_encoder")(image)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_encoder_equals_sams_own_of_another_size_after_resampling(meta_sam: ModuleType, tmp_path: Path) -> None:
    """SAM itself resamples global tables where it attends over another size; so must we, to the same values."""
    state = small_sam(meta_sam, replace(CONFIG, canvas_grid=12)).state_dict()
    model = network()
    load(state, tmp_path, model)
    theirs = small_sam(meta_sam)
    for block, other in zip(theirs.get_submodule("image_encoder.blocks").children(), range(CONFIG.depth), strict=True):
        attention = block.get_submodule("attn")
        for axis in ("rel_pos_h", "rel_pos_w"):
            table = state.pop(f"image_encoder.blocks.{other}.attn.{axis}")
            setattr(attention, axis, nn.Parameter(table))
    state[POSITIONS] = model.sam_model.image_encoder.pos_embed
    theirs.load_state_dict(state, strict=False)
    image = torch.randn(2, 3, 128, 128)
    expected = theirs.get_submodule("image_encoder")(image)
    torch.testing.assert_close(model.sam_model.image_encoder(image)[1], expected, rtol=0, atol=TOLERANCE)


def test_freezing_after_loading_leaves_exactly_sams_parameters_untrained(
    sam: nn.Module, state: State, tmp_path: Path
) -> None:
    model = network()
    load(state, tmp_path, model)
    freeze_sam(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"sam_model.{name}" for name, _ in sam.named_parameters()}


@pytest.mark.parametrize(
    ("builder", "config"),
    [("build_sam_vit_b", ACDC), ("build_sam_vit_h", AMOS), ("build_sam_vit_h", SYNAPSE)],
    ids=["acdc", "amos", "synapse"],
)
def test_published_networks_take_the_full_size_sam_as_it_is(
    meta_sam: ModuleType, builder: str, config: ModelConfig
) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in getattr(meta_sam, builder)().state_dict().items()}
        model = MaskSAM(config)
    assert check_sam_shapes(model, shapes, "meta") == ()


def test_full_size_sam_of_another_width_is_one_clear_error(meta_sam: ModuleType) -> None:
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in meta_sam.build_sam_vit_b().state_dict().items()}
        model = MaskSAM(AMOS)
    with pytest.raises(CheckpointError) as caught:
        check_sam_shapes(model, shapes, "sam_vit_b_01ec64.pth")
    assert str(caught.value) == (
        "SAM checkpoint 'sam_vit_b_01ec64.pth' is for another network: the file has 12 blocks of width 768, the "
        "network 32 of 1280: choose --network acdc"
    )


def test_sam_of_a_size_no_network_has_says_which_files_fit(state: State, tmp_path: Path) -> None:
    message = refusal(state, tmp_path, replace(CONFIG, embed_dim=48))
    assert "the file has 6 blocks of width 32, the network 6 of 48" in message
    assert "sam_vit_h_4b8939.pth" in message


def cubic_matrix(size: int, new_size: int) -> Tensor:
    """`[new_size, size]`: Keys' cubic convolution with torch's a = -0.75 on half-pixel centres, edges replicated."""
    matrix = torch.zeros(new_size, size)
    for row in range(new_size):
        centre = (row + 0.5) * size / new_size - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[row, min(max(tap, 0), size - 1)] += cubic(abs(centre - tap))
    return matrix


def cubic(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)


@pytest.mark.parametrize(("canvas", "grid"), [(6, 6), (12, 12), (24, 8)])
def test_positions_of_another_canvas_are_resampled_bicubically(
    state: State, tmp_path: Path, canvas: int, grid: int
) -> None:
    model = network(replace(CONFIG, canvas_grid=canvas, grid=grid))
    report = load(state, tmp_path, model)
    assert POSITIONS in report.resampled
    matrix = cubic_matrix(8, canvas)
    expected = torch.einsum("ih,jw,nhwe->nije", matrix, matrix, state[POSITIONS])
    ours = model.sam_model.image_encoder.pos_embed.detach()
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def centres(size: int) -> Tensor:
    """Half-pixel centres of `size` cells across [0, 1]."""
    return (torch.arange(size) + 0.5) / size


@pytest.mark.parametrize("canvas", [6, 16])
def test_tables_of_another_canvas_are_resampled_and_window_tables_kept(
    state: State, tmp_path: Path, canvas: int
) -> None:
    grid = min(canvas, 8)
    model = network(replace(CONFIG, canvas_grid=canvas, grid=grid))
    report = load(state, tmp_path, model)
    tables = {f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in CONFIG.global_blocks for axis in "hw"}
    assert set(report.resampled) == {POSITIONS, *tables}
    assert report.loaded == len(state)
    ours = model.sam_model.state_dict()
    assert torch.equal(ours[WINDOW_TABLE], state[WINDOW_TABLE])
    expected = [
        np.interp(centres(2 * canvas - 1), centres(15), column)
        for column in state[GLOBAL_TABLE].T.numpy().astype(float)
    ]
    torch.testing.assert_close(
        ours[GLOBAL_TABLE].T, torch.tensor(np.array(expected), dtype=torch.float32), rtol=0, atol=TOLERANCE
    )


def test_tables_of_another_window_are_resampled_and_global_tables_kept(state: State, tmp_path: Path) -> None:
    model = network(replace(CONFIG, window=3))
    report = load(state, tmp_path, model)
    assert set(report.resampled) == {f"image_encoder.blocks.{b}.attn.rel_pos_{axis}" for b in (0, 4) for axis in "hw"}
    ours = model.sam_model.state_dict()
    assert torch.equal(ours[GLOBAL_TABLE], state[GLOBAL_TABLE])
    assert ours[WINDOW_TABLE].shape == (5, 16)
    # The middle row is distance zero in either table.
    torch.testing.assert_close(ours[WINDOW_TABLE][2], state[WINDOW_TABLE][3], rtol=0, atol=TOLERANCE)


def test_smaller_grid_on_the_same_canvas_resamples_nothing(state: State, tmp_path: Path) -> None:
    assert load(state, tmp_path, network(replace(CONFIG, grid=4))).resampled == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"lr": 1e-4}, "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
        lambda state: {name: tensor.double() for name, tensor in state.items()},
    ],
    ids=["MedSAM training", "state_dict", "DistributedDataParallel", "torch.compile", "parameters", "float64"],
)
def test_wrapped_files_load_the_same(state: State, tmp_path: Path, wrap: Callable[[State], Any]) -> None:
    model = network()
    assert load(wrap(state), tmp_path, model).loaded == len(state)
    ours = model.sam_model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())


def test_colour_statistics_are_ignored_and_reported(state: State, tmp_path: Path) -> None:
    state["pixel_mean"] = torch.zeros(3, 1, 1)
    assert load(state, tmp_path).ignored == ("pixel_mean",)


def test_loaded_network_does_not_depend_on_the_file(state: State, tmp_path: Path) -> None:
    model = network()
    load(state, tmp_path, model)
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"")
    assert torch.equal(model.sam_model.image_encoder.pos_embed, state[POSITIONS])


def test_missing_tensor_is_named(state: State, tmp_path: Path) -> None:
    table = "image_encoder.blocks.3.attn.rel_pos_h"
    del state["mask_decoder.iou_token.weight"], state[GAUSSIAN], state[table]
    message = refusal(state, tmp_path)
    assert f"missing: {table}, mask_decoder.iou_token.weight, {GAUSSIAN};" in message


def test_extra_names_are_refused_and_at_most_eight_listed(state: State, tmp_path: Path) -> None:
    state |= {f"mask_decoder.hq_{index:02}.weight": torch.zeros(1) for index in range(11)}
    message = refusal(state, tmp_path)
    assert "not part of SAM: mask_decoder.hq_00.weight, " in message
    assert "mask_decoder.hq_07.weight and 3 more;" in message
    assert "hq_08" not in message


def test_adapters_in_the_file_are_refused(state: State, tmp_path: Path) -> None:
    state["image_encoder.blocks.0.Space_Adapter.D_fc1.bias"] = torch.zeros(8)
    message = refusal(state, tmp_path)
    assert "not part of SAM: image_encoder.blocks.0.Space_Adapter.D_fc1.bias" in message


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("image_encoder.blocks.3.mlp.lin1.bias", (64,), "blocks.3.mlp.lin1.bias [64] instead of [128]"),
        (GLOBAL_TABLE, (15, 8), "blocks.1.attn.rel_pos_w [15, 8] instead of [15, 16]"),
        (GLOBAL_TABLE, (17, 16), "blocks.1.attn.rel_pos_w [17, 16] instead of [15, 16]"),
        ("image_encoder.blocks.4.attn.rel_pos_h", (5, 16), "blocks.4.attn.rel_pos_h [5, 16] instead of [7, 16]"),
        (WINDOW_TABLE, (6, 16), "blocks.0.attn.rel_pos_h [6, 16] instead of [7, 16]"),
        (WINDOW_TABLE, (), "blocks.0.attn.rel_pos_h [] instead of [7, 16]"),
        (POSITIONS, (1, 8, 6, 32), "pos_embed is [1, 8, 6, 32]; expected [1, n, n, width]"),
        (POSITIONS, (1, 0, 0, 32), "pos_embed is [1, 0, 0, 32]; expected [1, n, n, width]"),
        (POSITIONS, (8, 32), "pos_embed is [8, 32]; expected [1, n, n, width]"),
        (POSITIONS, (1, 6, 6, 32), "whole canvas in blocks none, the network's in 1, 2, 3, 5"),
        ("mask_decoder.mask_tokens.weight", (), "0 mask tokens"),
        (GAUSSIAN, (2, 16), "[2, 16] instead of [2, 32]"),
    ],
)
def test_wrong_shape_is_refused_with_both_shapes(
    state: State, tmp_path: Path, name: str, shape: tuple[int, ...], part: str
) -> None:
    state[name] = torch.zeros(shape)
    assert part in refusal(state, tmp_path)


def test_other_number_of_mask_tokens_says_what_to_set(state: State, tmp_path: Path) -> None:
    message = refusal(state, tmp_path, replace(CONFIG, mask_tokens=3))
    assert "the file has 4 mask tokens, the network 3: set mask_tokens=4 in the network's configuration" in message


def test_other_global_blocks_are_not_resampled_into_windows(state: State, tmp_path: Path) -> None:
    message = refusal(state, tmp_path, replace(CONFIG, global_blocks=(0, 2, 3, 5)))
    assert "whole canvas in blocks 1, 2, 3, 5, the network's in 0, 2, 3, 5" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("name", [POSITIONS, GAUSSIAN, "mask_decoder.iou_token.weight"])
def test_values_that_are_not_finite_in_float32_are_refused(
    state: State, tmp_path: Path, name: str, value: float
) -> None:
    state[name] = state[name].double()
    state[name].view(-1)[3] = value
    assert f"NaN, infinite or too large values in {name};" in refusal(state, tmp_path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({}, "has no image_encoder.pos_embed"),
        ({"vision_encoder.pos_embed": torch.zeros(1, 8, 8, 32)}, "expected SAM's own names"),
        ({"model": [1, 2]}, "holds a list where its weights should be"),
        ({"image_encoder.pos_embed": 3}, "image_encoder.pos_embed are no named tensors"),
        ({3: torch.zeros(1)}, "3 are no named tensors"),
        ({"evil\n\x1b[2Jname": torch.zeros(1)}, "evil [2Jname are no named tensors"),
    ],
    ids=["empty", "other names", "list", "number", "no text", "control characters"],
)
def test_file_without_sam_names_is_refused(tmp_path: Path, content: Any, part: str) -> None:
    assert part in refusal(content, tmp_path)


class Payload:
    """Runs code when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_code_in_the_file_is_never_run(state: State, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    message = refusal({**state, "extra": Payload(target)}, tmp_path)
    assert "other than tensors and plain values" in message
    assert not target.exists()


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        (torch.zeros(1, 8, 8, 32).to_sparse(), "not dense floating-point"),
        (torch.zeros(1, 8, 8, 32, dtype=torch.int64), "not dense floating-point"),
        (torch.zeros(1).expand(1, 20000, 20000, 32), "larger than the data stored for them"),
    ],
    ids=["sparse", "integers", "inflated"],
)
def test_odd_tensors_are_refused_by_name(state: State, tmp_path: Path, tensor: Tensor, part: str) -> None:
    message = odd_refusal({**state, POSITIONS: tensor}, tmp_path)
    assert part in message
    assert POSITIONS in message


def odd_refusal(content: State, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(content, folder)
    return str(caught.value)


def test_damaged_file_is_refused(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sam_weights(network(), path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_sam_weights(network(), tmp_path / "none.pth")
