"""Volumes and names in the report."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from masksam_deploy.base.volume import Geometry, Volume
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.scan_path.report import Stopwatch, label_names, measure_labels

GRID = Geometry((3, 2, 2), (2.0, 5.0, 10.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def classes(*labels: tuple[str, int], decision: str = "argmax") -> Labels:
    return Labels.model_validate(
        {"decision": decision, "classes": [Label(name=name, value=value) for name, value in labels]}
    )


def test_volumes_are_voxels_times_spacing_also_for_labels_that_are_absent() -> None:
    array = np.zeros((2, 2, 3), np.uint8)
    array[0, 0] = 2
    found = measure_labels(Volume(array, GRID), classes(("background", 0), ("a", 1), ("b", 2)))
    assert [(label.name, label.voxels, label.volume_ml) for label in found] == [
        ("background", 9, 0.9),
        ("a", 0, 0.0),
        ("b", 3, 0.3),
    ]


def test_values_beyond_a_byte_are_counted() -> None:
    array = np.full((2, 2, 3), 40_000, np.uint16)
    assert measure_labels(Volume(array, GRID), classes(("bg", 0), ("far", 40_000)))[1].voxels == 12


def test_a_region_painted_over_by_later_ones_is_named_as_the_rest_of_it() -> None:
    names = label_names(classes(("whole", 1), ("core", 2), ("enhancing", 3), decision="regions"))
    assert names == {1: "whole (rest)", 2: "core (rest)", 3: "enhancing"}


def test_regions_that_paint_one_value_are_all_named() -> None:
    names = label_names(classes(("whole", 1), ("core", 2), ("enhancing", 2), decision="regions"))
    assert names == {1: "whole (rest)", 2: "core or enhancing"}


def test_a_stream_is_timed_while_it_makes_items_not_while_they_are_used() -> None:
    def items() -> Iterator[int | None]:
        for item in (3, None, 5):
            time.sleep(0.01)
            yield item

    watch = Stopwatch()
    found = []
    started = time.perf_counter()
    for item in watch.iterate("make", items()):
        found.append(item)
        time.sleep(0.05)
    elapsed = time.perf_counter() - started
    assert found == [3, None, 5]
    # Sleeping never takes less than asked: whatever else the machine does, the rest was not counted.
    assert 0.03 <= watch.seconds["make"] <= elapsed - 0.15
