"""Sums on the GPU against the host's, with NumPy in CuPy's place: the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError
from masksam_deploy.scan_path.sums_gpu import GpuSums, bytes_of_sums
from masksam_deploy.scan_path.windows import Pipeline, PredictAll, stream_scores
from tests.scan_path.on_gpu.numpy_arrays import numpy_arrays
from tests.scan_path.recipes import recipe_for

Image = NDArray[np.float32]
PATCH = (4, 8, 8)
CLASSES = 3


def network(image: Image) -> Image:
    """Scores that depend on the place in the window and on what lies there, in changing order of magnitude."""
    place = np.arange(np.prod(PATCH), dtype=np.float32).reshape(PATCH) / 50
    return np.concatenate([np.sin(place * (k + 1)) * 10.0**k + k * image for k in range(CLASSES)], axis=1)


def stream(data: Image, predict: PredictAll, mirror: tuple[int, ...], **how: Any) -> Any:
    run = stream_scores(
        data, PATCH, Pipeline(predict, **how), recipe_for(), mirror_axes=mirror, accumulator="float32", classes=CLASSES
    )
    return np.concatenate([plane for _, plane in run], axis=1)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 11), st.integers(3, 19), st.integers(3, 19)),
    mirror=st.sampled_from([*chain.from_iterable(combinations((0, 1, 2), n) for n in range(4))]),
    batch=st.integers(1, 3),
)
def test_scores_are_the_hosts_to_the_bit(shape: tuple[int, int, int], mirror: tuple[int, ...], batch: int) -> None:
    data = np.random.default_rng(0).standard_normal((1, *shape), np.float32)
    predict = partial(map, network)
    found = stream(data, predict, mirror, batch=batch, sums=partial(GpuSums, numpy_arrays()))
    np.testing.assert_array_equal(found, stream(data, predict, mirror, batch=batch))


def test_a_network_may_write_its_next_scores_over_the_last() -> None:
    data = np.random.default_rng(0).standard_normal((1, 6, 12, 12), np.float32)
    memory = np.empty((1, CLASSES, *PATCH), np.float32)

    def predict(images: Iterator[Image]) -> Iterator[Image]:
        for image in images:
            memory[...] = network(image)
            yield memory

    found = stream(data, predict, (0, 2), sums=partial(GpuSums, numpy_arrays()))
    np.testing.assert_array_equal(found, stream(data, partial(map, network), (0, 2)))


@pytest.mark.parametrize("mirror", [(), (1,)])
def test_scores_that_are_not_finite_are_refused(mirror: tuple[int, ...]) -> None:
    def broken(image: Image) -> Image:
        scores = network(image)
        scores[0, 1, 2, 3, 4] = np.nan
        return scores

    data = np.zeros((1, *PATCH), np.float32)
    with pytest.raises(BackendError, match=r"not finite for the window at \(0, 0, 0\)"):
        stream(data, partial(map, broken), mirror, sums=partial(GpuSums, numpy_arrays()))


def test_float16_sums_are_the_hosts_alone() -> None:
    pipeline = Pipeline(partial(map, network), sums=partial(GpuSums, numpy_arrays()))
    data = np.zeros((1, *PATCH), np.float32)
    with pytest.raises(ValueError, match="expected accumulator 'float32'"):
        stream_scores(data, PATCH, pipeline, recipe_for(), mirror_axes=(), accumulator="float16", classes=CLASSES)


def test_memory_counts_the_sums_of_a_window_deep_and_the_means_of_mirrored_windows() -> None:
    plain = bytes_of_sums(16, (9, 512, 512), (512, 512), 2, mirrored=False)
    mirrored = bytes_of_sums(16, (9, 512, 512), (512, 512), 2, mirrored=True)
    sums = 4 * 17 * 9 * 512 * 512
    assert sums < plain < 1.6 * sums
    assert mirrored - plain == 2 * 2 * 4 * 16 * 9 * 512 * 512
