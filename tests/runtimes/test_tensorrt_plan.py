"""What a chain of engines needs on the GPU, worked out by hand for the example bundle."""

from __future__ import annotations

import json
from math import prod

import pytest

from masksam_deploy.base.errors import BackendError, MemoryLimitError
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.bundle.upgrade import Manifest1
from masksam_deploy.runtimes.cuda.plan import Need, choose_batch, plan_buffers, require_free
from tests.example_bundle import manifest_content

IMAGE = 4 * 2 * 4 * 16 * 32
FEATURES = 4 * 8 * 4 * 2 * 4
TOKENS = 2 * 3 * 8  # float16
SCORES = 4 * 3 * 4 * 16 * 32
MIB = 2**20


def example_graphs() -> tuple[Graph, ...]:
    return Manifest1.model_validate_json(json.dumps(manifest_content() | {"files": {}}), strict=True).graphs


def test_a_tensor_that_several_graphs_name_exists_once() -> None:
    plan = plan_buffers(example_graphs())
    assert plan.window_bytes == {"image": IMAGE, "features": FEATURES, "tokens": TOKENS, "semseg": SCORES}
    assert plan.shapes["features"] == (8, 4, 2, 4)


def test_only_the_image_and_the_scores_leave_the_gpu() -> None:
    plan = plan_buffers(example_graphs())
    assert plan.staged == ("image", "semseg")
    assert plan.resident == ("features", "tokens")


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_images_and_scores_are_there_twice_and_all_else_once(batch: int) -> None:
    expected = batch * (2 * (IMAGE + SCORES) + FEATURES + TOKENS)
    assert plan_buffers(example_graphs()).device_bytes(batch) == expected


def test_an_output_that_nothing_reads_still_has_its_memory() -> None:
    image = Port(name="image", dtype="float32", shape=("B", 2))
    spare = Port(name="spare", dtype="float32", shape=("B", 5))
    plan = plan_buffers([Graph(name="a", file="a", inputs=(image,), outputs=(spare,))])
    assert plan.window_bytes["spare"] == 4 * prod(plan.shapes["spare"]) == 20


def test_a_type_that_engines_do_not_exchange_is_refused() -> None:
    port = Port(name="image", dtype="int64", shape=("B", 2))
    with pytest.raises(
        BackendError, match=r"tensor 'image': found type int64, expected float32 or float16; run .*onnx"
    ):
        plan_buffers([Graph(name="a", file="a", inputs=(port,), outputs=(port,))])


def growing(batch: int) -> Need:
    return Need(batch, weights=100 * MIB, scratch=batch * 50 * MIB, tensors=batch * 10 * MIB)


@pytest.mark.parametrize(
    ("limit", "batch"),
    [(None, 4), (1000 * MIB, 4), (340 * MIB, 4), (340 * MIB - 1, 3), (220 * MIB, 2), (160 * MIB, 1)],
)
def test_the_most_windows_that_fit_run_at_once(limit: int | None, batch: int) -> None:
    assert choose_batch(1, 4, growing, limit) == growing(batch)


def test_the_network_is_left_at_the_batch_that_was_chosen() -> None:
    asked: list[int] = []

    def need(batch: int) -> Need:
        asked.append(batch)
        return growing(batch)

    assert choose_batch(1, 4, need, 220 * MIB).batch == 2
    assert asked == [4, 3, 2]


def test_a_limit_that_not_even_one_window_keeps_to_is_refused_with_all_figures() -> None:
    with pytest.raises(
        MemoryLimitError,
        match=r"needs 160\.0 MiB of GPU memory with 1 window\(s\) at once \(weights 100\.0 MiB, working memory 50\.0 "
        r"MiB, tensors 10\.0 MiB\), allowed are 159\.0 MiB; raise --max-vram, or build .*--batches",
    ):
        choose_batch(1, 4, growing, 159 * MIB)


def test_engines_for_no_fewer_windows_are_not_run_with_fewer() -> None:
    with pytest.raises(MemoryLimitError, match="with 2 window"):
        choose_batch(2, 4, growing, 200 * MIB)


def test_what_the_gpu_has_no_room_for_is_not_tried() -> None:
    require_free(100, 100, "this")
    require_free(100, None, "this")
    with pytest.raises(
        BackendError, match=r"^this needs 2\.0 GiB of GPU memory, free are 1\.0 GiB; end other programs"
    ):
        require_free(2 * 2**30, 2**30, "this")
