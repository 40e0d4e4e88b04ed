from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from masksam_deploy.base.errors import BackendError
from masksam_deploy.bundle.recipe import Windows
from masksam_deploy.scan_path.sums_host import gaussian_weights, round_to_float16
from masksam_deploy.scan_path.tiles import padded_shape, window_count, window_starts
from masksam_deploy.scan_path.windows import Accumulator, Pipeline, Predict, network_calls, stream_scores
from tests.scan_path.recipes import recipe_for

Shape = tuple[int, int, int]
Image = NDArray[np.float32]
ONE, TWO = recipe_for(channels=1), recipe_for(channels=2)
MIRRORS = [(), (0,), (2,), (1, 2), (0, 1), (0, 1, 2)]


def random_data(shape: tuple[int, ...], seed: int = 0) -> Image:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class FakeNetwork:
    """Scores that depend on the place in the window, so that any misplacement or missing flip shows."""

    def __init__(self, classes: int, patch: Shape, scale: float = 1.0) -> None:
        self.ramp = np.random.default_rng(7).random((classes, *patch)).astype(np.float32) * np.float32(scale)
        self.calls = 0

    def __call__(self, window: Image) -> Image:
        self.calls += 1
        return np.asarray(np.abs(window.sum(axis=1, keepdims=True) + 1) * self.ramp, np.float32)


def whole_volume_scores(
    data: Image, patch: Shape, network: FakeNetwork, mirror_axes: tuple[int, ...], dtype: Any
) -> NDArray[Any]:
    """The documented procedure with all sums in memory, in `dtype`."""
    missing = [max(p - s, 0) for p, s in zip(patch, data.shape[1:], strict=True)]
    low = [m // 2 for m in missing]
    padded = np.pad(data, [(0, 0), *((a, m - a) for a, m in zip(low, missing, strict=True))])
    weights = gaussian_weights(patch).astype(np.float32)
    sums = np.zeros((len(network.ramp), *padded.shape[1:]), dtype)
    totals = np.zeros(padded.shape[1:], dtype)
    starts = [window_starts(s, p) for s, p in zip(padded.shape[1:], patch, strict=True)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                at = (slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
                region = (slice(None), *at)
                window = padded[region][None]
                prediction = network(window)
                for count in range(1, len(mirror_axes) + 1):
                    for subset in combinations(mirror_axes, count):
                        axes = tuple(axis + 2 for axis in subset)
                        prediction += np.flip(network(np.flip(window, axes)), axes)
                prediction /= 2 ** len(mirror_axes)
                sums[region] = (sums[region].astype(np.float32) + prediction[0] * weights).astype(dtype)
                totals[at] = (totals[at].astype(np.float32) + weights).astype(dtype)
    kept = (slice(None), *(slice(a, a + s) for a, s in zip(low, data.shape[1:], strict=True)))
    return np.asarray((sums / totals)[kept])


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        (24, 3, [0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 21]),
        (14, 4, [0, 2, 4, 6, 8, 10]),
        (157, 128, [0, 29]),
        (159, 128, [0, 31]),
        (40, 32, [0, 8]),
        (32, 32, [0]),
        (3, 1, [0, 0, 1, 2, 2]),
    ],
)
def test_windows_start_where_nnunet_starts_them(size: int, patch: int, expected: list[int]) -> None:
    assert window_starts(size, patch) == expected


@given(patch=st.integers(1, 40), extra=st.integers(0, 200), step=st.sampled_from([0.25, 1 / 3, 0.5, 0.75, 1.0]))
def test_windows_cover_the_axis_in_order_without_gaps(patch: int, extra: int, step: float) -> None:
    starts = window_starts(patch + extra, patch, step)
    assert (starts[0], starts[-1]) == (0, extra)
    gaps = np.diff(starts)
    assert ((gaps >= 0) & (gaps <= patch)).all()


@pytest.mark.parametrize(("size", "patch", "step"), [(3, 4, 0.5), (3, 0, 0.5), (4, 4, 0.0), (4, 4, 1.5)])
def test_impossible_windows_are_refused(size: int, patch: int, step: float) -> None:
    with pytest.raises(ValueError, match="cannot place windows"):
        window_starts(size, patch, step)


@pytest.mark.parametrize("patch", [(3, 32, 32), (4, 128, 128), (9, 96, 33), (1, 7, 5), (26, 128, 128)])
def test_weights_equal_scipys_gaussian_of_an_impulse(patch: Shape) -> None:
    impulse = np.zeros(patch)
    impulse[tuple(size // 2 for size in patch)] = 1
    gaussian = gaussian_filter(impulse, [size / 8 for size in patch], mode="constant", cval=0)
    gaussian /= gaussian.max() / 10
    # torch casts float64 to float16 by way of float32.
    expected = gaussian.astype(np.float32).astype(np.float16)
    expected[expected == 0] = expected[expected != 0].min()
    weights = gaussian_weights(patch)
    np.testing.assert_array_equal(weights, expected)
    assert weights.max() == 10
    assert weights.min() > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_to_float16_equals_a_cast_for_every_float16_and_all_between(dtype: Any) -> None:
    numbers = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
    middles = (numbers[1:] + numbers[:-1]) / 2
    values = np.concatenate([numbers, middles, np.nextafter(middles, dtype(0)), np.nextafter(middles, 1e9)])
    values = np.concatenate([values, -values]).astype(dtype)
    expected = values.astype(np.float16).astype(dtype)
    round_to_float16(values)
    np.testing.assert_array_equal(values, expected)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 17), st.integers(1, 13), st.integers(1, 13)),
    patch=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8)),
    mirror_axes=st.sampled_from(MIRRORS),
    accumulator=st.sampled_from(["float16", "float32"]),
    scale=st.sampled_from([1.0, 1e-4]),
    channels=st.integers(1, 2),
    threads=st.integers(1, 3),
)
def test_streamed_scores_equal_whole_volume_sums_to_the_bit(
    shape: Shape,
    patch: Shape,
    mirror_axes: tuple[int, ...],
    accumulator: Accumulator,
    scale: float,
    channels: int,
    threads: int,
) -> None:
    data = random_data((channels, *shape))
    network = FakeNetwork(3, patch, scale)
    stream = stream_scores(
        data,
        patch,
        network,
        recipe_for(channels=channels),
        mirror_axes=mirror_axes,
        accumulator=accumulator,
        classes=3,
        threads=threads,
    )
    planes, pieces = zip(*stream, strict=True)
    assert list(planes) == list(range(shape[0]))
    scores = np.concatenate(pieces, axis=1)
    assert scores.dtype == accumulator
    assert network.calls == network_calls(shape, patch, mirror_axes, Windows())
    expected = whole_volume_scores(data, patch, network, mirror_axes, np.dtype(accumulator).type)
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
@pytest.mark.parametrize("batch", [2, 3, 100])
def test_windows_that_run_together_give_what_they_give_alone(batch: int, mirror_axes: tuple[int, ...]) -> None:
    data, patch = random_data((2, 9, 20, 17)), (4, 8, 8)
    network = FakeNetwork(3, patch)
    sizes: list[int] = []

    def predict_all(images: Iterator[Image]) -> Iterator[Image]:
        for image in images:
            sizes.append(len(image))
            yield np.concatenate([network(window[None]) for window in image])

    def scores(predict: Predict | Pipeline) -> Image:
        return np.concatenate([piece for _, piece in stream_scores(data, patch, predict, TWO, **run)], axis=1)

    run: Any = {"mirror_axes": mirror_axes, "accumulator": "float32", "classes": 3}
    np.testing.assert_array_equal(scores(Pipeline(predict_all, batch)), scores(network))
    assert max(sizes) == min(batch, 4 * 4)  # no more than share their first plane
    assert sum(sizes) == network_calls((9, 20, 17), patch, mirror_axes, Windows())


def test_a_network_may_take_images_before_it_gives_scores() -> None:
    """One buffer for all scores: they are used up before the next are asked for."""
    data, patch = random_data((1, 9, 20, 17)), (4, 8, 8)
    network = FakeNetwork(2, patch)

    def two_ahead(images: Iterator[Image]) -> Iterator[Image]:
        buffer, waiting = np.empty((1, 2, *patch), np.float32), deque[Image]()
        for image in chain(images, [None, None]):
            if len(waiting) == 2 or image is None:
                buffer[...] = network(waiting.popleft())
                yield buffer
            if image is not None:
                waiting.append(image)

    run: Any = {"mirror_axes": (1,), "accumulator": "float16", "classes": 2}
    ahead = [piece.copy() for _, piece in stream_scores(data, patch, Pipeline(two_ahead), ONE, **run)]
    np.testing.assert_array_equal(ahead, [piece for _, piece in stream_scores(data, patch, network, ONE, **run)])


def test_progress_counts_every_run_of_windows_that_run_together() -> None:
    told: list[tuple[int, int]] = []
    network = FakeNetwork(1, (4, 8, 8))
    together = Pipeline(lambda images: (np.concatenate([network(w[None]) for w in image]) for image in images), 3)
    run: Any = {"mirror_axes": (0,), "accumulator": "float32", "classes": 1}
    list(
        stream_scores(random_data((1, 4, 8, 17)), (4, 8, 8), together, ONE, **run, progress=lambda *at: told.append(at))
    )
    assert told == [(6, 8), (8, 8)]


def test_short_axes_are_padded_with_zeros_the_smaller_half_first() -> None:
    seen: list[Image] = []

    def predict(window: Image) -> Image:
        seen.append(window.copy())
        return window

    data = random_data((1, 2, 5, 8)) + 10
    scores = list(stream_scores(data, (5, 8, 8), predict, ONE, mirror_axes=(), accumulator="float32", classes=1))
    assert padded_shape((2, 5, 8), (5, 8, 8), Windows()) == (5, 8, 8)
    np.testing.assert_array_equal(seen, [np.pad(data, [(0, 0), (1, 2), (1, 2), (0, 0)])[None]])
    # One window: score * weight / weight, two float32 roundings.
    np.testing.assert_allclose(np.concatenate([s for _, s in scores], axis=1), data, rtol=3e-7)


def test_planes_leave_as_soon_as_no_later_window_reaches_them() -> None:
    network = FakeNetwork(2, (4, 8, 8))
    stream = stream_scores(
        random_data((1, 12, 12, 8)), (4, 8, 8), network, ONE, mirror_axes=(), accumulator="float32", classes=2
    )
    calls = [network.calls for _ in stream]
    # Two windows for each of the starts 0, 2, 4, 6, 8; the last one finishes four planes.
    assert calls == [2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 10, 10]


def test_progress_counts_every_network_call() -> None:
    seen: list[tuple[int, int]] = []
    data, patch = random_data((1, 6, 8, 12)), (4, 8, 8)
    stream = stream_scores(
        data,
        patch,
        FakeNetwork(2, patch),
        ONE,
        mirror_axes=(1, 2),
        accumulator="float32",
        classes=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    list(stream)
    assert window_count((6, 8, 12), patch, Windows()) == 4
    assert seen == [(4, 16), (8, 16), (12, 16), (16, 16)]


def test_a_network_may_reuse_the_memory_of_its_result() -> None:
    data, patch = random_data((1, 5, 9, 9)), (3, 8, 8)
    network, buffer = FakeNetwork(2, patch), np.empty((1, 2, *patch), np.float32)

    def predict(window: Image) -> Image:
        buffer[...] = network(window)
        return buffer

    reused, fresh = (
        [s for _, s in stream_scores(data, patch, p, ONE, mirror_axes=(0, 2), accumulator="float32", classes=2)]
        for p in (predict, network)
    )
    np.testing.assert_array_equal(reused, fresh)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_name_the_window(bad: float) -> None:
    calls = 0

    def predict(window: Image) -> Image:
        nonlocal calls
        calls += 1
        return np.full_like(window, bad if calls == 6 else 1.0)

    stream = stream_scores(
        random_data((1, 4, 8, 20)), (4, 8, 8), predict, ONE, mirror_axes=(1,), accumulator="float32", classes=1
    )
    with pytest.raises(BackendError, match=r"not finite for the window at \(0, 0, 8\) mirrored along axes"):
        list(stream)


def test_float16_sums_that_overflow_are_an_error_and_float32_ones_are_fine() -> None:
    def predict(window: Image) -> Image:
        return np.full_like(window, 7000.0)

    data = np.zeros((1, 4, 8, 8), np.float32)
    run = {"mirror_axes": (), "classes": 1}
    with pytest.raises(BackendError, match="use the float32 accumulator"):
        list(stream_scores(data, (4, 8, 8), predict, ONE, accumulator="float16", **run))  # type: ignore[arg-type]
    scores = list(stream_scores(data, (4, 8, 8), predict, ONE, accumulator="float32", **run))  # type: ignore[arg-type]
    # score * weight / weight, two float32 roundings.
    np.testing.assert_allclose(scores[0][1], 7000.0, rtol=3e-7)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_score_that_is_not_finite_is_found_in_every_class_and_plane(threads: int) -> None:
    for place in [(0, 0, 0, 0, 0), (0, 2, 3, 7, 7), (0, 1, 2, 5, 0)]:

        def predict(window: Image, place: tuple[int, ...] = place) -> Image:
            scores = np.zeros((1, 3, *window.shape[2:]), np.float32)
            scores[place] = np.nan
            return scores

        stream = stream_scores(
            random_data((1, 4, 8, 8)),
            (4, 8, 8),
            predict,
            ONE,
            mirror_axes=(),
            accumulator="float32",
            classes=3,
            threads=threads,
        )
        with pytest.raises(BackendError, match=r"not finite for the window at \(0, 0, 0\), expected"):
            next(stream)


def test_scores_of_another_shape_are_refused() -> None:
    stream = stream_scores(
        random_data((1, 4, 8, 8)),
        (4, 8, 8),
        FakeNetwork(3, (4, 8, 8)),
        ONE,
        mirror_axes=(),
        accumulator="float32",
        classes=2,
    )
    with pytest.raises(BackendError, match=r"\(1, 3, 4, 8, 8\).*expected \(1, 2, 4, 8, 8\)"):
        list(stream)


@pytest.mark.parametrize(
    "change",
    [
        {"mirror_axes": (3,)},
        {"mirror_axes": (1, 1)},
        {"accumulator": "bfloat16"},
        {"data": np.zeros((1, 4, 8, 8))},
        {"data": np.zeros((4, 8, 8), np.float32)},
    ],
)
def test_contradicting_arguments_are_refused_at_the_call(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "data": np.zeros((1, 4, 8, 8), np.float32),
        "patch": (4, 8, 8),
        "predict": FakeNetwork(2, (4, 8, 8)),
        "recipe": ONE,
        "mirror_axes": (),
        "accumulator": "float32",
        "classes": 2,
    }
    with pytest.raises(ValueError, match=r"mirror_axes|accumulator|expected float32"):
        stream_scores(**{**arguments, **change})
