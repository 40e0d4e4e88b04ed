"""Loading engines, with TensorRT for RTX itself: without a GPU it gets as far as its refusal."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes.registry import BuildOptions, open_builder
from masksam_deploy.runtimes.tensorrt.engine import (
    LoadedEngine,
    check_ports,
    is_out_of_memory,
    load_failure,
    new_runtime,
)
from masksam_deploy.runtimes.tensorrt.log import open_log
from masksam_deploy.runtimes.tensorrt.rtx_contexts import new_context, read_cache, write_cache
from tests.runtimes.builders.graphs import TOKENS, WIDTH, write_graph

no_gpu = pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")
REBUILD = "masksam-deploy build-engine heart.masksam --fp16 --target rtx"
X = Port(name="x", dtype="float32", shape=("B", TOKENS, WIDTH))
OUT = Port(name="out", dtype="float32", shape=("B", TOKENS, WIDTH))
GRAPH = Graph(name="encoder", file="encoder.onnx", inputs=(X,), outputs=(OUT,))
FOUND = {"x": ("INPUT", "FLOAT", (-1, TOKENS, WIDTH)), "out": ("OUTPUT", "FLOAT", (-1, TOKENS, WIDTH))}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    return module


@pytest.fixture(scope="module")
def engine(trt: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    options = BuildOptions(gpus=("sm89",))
    return (
        open_builder("rtx").build(write_graph(folder, "fp16"), folder / "e.rtx", "fp16", options, lambda *_: None).file
    )


def load(trt: ModuleType, path: Path) -> LoadedEngine:
    log = open_log(trt)
    runtime = new_runtime(trt, log, host_code=False)
    return LoadedEngine(
        trt, runtime, log, GRAPH, path, rebuild=REBUILD, new_context=lambda loaded: new_context(trt, loaded, None)
    )


@no_gpu
def test_without_a_driver_loading_says_so(trt: ModuleType, engine: Path) -> None:
    with pytest.raises(BackendError, match=r"engine 'encoder' does not load: .*cudaError 35.*masksam-deploy doctor'$"):
        load(trt, engine)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda data: data[:100], "plan.header.size == blobSize failed"),
        (lambda data: b"no engine at all" * 100, "header.magicTag == kEXPECTED_MAGIC_TAG failed"),
    ],
)
def test_a_damaged_engine_is_to_be_built_again(
    trt: ModuleType, engine: Path, tmp_path: Path, content: object, reason: str
) -> None:
    path = tmp_path / "damaged.rtx"
    path.write_bytes(content(engine.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BackendError) as caught:
        load(trt, path)
    assert reason in str(caught.value)
    assert str(caught.value).endswith(f"build it again on this machine: {REBUILD}")


def test_an_engine_of_its_graph_passes() -> None:
    check_ports(GRAPH, FOUND, REBUILD)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"x": ("INPUT", "HALF", (-1, TOKENS, WIDTH))},
            r"tensor 'x': found input HALF \[-1, 10, 64\], expected input F",
        ),
        ({"x": ("OUTPUT", "FLOAT", (-1, TOKENS, WIDTH))}, r"tensor 'x': found output FLOAT"),
        ({"out": ("OUTPUT", "FLOAT", (-1, TOKENS, 32))}, r"tensor 'out': found output FLOAT \[-1, 10, 32\], expected"),
        ({"out": ("OUTPUT", "FLOAT", (1, TOKENS, WIDTH))}, r"tensor 'out': found output FLOAT \[1, 10, 64\], expected"),
        ({"extra": ("OUTPUT", "FLOAT", (-1, 1))}, r"tensor 'extra': found output FLOAT \[-1, 1\], expected none"),
    ],
)
def test_an_engine_of_another_graph_is_refused(
    found: dict[str, tuple[str, str, tuple[int, ...]]], message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        check_ports(GRAPH, FOUND | found, REBUILD)
    assert str(caught.value).endswith(f"the engine is of another graph, build it again: {REBUILD}")


def test_a_tensor_that_is_not_in_the_engine_is_named() -> None:
    with pytest.raises(BackendError, match=r"tensor 'out': found none, expected output FLOAT \[-1, 10, 64\]"):
        check_ports(GRAPH, {"x": FOUND["x"]}, REBUILD)


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", "end other programs"),
        ("Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", "end other programs"),
        ("cudaError 35: CUDA driver version is insufficient for CUDA runtime version", "masksam-deploy doctor"),
        ("The engine plan file is generated on an incompatible device", f"build it again on this machine: {REBUILD}"),
        ("", "it gave no reason; build it again"),
    ],
)
def test_what_to_do_follows_from_what_tensorrt_said(reason: str, advice: str) -> None:
    assert advice in load_failure("encoder", reason, REBUILD)


@pytest.mark.parametrize(
    "text", ["CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was unable to", "cudaErrorMemoryAllocation"]
)
def test_memory_that_is_used_up_is_recognised(text: str) -> None:
    assert is_out_of_memory(text)
    assert not is_out_of_memory("CUDA_ERROR_ILLEGAL_ADDRESS")


def test_compiled_kernels_come_back_as_they_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "encoder.kernels"
    assert read_cache(path, "ab") == b""
    assert write_cache(path, "ab", b"kernels")
    assert read_cache(path, "ab") == b"kernels"
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder.kernels"]


def test_kernels_of_another_engine_are_not_taken(tmp_path: Path) -> None:
    write_cache(tmp_path / "k", "ab", b"kernels")
    assert read_cache(tmp_path / "k", "cd") == b""


@pytest.mark.parametrize("position", [0, 31, 32, -1])
def test_kernels_with_one_flipped_bit_are_not_taken(tmp_path: Path, position: int) -> None:
    write_cache(tmp_path / "k", "ab", b"kernels")
    data = bytearray((tmp_path / "k").read_bytes())
    data[position] ^= 1
    (tmp_path / "k").write_bytes(data)
    assert read_cache(tmp_path / "k", "ab") == b""


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_cut_off_file_of_kernels_is_not_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k").write_bytes(content)
    assert read_cache(tmp_path / "k", "ab") == b""


def test_a_folder_that_cannot_be_written_costs_only_the_kernels(tmp_path: Path) -> None:
    assert not write_cache(tmp_path / "missing" / "k", "ab", b"kernels")
