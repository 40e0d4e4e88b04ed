"""The fused middle of a depth-convolution adapter against the float64 reference, in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masksam_export.families.masksam.model.depth_adapter import DepthConvAdapter
from masksam_kernels.depth_adapter import reference
from masksam_kernels.depth_adapter.blocks import block_for, padded_channels
from masksam_kernels.depth_adapter.launch import launch_middle
from masksam_kernels.depth_adapter.op import depth_adapter_middle
from masksam_kernels.depth_adapter.reference import taps_from_conv
from masksam_kernels.errors import KernelError
from tests.kernels.middles import DEVICE, Middle, random_middle

# Arithmetic is float32, so only the result's own rounding is left: 2^-11 and 2^-8 at most, a third of that on average.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@settings(max_examples=25, deadline=None)
@given(
    outer=st.integers(1, 2),
    frames=st.integers(1, 4),
    inner=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 9),
    channels=st.integers(1, 70),
    dtype=st.sampled_from(list(TOLERANCE)),
    activate=st.booleans(),
    eps=st.floats(1e-12, 4.0),
    seed=st.integers(0, 2**31),
)
def test_the_kernel_equals_the_reference_at_any_shape(
    outer: int,
    frames: int,
    inner: int,
    height: int,
    width: int,
    channels: int,
    dtype: torch.dtype,
    activate: bool,
    eps: float,
    seed: int,
) -> None:
    case = random_middle(
        outer=outer,
        frames=frames,
        inner=inner,
        height=height,
        width=width,
        channels=channels,
        dtype=dtype,
        activate=activate,
        eps=eps,
        seed=seed,
    )
    expected = case.expected()
    worst = float((case.fused().double() - expected).norm())
    # One or two channels make the norm's variance tiny and its quotient steep: float32 then shows.
    steep = 50.0 if channels < 4 else 1.0
    assert worst <= steep * TOLERANCE[dtype] * (float(expected.norm()) + 1e-3)


@pytest.mark.parametrize("channels", [64, 192, 256, 320, 512])
def test_the_kernel_equals_the_reference_at_published_widths(channels: int) -> None:
    case = random_middle(outer=1, frames=2, height=3, width=4, channels=channels, dtype=torch.float16)
    assert case.error() <= TOLERANCE[torch.float16]


def test_depth_neighbours_are_inner_rows_apart_in_the_decoder() -> None:
    """Rows (b t q): each query alone gives what it gives among the others."""
    case = random_middle(outer=2, frames=3, inner=4, channels=16)
    together = case.fused().unflatten(0, (2, 3, 4))
    for query in range(4):
        rows = case.hidden.unflatten(0, (2, 3, 4))[:, :, query].flatten(0, 1).contiguous()
        alone = replace(case, hidden=rows, inner=1).fused()
        torch.testing.assert_close(together[:, :, query].flatten(0, 1), alone, rtol=0, atol=0)


def test_a_large_mean_does_not_cost_the_norm_its_precision() -> None:
    case = random_middle(channels=64)
    far = replace(case, taps_bias=case.taps_bias + 1000)
    # float32 sums near 1000 are spaced 6e-5 apart.
    assert far.error() <= 1e-3


def test_what_is_not_finite_stays_where_the_convolution_can_carry_it() -> None:
    case = random_middle(outer=2, frames=3, height=5, width=7)
    hidden = case.hidden.clone()
    hidden[0, 0, 0, 0] = float("nan")  # first volume, first frame, a corner
    found = case.with_hidden(hidden).fused()
    broken = found.isnan().any(-1).nonzero().tolist()
    assert broken == [[frame, y, x] for frame in (0, 1) for y in (0, 1) for x in (0, 1)]


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64, 192, 320, 512])
def test_a_block_holds_all_channels(channels: int) -> None:
    assert padded_channels(channels) >= channels
    block = block_for(90, channels)
    assert block.pixels & (block.pixels - 1) == 0


@pytest.mark.parametrize("queries", [None, 3])
def test_the_reference_equals_the_network_s_adapter(queries: int | None) -> None:
    torch.manual_seed(0)
    adapter = DepthConvAdapter(24, 16, frames=3, skip=True).double().eval()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    inner = queries or 1
    x = torch.randn(2 * 3 * inner, 4, 4, 24, dtype=torch.float64)
    assert adapter.T_DWconv.bias is not None
    middle = reference.depth_adapter_middle(
        x @ adapter.D_fc1.weight.T,
        adapter.D_fc1.bias,
        taps_from_conv(adapter.T_DWconv.weight),
        adapter.T_DWconv.bias,
        adapter.norm.weight,
        adapter.norm.bias,
        frames=3,
        inner=inner,
        eps=adapter.norm.eps,
    )
    expected = adapter.forward_prompts(x.flatten(1, 2), queries, 4).reshape(x.shape) if queries else adapter(x)
    torch.testing.assert_close(x + adapter.D_fc2(middle), expected, rtol=1e-12, atol=1e-12)


def arguments(case: Middle) -> tuple[object, ...]:
    return (*case.tensors(), case.frames, case.inner, case.eps)


def test_the_operator_passes_torch_s_own_checks() -> None:
    case = random_middle(outer=1, frames=2, height=2, width=3, channels=16)
    torch.library.opcheck(
        depth_adapter_middle, arguments(case), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_static")
    )


def test_the_operator_is_one_node_of_a_compiled_graph() -> None:
    case = random_middle(outer=1, frames=2, height=2, width=3, channels=16)
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    compiled = torch.compile(lambda *a: depth_adapter_middle(*a) + 1, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*arguments(case)), depth_adapter_middle(*arguments(case)) + 1, rtol=0, atol=0)
    (graph,) = seen
    assert torch.ops.masksam.depth_adapter_middle.default in [node.target for node in graph.graph.nodes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 4}, "6 rows do not divide into 4 frames of 1 rows"),
        ({"inner": 5}, "6 rows do not divide into 3 frames of 5 rows"),
        ({"hidden": torch.zeros(6, 5, 140)}, r"hidden must be \[rows, h, w, channels\], found \[6, 5, 140\]"),
        ({"hidden": torch.zeros(6, 5, 7, 20, dtype=torch.float64)}, "found torch.float64"),
        ({"hidden": torch.zeros(6, 5, 20, 7).transpose(2, 3)}, "must be contiguous, found strides"),
        ({"hidden": torch.zeros(6, 5, 7, 20, device="meta")}, "runs on an NVIDIA GPU, found a tensor on 'meta'"),
        ({"taps": torch.zeros(20, 1, 3, 3, 3)}, r"taps must have shape \[27, 20\], found \[20, 1, 3, 3, 3\]"),
        ({"taps": torch.zeros(20, 27, device=DEVICE).t()}, "taps must be contiguous"),
        (
            {"norm_bias": torch.zeros(20, dtype=torch.float16)},
            "norm_bias must be torch.float32 on (cpu|cuda:0) like hidden",
        ),
        ({"bias": torch.zeros(21)}, r"bias must have shape \[20\], found \[21\]"),
    ],
)
def test_arguments_that_the_kernel_does_not_take_are_named(change: dict[str, object], message: str) -> None:
    case = replace(random_middle(), **change)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=message):
        case.fused()


def test_too_many_channels_are_refused() -> None:
    case = random_middle(outer=1, frames=1, height=1, width=1, channels=513)
    with pytest.raises(KernelError, match="1 to 512 channels, found 513"):
        case.fused()


def test_a_result_over_its_own_input_is_refused() -> None:
    case = random_middle()
    with pytest.raises(KernelError, match="out is hidden"):
        launch_middle(case.hidden, *case.tensors(), frames=case.frames)


def test_no_rows_give_no_rows() -> None:
    case = random_middle(outer=1)
    assert case.with_hidden(case.hidden[:0]).fused().shape == (0, 5, 7, 20)
