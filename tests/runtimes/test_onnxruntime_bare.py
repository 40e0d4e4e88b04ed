"""Graphs that are not a bundle's: tensors of any form come through, and errors are those of a bundle's graphs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

import onnx
from onnx import NodeProto, TensorProto, helper

from masksam_deploy.base.errors import MemoryLimitError, NetworkCrashError
from masksam_deploy.base.isolation import Workers
from masksam_deploy.runtimes.onnxruntime import BareSession, SessionSettings, process


def bare(path: Path, nodes: list[NodeProto], outputs: list[str]) -> BareSession:
    """A graph of the input `image` of any shape."""
    image, *made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ["image", *outputs])
    graph = helper.make_graph(nodes, "bare", [image], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return BareSession(path, SessionSettings(threads=1, optimised=False))


@pytest.mark.parametrize("when", ["load", "run"])
@pytest.mark.parametrize(
    ("deed", "kind", "part"),
    [("crash", NetworkCrashError, "SIGSEGV, expected it to run"), ("memory", MemoryLimitError, "too little memory")],
)
def test_a_graph_that_is_none_of_a_bundle_has_the_same_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deed: str, when: str, kind: type[Exception], part: str
) -> None:
    workers = Workers("tests.runtimes.planted_runtime")
    monkeypatch.setenv("PLANTED", f"{deed} at {when}")
    monkeypatch.setattr(process, "_FORKED", workers)
    with pytest.raises(kind, match=rf"^graph 'bare\.onnx' .*{part}"):
        bare(tmp_path / "bare.onnx", [helper.make_node("Neg", ["image"], ["made"])], ["made"]).run(
            None, {"image": np.ones(1, np.float32)}
        )
    workers.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_results_take_no_file_descriptors_however_many_are_kept(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    names = [f"made_{i}" for i in range(700)]
    chain = zip(["image", *names], names, strict=False)
    session = bare(
        tmp_path / "many.onnx", [helper.make_node("Neg", [before], [after]) for before, after in chain], names
    )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 20, limits[1]))
    try:
        kept = [session.run(None, {"image": np.full(3, n, np.float32)}) for n in range(30)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for n, results in enumerate(kept):
        np.testing.assert_array_equal(results, [[-n] * 3, [n] * 3] * 350)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3)])
def test_tensors_of_any_shape_and_form_come_through(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Identity", ["image"], ["same"]),
        helper.make_node("Cast", ["image"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["whole"], ["turned"]),
    ]
    session = bare(tmp_path / "any.onnx", nodes, ["same", "turned"])
    image = np.random.default_rng(0).random((*shape, 2), np.float32)[..., 0]  # neighbours are not adjacent
    for given in (image, image.astype(">f4"), np.array(image, order="F")):
        same, turned = session.run(["same", "turned"], {"image": given})
        np.testing.assert_array_equal(same, image, strict=True)
        np.testing.assert_array_equal(turned, -image, strict=True)
    (alone,) = session.run(["turned"], {"image": image})
    np.testing.assert_array_equal(alone, -image, strict=True)
