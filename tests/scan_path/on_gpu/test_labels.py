"""Labels decided on the GPU against the host's, with NumPy in CuPy's place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.volume import Geometry
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.recipe import Resampling, Scores
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_deploy.scan_path.labels_gpu import labels_on_gpu
from masksam_deploy.scan_path.labels_host import labels_from_scores
from masksam_deploy.scan_path.resample import Shape3
from tests.scan_path.on_gpu.numpy_arrays import numpy_arrays

ScoreArray = NDArray[np.float32]
LINEAR = Scores(resampling=Resampling(order=1, order_z=0))
VALUES = (0, 5, 2, 300)


def frame_of(network: Shape3, scan: Shape3, transpose: Shape3 = (0, 1, 2), margin: int = 0) -> ScanFrame:
    """A scan whose box, inside a margin, has the network grid's extent."""
    order = [transpose.index(axis) for axis in range(3)]
    z, y, x = (scan[order[axis]] + 2 * margin for axis in range(3))
    low, middle, high = ((margin, margin + size) for size in scan)
    spacing = (4.0, 1.0, 1.0)
    target = tuple(s * new / old for s, new, old in zip(spacing, scan, network, strict=True))
    return ScanFrame(
        geometry=Geometry((x, y, z), (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)),
        transpose=transpose,
        box=(low, middle, high),
        scan_spacing=spacing,
        network_spacing=(target[0], target[1], target[2]),
        network_shape=network,
    )


def labels_of(decision: str) -> Labels:
    classes = tuple(Label(name=f"class {value}", value=value) for value in VALUES)
    return Labels.model_validate({"classes": classes, "decision": decision})


def smooth(shape: Shape3) -> ScoreArray:
    """One wave per class."""
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    waves = [
        np.sin(0.7 * (k + 1) * z + k) * np.cos(0.4 * (k + 2) * y) * np.sin(0.3 * (4 - k) * x + 1) for k in range(4)
    ]
    return np.stack(waves).astype(np.float32)


def planes(scores: ScoreArray) -> Iterator[tuple[int, ScoreArray]]:
    return ((z, scores[:, z : z + 1].copy()) for z in range(scores.shape[1]))


sizes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(
    network=sizes,
    scan=sizes,
    transpose=st.permutations((0, 1, 2)),
    decision=st.sampled_from(["argmax", "regions"]),
    order=st.sampled_from([0, 1]),
    order_z=st.sampled_from([0, 1]),
    separate=st.sampled_from([None, True, False]),
)
def test_labels_are_the_hosts_but_for_ties(
    network: Shape3, scan: Shape3, transpose: list[int], decision: str, order: int, order_z: int, separate: bool | None
) -> None:
    z, y, x = transpose
    frame = frame_of(network, scan, (z, y, x), margin=1)
    spec = Scores(
        resampling=Resampling.model_validate({"order": order, "order_z": order_z, "force_separate_z": separate})
    )
    scores, labels = smooth(network), labels_of(decision)
    found = labels_on_gpu(numpy_arrays(), planes(scores), frame, spec, labels)
    expected = labels_from_scores(planes(scores), frame, spec, labels)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # Waves meet on few voxels; there the order of a sum may decide.
    assert np.count_nonzero(found != expected) <= 0.02 * found.size


@pytest.mark.parametrize("order", [0, 1])
def test_samples_behind_the_last_corner_are_the_hosts_too(order: int) -> None:
    # Of eight voxels resized to 26 or 42, rounding puts the last sample behind the eighth.
    frame = replace(frame_of((8, 8, 8), (26, 20, 42), (1, 2, 0)), flip=(0, 2))
    spec = Scores.model_validate({"resampling": {"order": order, "order_z": order, "coordinates": "corners"}})
    scores, labels = smooth((8, 8, 8)), Labels(classes=tuple(Label(name=f"{k}", value=7 - k) for k in range(4)))
    found = labels_on_gpu(numpy_arrays(), planes(scores), frame, spec, labels)
    expected = labels_from_scores(planes(scores), frame, spec, labels)
    assert np.count_nonzero(found != expected) <= 0.001 * found.size
    # Scores of 0 are a tie, which the lowest class wins.
    assert (frame.box_of(found)[-1] == 7).all()
    assert (frame.box_of(found)[:, :, -1] == 7).all()


def test_scores_on_the_scans_own_grid_are_decided_as_they_are() -> None:
    frame = frame_of((5, 7, 8), (5, 7, 8))
    scores = smooth((5, 7, 8))
    scores[1] = scores[2]  # the lower class wins
    scores[:, 0] = 0
    found = labels_on_gpu(numpy_arrays(), planes(scores), frame, LINEAR, labels_of("argmax"))
    np.testing.assert_array_equal(found, np.array(VALUES)[scores.argmax(axis=0)])


def test_far_from_zero_regions_neither_overflow_nor_differ() -> None:
    frame = frame_of((2, 3, 4), (2, 3, 4))
    scores = np.full((4, 2, 3, 4), -1e30, np.float32)
    scores[2, 0], scores[3, 1, 1] = 1e30, 0.5
    found = labels_on_gpu(numpy_arrays(), planes(scores), frame, LINEAR, labels_of("regions"))
    expected = np.zeros((2, 3, 4))
    expected[0], expected[1, 1] = 2, 300
    np.testing.assert_array_equal(found, expected)


def test_splines_are_refused() -> None:
    frame = frame_of((2, 3, 4), (2, 3, 4))
    with pytest.raises(ValueError, match="splines"):
        labels_on_gpu(
            numpy_arrays(), iter(()), frame, Scores(resampling=Resampling(order=3, order_z=0)), labels_of("argmax")
        )


@pytest.mark.parametrize("change", [slice(0, 1), slice(0, 3)])
def test_streams_that_end_early_or_lack_classes_are_refused(change: slice) -> None:
    frame = frame_of((3, 3, 4), (3, 3, 4))
    labels = labels_of("argmax")
    lacking: Any = planes(smooth((3, 3, 4))[change])
    with pytest.raises(BundleError, match="classes"):
        labels_on_gpu(numpy_arrays(), lacking, frame, LINEAR, labels)
    with pytest.raises(ValueError, match="the stream ends"):
        labels_on_gpu(numpy_arrays(), planes(smooth((2, 3, 4))), frame, LINEAR, labels)
