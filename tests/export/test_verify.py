"""What the export's own verification forgives, and what it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from masksam_deploy.base.errors import ExportError, ParityError
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_export.families.base import Mask, Reference
from masksam_export.families.example_windows import example_windows
from masksam_export.families.masksam.graphs import graph_parts
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.references import reference_outputs
from masksam_export.verify import verify_chain
from tests.export.golden import Golden


@pytest.fixture(scope="module")
def model() -> MaskSAM:
    return Golden.read("tiny_acdc").model()


@pytest.fixture(scope="module")
def graphs(model: MaskSAM) -> tuple[Graph, ...]:
    with graph_parts(model) as parts:
        return tuple(Graph(name=p.name, file=f"{p.name}.onnx", inputs=p.inputs, outputs=p.outputs) for p in parts)


@pytest.fixture(scope="module")
def reference(model: MaskSAM) -> Reference:
    return reference_outputs(model, example_windows(model.config.input_shape)["structured"])


def with_other_prompts(
    model: MaskSAM, reference: Reference, *, mask: Any = None, box: float = 0.0, **may_differ: Mask
) -> Reference:
    """A reference whose own rounding went the other way at one mask pixel or one box edge."""
    ports = {name: array.copy() for name, array in reference.ports.items()}
    if mask is not None:
        ports["mask_prompts"][mask] = 1 - ports["mask_prompts"][mask]
    ports["box_prompts"][0, 0, 0, 0] += box
    with torch.inference_mode():
        logits, masks = model.decode(
            torch.from_numpy(ports["embedding"]).flatten(0, 1),
            torch.from_numpy(ports["mask_prompts"]).flatten(0, 2)[:, None],
            torch.from_numpy(ports["box_prompts"]).reshape(-1, 4),
            torch.from_numpy(ports["class_tokens"]).flatten(0, 2)[:, None],
            model.sam_model.prompt_encoder.image_positions(),
        )
        ports["semseg"] = model.semantic_scores(logits, masks).contiguous().numpy()
    return replace(reference, ports=ports, may_differ={**reference.may_differ, **may_differ})


def only(reference: Reference, port: str, place: Any) -> Mask:
    """A mask that lets a port differ in one place."""
    mask = np.zeros(reference.ports[port].shape, bool)
    mask[place] = True
    return mask


def verify(folder: Path, graphs: tuple[Graph, ...], reference: Reference) -> dict[str, Any]:
    figures = verify_chain(folder, graphs, {"structured": reference}, "argmax", batched=False)["structured"]
    assert isinstance(figures, dict)
    return figures


PIXEL = (0, 1, 2, 5, 5)


def test_equal_prompts_are_compared_through_the_whole_chain(
    golden_graphs: dict[str, Path], graphs: tuple[Graph, ...], reference: Reference
) -> None:
    figures = verify(golden_graphs["tiny_acdc"], graphs, reference)
    assert figures["mask_prompts_ties"] == figures["box_prompts_ties"] == 0
    assert figures["semseg_max_abs_error"] < 1e-3


def test_a_mask_pixel_on_the_threshold_is_a_tie_and_counted(
    golden_graphs: dict[str, Path], graphs: tuple[Graph, ...], model: MaskSAM, reference: Reference
) -> None:
    other = with_other_prompts(model, reference, mask=PIXEL, mask_prompts=only(reference, "mask_prompts", PIXEL))
    figures = verify(golden_graphs["tiny_acdc"], graphs, other)
    assert figures["mask_prompts_ties"] == 1
    assert figures["semseg_max_abs_error"] < 1e-3


def test_a_mask_pixel_that_differs_off_the_threshold_is_a_disagreement(
    golden_graphs: dict[str, Path], graphs: tuple[Graph, ...], model: MaskSAM, reference: Reference
) -> None:
    nowhere = np.zeros(reference.ports["mask_prompts"].shape, bool)
    other = with_other_prompts(model, reference, mask=PIXEL, mask_prompts=nowhere)
    with pytest.raises(ParityError, match=r"on 'mask_prompts' .* 1 values are not equal away from its thresholds"):
        verify(golden_graphs["tiny_acdc"], graphs, other)


def test_a_box_edge_on_a_whole_pixel_is_a_tie(
    golden_graphs: dict[str, Path], graphs: tuple[Graph, ...], model: MaskSAM, reference: Reference
) -> None:
    other = with_other_prompts(model, reference, box=4.0, box_prompts=only(reference, "box_prompts", (0, 0, 0)))
    assert verify(golden_graphs["tiny_acdc"], graphs, other)["box_prompts_ties"] == 1


def test_a_box_edge_that_differs_for_no_reason_is_a_disagreement(
    golden_graphs: dict[str, Path], graphs: tuple[Graph, ...], model: MaskSAM, reference: Reference
) -> None:
    nowhere = np.zeros(reference.ports["box_prompts"].shape, bool)
    other = with_other_prompts(model, reference, box=4.0, box_prompts=nowhere)
    with pytest.raises(ParityError, match=r"on 'box_prompts' .* 1 values are not equal"):
        verify(golden_graphs["tiny_acdc"], graphs, other)


def identity_graph(folder: Path, shape: tuple[int, ...]) -> Graph:
    """A graph whose class scores are its image."""
    batched: list[str | int | None] = ["B", *shape[1:]]
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, batched) for name in ("image", "semseg")]
    node = onnx.helper.make_node("Identity", ["image"], ["semseg"])
    made = onnx.helper.make_model(
        onnx.helper.make_graph([node], "decoder", ports[:1], ports[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(made, str(folder / "decoder.onnx"))
    image, semseg = (Port(name=name, dtype="float32", shape=("B", *shape[1:])) for name in ("image", "semseg"))
    return Graph(name="decoder", file="decoder.onnx", inputs=(image,), outputs=(semseg,))


def test_overlapping_regions_with_almost_the_same_scores_are_no_disagreement(tmp_path: Path) -> None:
    """Which region is higher differs on both sides, and means nothing: each is decided by itself."""
    outer = np.random.default_rng(0).uniform(-3, 3, (1, 1, 2, 32, 32))
    scores = np.concatenate([outer, outer + 3e-4], axis=1).astype(np.float32)
    moved = scores + np.array([4e-4, -4e-4], np.float32).reshape(1, 2, 1, 1, 1)
    expected = np.where(np.abs(scores) < 1e-3, scores, moved)
    reference = Reference({"image": scores, "semseg": expected})
    graph = identity_graph(tmp_path, scores.shape)
    figures = verify_chain(tmp_path, [graph], {"noise": reference}, "regions", batched=False)["noise"]
    assert isinstance(figures, dict)
    assert figures["regions_agreement_without_ties"] == figures["regions_agreement"] == 1.0
    with pytest.raises(ParityError, match="same class on"):
        verify_chain(tmp_path, [graph], {"noise": reference}, "argmax", batched=False)


def test_a_region_that_takes_other_voxels_is_a_disagreement(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).uniform(2e-4, 4e-4, (1, 2, 2, 32, 32)).astype(np.float32)
    reference = Reference({"image": scores, "semseg": -scores})
    graph = identity_graph(tmp_path, scores.shape)
    with pytest.raises(ParityError, match="same class on"):
        verify_chain(tmp_path, [graph], {"noise": reference}, "regions", batched=False)


def test_example_inputs_are_normalised_different_and_repeatable(model: MaskSAM) -> None:
    first, again = example_windows(model.config.input_shape), example_windows(model.config.input_shape)
    assert set(first) == {"noise", "structured"}
    for name, image in first.items():
        assert image.shape == (1, *model.config.input_shape)
        assert abs(float(image.mean())) < 1e-5
        assert float(image.std()) == pytest.approx(1, abs=1e-4)
        assert np.array_equal(image, again[name])
    assert not np.allclose(first["noise"], first["structured"])


def test_scores_may_differ_where_the_reference_says_so_and_only_there(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).uniform(-3, 3, (1, 2, 2, 32, 32)).astype(np.float32)
    expected = scores.copy()
    expected[0, :, 1, 5, 5] += [2, -2]
    graph = identity_graph(tmp_path, scores.shape)
    may_differ = expected != scores
    reference = Reference({"image": scores, "semseg": expected}, {"semseg": may_differ})
    figures = verify_chain(tmp_path, [graph], {"noise": reference}, "argmax", batched=False)["noise"]
    assert isinstance(figures, dict) and figures["semseg_ties"] == 2
    elsewhere = replace(reference, may_differ={"semseg": np.roll(may_differ, 1, axis=-1)})
    with pytest.raises(ParityError, match="maximum error of the class scores 2"):
        verify_chain(tmp_path, [graph], {"noise": elsewhere}, "argmax", batched=False)


def test_values_that_are_not_finite_are_wrong_wherever_they_are(tmp_path: Path) -> None:
    scores = np.zeros((1, 2, 2, 32, 32), np.float32)
    broken = scores.copy()
    broken[0, 0, 0, 0, 0] = np.nan
    graph = identity_graph(tmp_path, scores.shape)
    reference = Reference({"image": broken, "semseg": scores}, {"semseg": np.isnan(broken)})
    with pytest.raises(ParityError, match="maximum error of the class scores inf"):
        verify_chain(tmp_path, [graph], {"noise": reference}, "argmax", batched=False)


@pytest.mark.parametrize(
    ("ports", "mask", "message"),
    [
        ({}, {}, "found no port 'semseg'"),
        ({"semseg": 0.0}, {"semseg": np.zeros(3, bool)}, r"found a mask of shape \(3,\) for port 'semseg'"),
    ],
)
def test_a_familys_reference_that_is_incomplete_is_named(
    ports: dict[str, float], mask: dict[str, Mask], message: str, tmp_path: Path
) -> None:
    image = np.zeros((1, 2, 2, 32, 32), np.float32)
    graph = identity_graph(tmp_path, image.shape)
    reference = Reference({"image": image} | {name: image + value for name, value in ports.items()}, mask)
    with pytest.raises(ExportError, match=message):
        verify_chain(tmp_path, [graph], {"noise": reference}, "argmax", batched=False)
