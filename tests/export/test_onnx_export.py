"""Exported graphs: valid, clean, chained by port name, and equal to the network."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from masksam_deploy.base.errors import ExportError, OutputError, ParityError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph, Label, Labels, Port
from masksam_deploy.bundle.nnunet import recipe_of
from masksam_export.families.masksam.checkpoint import load_checkpoint
from masksam_export.families.masksam.config import ModelConfig
from masksam_export.families.masksam.exportable import exportable
from masksam_export.families.masksam.graphs import graph_parts
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.official import ACDC
from masksam_export.families.parts import GraphPart
from masksam_export.onnx_export import FORBIDDEN_OPS, check_graph, export_bundle
from masksam_export.run_export import _tell as tell
from tests.export.golden import NAMES, Golden, export_masksam, trained_with
from tests.export.test_model import variations

# float32 in another order of summation, through some forty layers; a hundredth of what an export allows.
CHAIN_TOLERANCE = 1e-4
VARIATIONS = list(variations())
# A block in windows and four global ones are enough to trace: more of them are only slower.
ODD_SIZES = (VARIATIONS[1], replace(VARIATIONS[3], depth=5, global_blocks=(0, 2, 3, 4)))


def run_chain(directory: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """All ports, running each file by the names it declares, as any ONNX user would."""
    tensors = {"image": image}
    for name in ("encoder", "prompt_generator", "decoder"):
        session = onnxruntime.InferenceSession(str(directory / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        feeds = {port.name: tensors[port.name] for port in session.get_inputs()}
        outputs = [port.name for port in session.get_outputs()]
        tensors.update(zip(outputs, session.run(outputs, feeds), strict=True))
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_chained_graphs_equal_the_official_scores(name: str, golden_graphs: dict[str, Path]) -> None:
    golden = Golden.read(name)
    scores = run_chain(golden_graphs[name], golden.arrays["input"])["semseg"]
    found, expected = golden.expected("out/semseg", torch.from_numpy(scores))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CHAIN_TOLERANCE)


@pytest.mark.parametrize("config", ODD_SIZES, ids=lambda config: f"{config.variant}-{config.grid}-{config.frames}")
def test_odd_sizes_and_batches_export_and_agree(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MaskSAM(config).eval().requires_grad_(False)
    images = [torch.randn(batch, *config.input_shape) for batch in (1, 3)]
    expected = [model(image) for image in images]
    export_masksam(model, tmp_path)
    for image, scores in zip(images, expected, strict=True):
        found = run_chain(tmp_path, image.numpy())["semseg"]
        np.testing.assert_allclose(found, scores.numpy(), rtol=0, atol=CHAIN_TOLERANCE)
        assert torch.equal(model(image), scores)  # tracing leaves the network as it was


def test_graphs_are_static_but_for_the_batch_and_hold_no_leftovers(cardiac_bundle: Path) -> None:
    for graph in Bundle.load(cardiac_bundle).manifest.graphs:
        model = onnx.load(cardiac_bundle / graph.file)
        assert {domain.domain: domain.version for domain in model.opset_import} == {"": 20}
        assert not {node.op_type for node in model.graph.node} & FORBIDDEN_OPS
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for value in (*inferred.graph.input, *inferred.graph.output):
            first, *others = value.type.tensor_type.shape.dim
            assert first.dim_param == "B"
            assert all(dim.dim_value > 0 for dim in others)


def test_graphs_hold_no_constant_work_no_duplicates_and_no_traces_of_this_machine(cardiac_bundle: Path) -> None:
    for graph in Bundle.load(cardiac_bundle).manifest.graphs:
        path = cardiac_bundle / graph.file
        model = onnx.load(path)
        constants = {value.name for value in model.graph.initializer}
        assert not [node.name for node in model.graph.node if set(node.input) <= constants]
        copies = Counter((v.data_type, tuple(v.dims), v.raw_data) for v in model.graph.initializer)
        assert max(copies.values()) == 1
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_dead_parts_cost_nothing(cardiac_bundle: Path) -> None:
    decoder = onnx.load(cardiac_bundle / "decoder.onnx")
    names = " ".join(value.name for value in decoder.graph.initializer)
    assert "iou_prediction_head" not in names
    assert "output_hypernetworks_mlps.1" not in names
    assert "not_a_point" not in names


def test_prompts_between_the_graphs_are_exact_in_any_precision(cardiac_bundle: Path) -> None:
    image = np.random.default_rng(0).standard_normal((1, 1, 4, 128, 128)).astype(np.float32)
    ports = run_chain(cardiac_bundle, image)
    assert set(np.unique(ports["mask_prompts"])) <= {0.0, 1.0}
    assert np.array_equal(ports["box_prompts"], np.floor(ports["box_prompts"]))


def test_bundle_records_where_it_came_from_and_how_well_it_agrees(cardiac_bundle: Path, cardiac_case: Path) -> None:
    manifest = Bundle.load(cardiac_bundle).manifest
    trained = load_checkpoint(cardiac_case / "checkpoint_final.pth")
    assert manifest.provenance.source_sha256 == trained.sha256
    assert manifest.recipe == recipe_of(trained.preprocessing, mirror_axes=trained.mirror_axes)
    assert manifest.labels == trained.labels
    assert set(manifest.provenance.parity) == {"noise", "structured", "batch"}
    for figures in manifest.provenance.parity.values():
        assert isinstance(figures, dict)
        assert figures["semseg_max_abs_error"] <= 1e-3  # type: ignore[operator]
    assert json.loads((cardiac_bundle / "manifest.json").read_text())["network"]["variant"] == "p256"


def test_a_bundle_of_regions_is_judged_as_regions_and_says_so(
    cardiac_case: Path,
    golden_graphs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Golden.read("tiny_acdc").model()
    with graph_parts(model) as parts:
        graphs = tuple(Graph(name=p.name, file=f"{p.name}.onnx", inputs=p.inputs, outputs=p.outputs) for p in parts)

    def exported_before(_: object, target: Path, **__: object) -> tuple[Graph, ...]:
        shutil.copytree(golden_graphs["tiny_acdc"], target, dirs_exist_ok=True)
        return graphs

    monkeypatch.setattr("masksam_export.onnx_export.export_graphs", exported_before)
    names = [Label(name=f"region {index}", value=index + 1) for index in range(model.config.classes)]
    trained = replace(
        load_checkpoint(cardiac_case / "checkpoint_final.pth"),
        model=model,
        labels=Labels(decision="regions", classes=tuple(names)),
    )
    bundle = export_bundle(exportable(trained), tmp_path / "regions.masksam")
    for figures in bundle.manifest.provenance.parity.values():
        assert isinstance(figures, dict)
        assert figures["regions_agreement_without_ties"] == 1.0
        assert "argmax_agreement" not in figures
    tell(bundle, 1.0)
    assert "same class on 100.000% of the voxels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("graph", "weight", "message"),
    [
        ("decoder", "classifier_embed_Adapter.bias", "class scores"),
        ("prompt_generator", "image_decoder_seg_layers.0.bias", "mask_prompts"),
        ("encoder", "patch_embed.proj.bias", "tap_0"),
    ],
)
def test_graphs_that_disagree_with_the_network_are_not_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden_graphs: dict[str, Path],
    graph: str,
    weight: str,
    message: str,
) -> None:
    def export_something_else(parts: Iterable[GraphPart], directory: Path, **_: object) -> tuple[Graph, ...]:
        shutil.copytree(golden_graphs["tiny_acdc"], directory, dirs_exist_ok=True)
        nudge(directory / f"{graph}.onnx", weight)
        return tuple(
            Graph(name=part.name, file=f"{part.name}.onnx", inputs=part.inputs, outputs=part.outputs) for part in parts
        )

    monkeypatch.setattr("masksam_export.onnx_export.export_graphs", export_something_else)
    with pytest.raises(ParityError, match=f"{message}.* no bundle was written"):
        export_bundle(trained_with(Golden.read("tiny_acdc").model()), tmp_path / "wrong.masksam")
    assert list(tmp_path.iterdir()) == []


def nudge(path: Path, weight: str) -> None:
    """Change one value of one weight by a little."""
    model = onnx.load(path)
    (found,) = (value for value in model.graph.initializer if value.name.endswith(weight))
    values = onnx.numpy_helper.to_array(found).copy()
    values.flat[-1] += 0.05
    found.CopyFrom(onnx.numpy_helper.from_array(values, found.name))
    onnx.save(model, path)


def test_existing_bundle_is_kept_unless_forced(cardiac_bundle: Path, cardiac_case: Path) -> None:
    before = Bundle.load(cardiac_bundle).sha256
    with pytest.raises(OutputError, match="--force"):
        export_bundle(exportable(load_checkpoint(cardiac_case / "checkpoint_final.pth")), cardiac_bundle)
    assert Bundle.load(cardiac_bundle).sha256 == before


def tiny_graph(path: Path, op: str) -> tuple[Port, Port]:
    shape: list[str | int | None] = ["B", 4]
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    node = onnx.helper.make_node(op, ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "tiny", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path)
    x, y = (Port(name=name, dtype="float32", shape=("B", 4)) for name in ("x", "y"))
    return x, y


def test_graph_check_passes_a_clean_graph_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    x, y = tiny_graph(path, "Relu")
    check_graph(path, (x,), (y,))
    with pytest.raises(ExportError, match="outputs"):
        check_graph(path, (x,), (replace_port(y, (5,)),))
    with pytest.raises(ExportError, match="no valid ONNX"):
        tiny_graph(path, "NoSuchOperator")
        check_graph(path, (x,), (y,))


def replace_port(port: Port, sizes: tuple[int, ...]) -> Port:
    return port.model_copy(update={"shape": ("B", *sizes)})


@pytest.mark.slow
def test_full_size_vit_b_exports_and_agrees(tmp_path: Path) -> None:
    """Many minutes on two cores, and many gigabytes of memory."""
    torch.manual_seed(0)
    model = MaskSAM(replace(ACDC)).eval().requires_grad_(False)
    bundle = export_bundle(trained_with(model), tmp_path / "vit-b.masksam")
    assert sum(digest.bytes for digest in bundle.manifest.files.values()) > 400e6
