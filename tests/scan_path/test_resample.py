from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from masksam_deploy.base.threads import Team
from masksam_deploy.bundle.recipe import Resampling
from masksam_deploy.scan_path.axis_matrix import axis_matrix
from masksam_deploy.scan_path.resample import (
    AxisMap,
    Shape3,
    Spacing3,
    resample_volume,
    resampler,
    separate_axis,
)

SIZES = st.integers(1, 40)
SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(1, 14))
ISOTROPIC: Spacing3 = (1.0, 1.0, 1.0)
# Both sides are float64 sums of up to a few dozen terms of size one, added in another order.
ROUNDING = 1e-10


def random_volume(shape: tuple[int, ...], seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=shape)


def resize_like_nnunet(
    volume: NDArray[np.float64], shape: tuple[int, ...], separate: int | None, order: int, order_z: int
) -> NDArray[np.float64]:
    """The documented rule, written with SciPy and scikit-image on whole volumes."""
    if volume.shape == shape:
        return volume
    kwargs = {"order": order, "mode": "edge", "anti_aliasing": False, "clip": True}
    if separate is None:
        return np.asarray(resize(volume, shape, **kwargs))
    slices = np.moveaxis(volume, separate, 0)
    in_plane = tuple(size for axis, size in enumerate(shape) if axis != separate)
    resized = np.stack([resize(one, in_plane, **kwargs) for one in slices])
    old, new = volume.shape[separate], shape[separate]
    if old != new:
        grid = np.meshgrid((np.arange(new) + 0.5) * (old / new) - 0.5, *(np.arange(n) for n in in_plane), indexing="ij")
        resized = ndimage.map_coordinates(resized, grid, order=order_z, mode="nearest")
    return np.moveaxis(resized, 0, separate)


@settings(deadline=None, max_examples=150)
@given(old=SIZES, new=SIZES, order=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_an_axis_matrix_equals_scipy_zoom_on_the_half_pixel_grid(old: int, new: int, order: int, seed: int) -> None:
    line = random_volume((old,), seed)
    expected = ndimage.zoom(line, new / old, order=order, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(axis_matrix(old, new, order) @ line, expected, rtol=0, atol=ROUNDING)


@settings(deadline=None, max_examples=200)
@given(old=SIZES, new=SIZES, order=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_an_axis_matrix_at_the_corners_equals_scipys_own_zoom(old: int, new: int, order: int, seed: int) -> None:
    line = random_volume((old,), seed)
    expected = ndimage.zoom(line, new / old, order=order)
    np.testing.assert_allclose(axis_matrix(old, new, order, "corners") @ line, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    ("old", "new", "is_zero"), [(116, 224, True), (512, 224, True), (8, 26, True), (224, 512, False), (8, 20, False)]
)
def test_a_last_sample_that_rounding_puts_behind_the_axis_is_zero(
    old: int, new: int, is_zero: bool, order: int
) -> None:
    # 116 to 224 and 512 to 224 were found so in scans that a published program resized.
    line = np.arange(1.0, old + 1)
    found = axis_matrix(old, new, order, "corners") @ line
    assert (found[-1] == 0) == is_zero
    np.testing.assert_allclose(found, ndimage.zoom(line, new / old, order=order), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_outputs_that_are_always_zero_do_not_hold_up_the_stream(order: int) -> None:
    axis_map = AxisMap(axis_matrix(116, 224, order, "corners"))
    assert axis_map.used(223, 224).tolist() == [115]
    assert axis_map.needed_from[120] > 30
    volume, out = random_volume((116, 3, 4), 5), np.empty((224, 3, 4))
    spec = Resampling.model_validate({"order": order, "order_z": order, "coordinates": "corners"})
    # A budget of one byte makes slabs of a single plane.
    resample_volume(volume, resampler((116, 3, 4), (224, 3, 4), ISOTROPIC, ISOTROPIC, spec), out, budget_bytes=1)
    expected = ndimage.zoom(volume, (224 / 116, 1, 1), order=order)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ROUNDING)


@settings(deadline=None, max_examples=40)
@given(old=SHAPES, new=SHAPES, order=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_a_3d_resize_at_the_corners_equals_scipys_zoom_and_is_not_clipped(
    old: Shape3, new: Shape3, order: int, seed: int
) -> None:
    volume, out = random_volume(old, seed), np.empty(new)
    spec = Resampling.model_validate({"order": order, "order_z": order, "coordinates": "corners"})
    resample_volume(volume, resampler(old, new, ISOTROPIC, ISOTROPIC, spec), out, budget_bytes=1)
    expected = ndimage.zoom(volume, [b / a for a, b in zip(old, new, strict=True)], order=order)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ROUNDING)


def test_linear_doubling_weighs_neighbours_a_quarter_and_three_quarters() -> None:
    # A grid aligned at the corners would give thirds.
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    np.testing.assert_array_equal(axis_matrix(2, 4, 1), expected)


def test_nearest_takes_the_upper_voxel_halfway_between_two() -> None:
    # 4 -> 2 samples at 0.5 and 2.5.
    np.testing.assert_array_equal(axis_matrix(4, 2, 0).argmax(axis=1), [1, 3])


@pytest.mark.parametrize("order", [0, 1, 3])
def test_rows_sum_to_one_so_that_constants_stay(order: int) -> None:
    # A row has up to 70 entries, each within half a unit in the last place.
    np.testing.assert_allclose(axis_matrix(37, 90, order).sum(axis=1), 1.0, rtol=0, atol=1e-14)


def test_spline_tails_are_exact_zeros_so_that_a_slab_needs_few_planes() -> None:
    spline = AxisMap(axis_matrix(400, 300, 3))
    assert spline.used(150, 158).size < 90
    assert AxisMap(axis_matrix(400, 300, 1)).used(150, 151).size == 2


def test_needed_from_never_falls_and_covers_every_later_row() -> None:
    axis_map = AxisMap(axis_matrix(30, 90, 3))
    assert (np.diff(axis_map.needed_from) >= 0).all()
    for start in range(90):
        assert axis_map.used(start, 90)[0] >= axis_map.needed_from[start]


@pytest.mark.parametrize(("old", "new", "order"), [(0, 4, 1), (4, 0, 1), (4, 5, 2)])
def test_impossible_resizes_are_refused(old: int, new: int, order: int) -> None:
    with pytest.raises(ValueError, match=r"cannot resize|not supported"):
        axis_matrix(old, new, order)


@settings(deadline=None, max_examples=40)
@given(old=SHAPES, new=SHAPES, order=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_a_3d_resize_equals_scikit_image(old: Shape3, new: Shape3, order: int, seed: int) -> None:
    volume = random_volume(old, seed)
    spec = Resampling.model_validate({"order": order, "order_z": 0})
    out = np.empty(new)
    # A budget of one byte makes slabs of a single plane.
    resample_volume(volume, resampler(old, new, ISOTROPIC, ISOTROPIC, spec), out, budget_bytes=1)
    expected = resize_like_nnunet(volume, new, None, order, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ROUNDING)


@settings(deadline=None, max_examples=60)
@given(
    old=SHAPES,
    new=SHAPES,
    axis=st.integers(0, 2),
    orders=st.sampled_from([(3, 0), (1, 0), (3, 1), (3, 3), (1, 3), (0, 0)]),
    seed=st.integers(0, 99),
)
def test_a_separate_axis_is_resampled_after_the_slices(
    old: Shape3, new: Shape3, axis: int, orders: tuple[int, int], seed: int
) -> None:
    volume = random_volume(old, seed)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 5.0
    plan = resampler(
        old,
        new,
        (spacing[0], spacing[1], spacing[2]),
        ISOTROPIC,
        Resampling.model_validate({"order": orders[0], "order_z": orders[1]}),
    )
    out = np.empty(new)
    resample_volume(volume, plan, out, budget_bytes=4000)
    expected = resize_like_nnunet(volume, new, axis, *orders)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ROUNDING)


def test_cubic_overshoot_is_clipped_to_the_range_of_each_slice() -> None:
    volume = np.zeros((2, 8, 8))
    volume[0, :, 4:] = 1.0
    volume[1, :, 4:] = 10.0
    spec = Resampling(order=3, order_z=0)
    out = np.empty((2, 17, 17))
    resample_volume(volume, resampler((2, 8, 8), (2, 17, 17), (9.0, 1.0, 1.0), ISOTROPIC, spec), out)
    assert (out[0].min(), out[0].max()) == (0.0, 1.0)
    assert (out[1].min(), out[1].max()) == (0.0, 10.0)


def test_equal_grids_pass_values_on_untouched_even_if_anisotropic() -> None:
    volume = random_volume((3, 4, 5), 0).astype(np.float32)
    plan = resampler((3, 4, 5), (3, 4, 5), (9.0, 1.0, 1.0), ISOTROPIC, Resampling(order=3, order_z=0))
    out = np.empty_like(volume)
    resample_volume(volume, plan, out)
    assert plan.is_identity
    np.testing.assert_array_equal(out, volume)


@pytest.mark.parametrize("budget_bytes", [1, 2000, 1 << 20])
def test_slab_size_does_not_change_the_result(budget_bytes: int) -> None:
    volume = random_volume((50, 6, 7), 1)
    plan = resampler((50, 6, 7), (33, 9, 5), ISOTROPIC, ISOTROPIC, Resampling(order=3, order_z=0))
    out, whole = np.empty((33, 9, 5)), np.empty((33, 9, 5))
    resample_volume(volume, plan, out, budget_bytes)
    resample_volume(volume, plan, whole, 1 << 30)
    # Only the order of summation inside a product may differ.
    np.testing.assert_allclose(out, whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("current", "new", "force", "expected"),
    [
        ((5.0, 1.0, 1.0), ISOTROPIC, None, 0),
        ((1.0, 1.0, 5.0), ISOTROPIC, None, 2),
        (ISOTROPIC, (1.0, 5.0, 1.0), None, 1),
        ((3.0, 1.0, 1.0), ISOTROPIC, None, None),
        ((3.0000001, 1.0, 1.0), ISOTROPIC, None, 0),
        ((5.0, 5.0, 1.0), (1.0, 1.0, 9.0), None, None),
        ((5.0, 1.0, 1.0), ISOTROPIC, False, None),
        ((1.2, 1.0, 1.0), (1.0, 1.0, 9.0), True, 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 9.0), True, None),
    ],
    ids=[
        "current axis 0",
        "current axis 2",
        "new spacing, axis 1",
        "factor 3 is not enough",
        "just above 3",
        "tie, second test not tried",
        "forced off",
        "forced on reads the current spacing",
        "forced on, tie",
    ],
)
def test_the_separate_axis_follows_the_spacings(
    current: Spacing3, new: Spacing3, force: bool | None, expected: int | None
) -> None:
    assert separate_axis(current, new, force) == expected


def test_planes_refuses_a_wrong_number_of_source_planes() -> None:
    plan = resampler((9, 4, 4), (5, 4, 4), ISOTROPIC, ISOTROPIC, Resampling(order=1, order_z=0))
    with pytest.raises(ValueError, match="need planes"):
        plan.planes(np.zeros((1, 4, 4)), 0, 5, None, np.float64)


@settings(deadline=None, max_examples=40)
@given(
    old=SHAPES,
    new=SHAPES,
    separate=st.sampled_from([None, 0, 1, 2]),
    order=st.sampled_from([0, 1, 3]),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 99),
)
def test_several_volumes_at_once_are_resampled_as_each_alone(
    old: Shape3, new: Shape3, separate: int | None, order: int, dtype: type, seed: int
) -> None:
    volumes: NDArray[np.floating[Any]] = random_volume((3, *old), seed).astype(dtype)
    z, y, x = (4.0 if axis == separate else 1.0 for axis in range(3))
    plan = resampler(old, new, (z, y, x), ISOTROPIC, Resampling.model_validate({"order": order, "order_z": 0}))
    limits = [plan.limits(volume) for volume in volumes]
    used = plan.maps[0].used(0, new[0])
    each = [plan.planes(volume[used], 0, new[0], ends, dtype) for volume, ends in zip(volumes, limits, strict=True)]
    together = plan.planes(
        np.stack([volume[used] for volume in volumes], axis=1),
        0,
        new[0],
        (np.stack([low for low, _ in limits], axis=1), np.stack([high for _, high in limits], axis=1)),
        dtype,
    )
    # A BLAS may add in another order for another number of columns.
    np.testing.assert_allclose(together, np.stack(each, axis=1), rtol=0, atol=ROUNDING if dtype == np.float64 else 1e-5)


def test_a_team_changes_nothing() -> None:
    volume = random_volume((50, 40, 30), 1).astype(np.float32)
    plan = resampler((50, 40, 30), (33, 61, 17), ISOTROPIC, ISOTROPIC, Resampling(order=3, order_z=0))
    alone, shared = np.empty((33, 61, 17), np.float32), np.empty((33, 61, 17), np.float32)
    resample_volume(volume, plan, alone, 200_000)
    with Team(3) as team:
        resample_volume(volume, plan, shared, 200_000, team)
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_axis_wider_than_one_product_equals_the_whole_matrix(axis: int, order: int) -> None:
    # 400 to 300 by splines has bands of some 90 weights: 16 rows of them leave room for less than 200 columns.
    axis_map = AxisMap(axis_matrix(400, 300, order))
    planes = random_volume((2, 400, 700) if axis == -2 else (2, 700, 400), 4)
    expected = np.moveaxis(np.tensordot(axis_map.matrix, planes, (1, axis)), 0, axis)
    np.testing.assert_allclose(axis_map.apply(planes, axis), expected, rtol=0, atol=ROUNDING)


def test_the_callers_volume_is_not_modified_by_clipping() -> None:
    volume = random_volume((4, 5, 6), 2)
    volume.setflags(write=False)
    plan = resampler((4, 5, 6), (4, 9, 9), (9.0, 1.0, 1.0), ISOTROPIC, Resampling(order=3, order_z=0))
    before = volume.copy()
    resample_volume(volume, plan, np.empty((4, 9, 9)), budget_bytes=1)
    np.testing.assert_array_equal(volume, before)
