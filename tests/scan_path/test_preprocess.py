from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from masksam_deploy.base.errors import ScanError
from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.nnunet import Normalization, Preprocessing, recipe_of
from masksam_deploy.bundle.recipe import Recipe
from masksam_deploy.scan_path.frame import nonzero_box, scan_frame
from masksam_deploy.scan_path.prepare import prepare

GOLDEN = Path(__file__).parents[1] / "data" / "scan_path" / "a_hippocampus"
Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


def make_volume(array: NDArray[Any], spacing_zyx: Spacing = (1.0, 1.0, 1.0)) -> Volume:
    z, y, x = array.shape[-3:]
    dz, dy, dx = spacing_zyx
    axes = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return Volume(array, Geometry((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), axes))


def make_spec(
    *normalization: Normalization,
    transpose: Shape = (0, 1, 2),
    spacing: Spacing = (1.0, 1.0, 1.0),
) -> Recipe:
    terms = Preprocessing.model_validate(
        {
            "channel_names": [f"channel {index}" for index in range(len(normalization))],
            "transpose_forward": transpose,
            "spacing": spacing,
            "normalization": normalization,
            "resample_data": {"order": 3, "order_z": 0},
            "resample_scores": {"order": 1, "order_z": 0},
        }
    )
    return recipe_of(terms)


def scheme(name: str, **constants: Any) -> Normalization:
    return Normalization.model_validate({"scheme": name, **constants})


NO = scheme("NoNormalization")
ZSCORE = scheme("ZScoreNormalization")
MASKED = scheme("ZScoreNormalization", use_mask=True)


def random_scan(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=shape) * 200 + 300).astype(np.float32)


def test_a_real_scan_becomes_what_nnunet_makes_of_it() -> None:
    plan = json.loads((GOLDEN / "plans.json").read_text())["configurations"]["3d_fullres"]
    image = SimpleITK.ReadImage(GOLDEN / "a_hippocampus_0000.nii.gz")
    geometry = Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    spec = make_spec(ZSCORE, spacing=tuple(plan["spacing"]))
    result = prepare(Volume(SimpleITK.GetArrayFromImage(image), geometry), spec)
    expected = np.load(GOLDEN / "preprocessed.npz")["data"]
    assert result.data.dtype == np.float32
    # Measured: bit-equal. The bound leaves room for another summation order of float32 mean and std.
    np.testing.assert_allclose(result.data, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [(45, 22), (65, 32), (35, 18), (44, 22)])
def test_the_network_grid_rounds_half_voxels_to_even(size: int, expected: int) -> None:
    frame = scan_frame(make_volume(np.ones((size, 3, 3)), (0.5, 1.0, 1.0)), make_spec(NO))
    assert frame.network_shape == (expected, 3, 3)


def test_axes_and_spacings_are_transposed_together() -> None:
    array = random_scan((2, 3, 4))
    spec = make_spec(NO, transpose=(2, 0, 1), spacing=(0.8, 2.0, 0.9))
    result = prepare(make_volume(array, (2.0, 0.9, 0.8)), spec)
    assert result.frame.scan_spacing == (0.8, 2.0, 0.9)
    np.testing.assert_array_equal(result.data[0], array.transpose(2, 0, 1))


def test_zero_borders_are_cut_off_across_all_channels() -> None:
    array = np.zeros((2, 6, 7, 8), np.float32)
    array[0, 2, 3, 4] = 5
    array[1, 3, 1, 6] = -1
    result = prepare(make_volume(array), make_spec(NO, NO, transpose=(1, 2, 0)))
    assert result.frame.box == ((1, 4), (4, 7), (2, 4))
    assert result.frame.cropped_shape == (3, 3, 2)
    np.testing.assert_array_equal(result.data, array[:, 2:4, 1:4, 4:7].transpose(0, 2, 3, 1))


def test_an_all_zero_scan_keeps_its_full_box() -> None:
    result = prepare(make_volume(np.zeros((3, 4, 5))), make_spec(MASKED))
    assert result.frame.box == ((0, 3), (0, 4), (0, 5))
    np.testing.assert_array_equal(result.data, np.zeros((1, 3, 4, 5)))


def test_nan_counts_as_nonzero_for_the_box() -> None:
    array = np.zeros((1, 3, 4, 5))
    array[0, 1, 2, 3] = np.nan
    assert nonzero_box(array) == ((1, 2), (2, 3), (3, 4))


@settings(deadline=None, max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    share=st.sampled_from([0.02, 0.3, 0.6, 0.75, 0.9]),
    transpose=st.sampled_from([(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)]),
    seed=st.integers(0, 999),
)
def test_masked_zscore_changes_only_the_filled_nonzero_mask(
    shape: Shape, share: float, transpose: Shape, seed: int
) -> None:
    array = random_scan(shape, seed)
    array[np.random.default_rng(seed + 1).random(shape) > share] = 0
    result = prepare(make_volume(array), make_spec(MASKED, transpose=transpose))

    transposed = array.transpose(transpose)
    filled = ndimage.binary_fill_holes(transposed != 0)
    if filled.any():
        box = ndimage.find_objects(filled.astype(int))[0]
        assert result.frame.box == tuple((part.start, part.stop) for part in box)
        transposed, filled = transposed[box].copy(), filled[box]
        inside = transposed[filled]
        transposed[filled] = (inside - inside.mean()) / max(inside.std(), 1e-8)
    np.testing.assert_array_equal(result.data[0], transposed)


def test_zscore_reduces_the_cropped_and_transposed_view_to_the_last_bit() -> None:
    # With this seed a contiguous copy has another mean and std.
    array = random_scan((9, 40, 50), seed=3)
    array[:, :4] = 0
    view = array.transpose(1, 2, 0)[4:]
    result = prepare(make_volume(array), make_spec(ZSCORE, transpose=(1, 2, 0)))
    np.testing.assert_array_equal(result.data[0], (view - view.mean()) / view.std())


def test_ct_clips_then_scales_by_the_plans_constants() -> None:
    ct = scheme("CTNormalization", lower=-100.0, upper=300.0, mean=50.0, std=80.0, use_mask=True)
    array = np.array([-2000.0, -100.0, 50.0, 299.0, 4000.0], np.float32).reshape(1, 1, 5)
    result = prepare(make_volume(array), make_spec(ct))
    expected = (np.array([-100, -100, 50, 299, 300], np.float32) - 50) / 80
    np.testing.assert_allclose(result.data.ravel(), expected, rtol=1e-6, atol=0)  # float32 rounding


def test_rescale_maps_the_range_to_0_1() -> None:
    array = np.array([-3.0, 1.0, 5.0], np.float32).reshape(1, 1, 3)
    result = prepare(make_volume(array), make_spec(scheme("RescaleTo01Normalization")))
    np.testing.assert_array_equal(result.data.ravel(), [0.0, 0.5, 1.0])


def test_rgb_divides_by_255_and_refuses_other_ranges() -> None:
    spec = make_spec(scheme("RGBTo01Normalization"))
    array = np.array([51, 255], np.uint8).reshape(1, 1, 2)
    np.testing.assert_allclose(prepare(make_volume(array), spec).data.ravel(), [0.2, 1.0], rtol=1e-7)
    with pytest.raises(ScanError, match=r"-1 to 51, expected 0\.\.255"):
        prepare(make_volume(np.array([-1, 51], np.int16).reshape(1, 1, 2)), spec)


def test_every_channel_is_normalised_on_its_own_before_resampling() -> None:
    array = np.stack([random_scan((6, 7, 8)), random_scan((6, 7, 8), 1) * 9])
    spacing = (1.5, 1.3, 1.2)
    spec = make_spec(ZSCORE, NO, spacing=spacing)
    together = prepare(make_volume(array), spec).data
    first = prepare(make_volume(array[0]), make_spec(ZSCORE, spacing=spacing)).data
    second = prepare(make_volume(array[1]), make_spec(NO, spacing=spacing)).data
    np.testing.assert_array_equal(together, np.concatenate([first, second]))
    normalised = (array[0] - array[0].mean()) / array[0].std()
    assert normalised.min() <= first.min() <= first.max() <= normalised.max()


def test_a_constant_scan_stays_finite() -> None:
    data = prepare(make_volume(np.full((3, 4, 5), 7.0)), make_spec(ZSCORE)).data
    np.testing.assert_array_equal(data, np.zeros((1, 3, 4, 5)))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64])
def test_stored_types_give_the_same_input_as_float32(dtype: type[np.generic]) -> None:
    whole = random_scan((5, 6, 7)).clip(0, 900).round()
    spec = make_spec(ZSCORE, spacing=(1.2, 1.0, 0.9))
    np.testing.assert_array_equal(
        prepare(make_volume(whole.astype(dtype)), spec).data, prepare(make_volume(whole), spec).data
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)], ids=["same grid", "resampled"])
def test_the_callers_array_is_not_modified(spacing: Spacing) -> None:
    ct = scheme("CTNormalization", lower=0.0, upper=300.0, mean=50.0, std=80.0)
    array = np.stack([random_scan((6, 5, 4))] * 3)
    array.setflags(write=False)
    before = array.copy()
    prepare(make_volume(array), make_spec(ZSCORE, MASKED, ct, spacing=spacing))
    np.testing.assert_array_equal(array, before)


def test_a_known_frame_is_used_as_is() -> None:
    volume, spec = make_volume(random_scan((4, 5, 6))), make_spec(ZSCORE)
    frame = scan_frame(volume, spec)
    assert prepare(volume, spec, frame).frame is frame


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_intensities_that_are_not_finite_in_float32_are_refused(bad: float) -> None:
    array = np.ones((3, 4, 5))
    array[1, 2, 3] = bad
    with pytest.raises(ScanError, match="channel 'channel 0' holds NaN, infinite or too large"):
        prepare(make_volume(array), make_spec(NO))


def test_intensities_that_overflow_while_normalising_are_refused() -> None:
    array = np.array([-3e38, 3e38], np.float32).reshape(1, 1, 2)
    with pytest.raises(ScanError, match="too large to normalise"):
        prepare(make_volume(array), make_spec(ZSCORE))


def test_a_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ScanError, match=r"has 1 channels, the model expects 2 \(channel 0, channel 1\)"):
        scan_frame(make_volume(np.ones((3, 4, 5))), make_spec(NO, NO))


def test_a_scan_that_vanishes_on_the_network_grid_is_refused() -> None:
    expected = r"covers 3 mm along an axis that the model samples every 6\.35 mm; give the whole volume, or check the"
    with pytest.raises(ScanError, match=expected):
        scan_frame(make_volume(np.ones((3, 4, 5))), make_spec(NO, spacing=(6.35, 1.0, 1.0)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_spacing_far_beyond_the_networks_is_refused_before_it_takes_all_memory(axis: int) -> None:
    spec = make_spec(NO, spacing=(2.0, 2.0, 2.0), transpose=(1, 2, 0))
    for longest in (50.0, 50.5):
        z, y, x = (longest if index == axis else 2.0 for index in range(3))
        volume = make_volume(np.ones((3, 4, 5)), (z, y, x))
        if longest == 50:
            assert max(scan_frame(volume, spec).network_shape) >= 75
            continue
        expected = r"voxels of 50\.5 mm along an axis that the model samples every 2 mm, .*; check the header's spacing"
        with pytest.raises(ScanError, match=expected):
            scan_frame(volume, spec)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, object])
def test_values_that_are_no_real_numbers_are_refused(dtype: type) -> None:
    with pytest.raises(ScanError, match=f"'channel 0' holds {np.dtype(dtype)} values, expected real numbers"):
        prepare(make_volume(np.ones((3, 4, 5), dtype)), make_spec(NO))


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, np.float64])
def test_all_real_numbers_are_taken(dtype: type) -> None:
    np.testing.assert_array_equal(prepare(make_volume(np.ones((3, 4, 5), dtype)), make_spec(NO)).data, 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.3, 0.7)], ids=["same grid", "resampled"])
def test_the_result_does_not_depend_on_the_number_of_threads(spacing: Spacing) -> None:
    ct = scheme("CTNormalization", lower=0.0, upper=300.0, mean=50.0, std=80.0)
    volume, spec = (
        make_volume(np.stack([random_scan((40, 50, 30), seed) for seed in (1, 2)])),
        make_spec(ZSCORE, ct, spacing=spacing),
    )
    alone, shared = (prepare(volume, spec, threads=threads).data for threads in (1, 3))
    np.testing.assert_array_equal(shared, alone)
