"""The network on a GPU: with TensorRT, with TensorRT for RTX, and the machinery below them alone.

**Not yet run on a GPU.** Run with: pytest -m gpu --require-gpu tests/runtimes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy import Segmenter, read_volume
from masksam_deploy.base.errors import BackendError, EngineError, MaskSamError, MemoryLimitError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import open_engine
from masksam_deploy.engines.gate import Case
from masksam_deploy.engines.store import Engine
from masksam_deploy.io.cases import find_scans
from masksam_deploy.runtimes import open_chain
from masksam_deploy.runtimes.cuda.plan import GpuOptions
from masksam_deploy.runtimes.registry import BuildOptions, Target, open_builder
from masksam_deploy.runtimes.spec import EngineSpec

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "models" / "masksam-tiny-lv" / "checkpoint_final.pth"
SCAN = ROOT / "examples" / "sunnybrook" / "scan"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("torch")
    from masksam_export.families.masksam.checkpoint import load_checkpoint
    from masksam_export.families.masksam.exportable import exportable
    from masksam_export.onnx_export import export_bundle

    return export_bundle(exportable(load_checkpoint(CHECKPOINT)), tmp_path_factory.mktemp("lv") / "lv.masksam")


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Engine:
    """In float32, so that ONNX Runtime's scores are near; for 1 to 4 windows, tuned for 2."""
    target: Target = request.param
    options = BuildOptions(batches=(1, 2, 4))
    try:
        open_builder(target).check(options)
    except MaskSamError as error:
        pytest.skip(str(error))
    spec = EngineSpec.of(bundle, target, "fp32")
    made = build_engine(bundle, open_builder(target), BuildRequest(spec, options, validation=None))
    return made.engine


def opened(bundle: Bundle, engine: Engine, **options: Any) -> Any:
    """A `TensorRTChain`."""
    return open_engine(bundle, engine, gpu=GpuOptions(**options))


def windows(bundle: Bundle, count: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (count, bundle.channels, *bundle.patch_size)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_scores_are_those_of_onnx_runtime(bundle: Bundle, engine: Engine) -> None:
    image = windows(bundle, 1)
    with open_chain(bundle) as reference:
        expected = reference(image)
    network = open_engine(bundle, engine)
    found = network(image).copy()
    network.close()
    assert found.shape == expected.shape
    assert float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 1e-3
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.999


def test_the_same_scan_gives_the_same_bytes_each_time(bundle: Bundle, engine: Engine) -> None:
    scan = read_volume([SCAN])
    maps = []
    for _ in range(2):
        with Segmenter(bundle, network=open_engine(bundle, engine)) as segmenter:
            first, second = segmenter(scan), segmenter(scan)
        assert first.labels.array.tobytes() == second.labels.array.tobytes()
        assert set(first.report.settings["providers"].values()) == set(segmenter._network.providers.values())
        maps.append(first.labels.array.tobytes())
    assert maps[0] == maps[1]


def test_one_cuda_graph_gives_the_scores_of_the_engines_one_by_one(bundle: Bundle, engine: Engine) -> None:
    image = windows(bundle, 2)
    captured, plain = opened(bundle, engine), opened(bundle, engine, cuda_graph=False)
    assert captured.without_graph is None, captured.without_graph
    assert all("one CUDA graph" in provider for provider in captured.providers.values())
    assert all("no CUDA graph: switched off" in provider for provider in plain.providers.values())
    for _ in range(3):  # both memories
        np.testing.assert_array_equal(captured(image), plain(image))
    captured.close()
    plain.close()


def test_windows_that_run_together_give_nearly_what_they_give_alone(bundle: Bundle, engine: Engine) -> None:
    image = windows(bundle, 4)
    together, alone = opened(bundle, engine, batch=4), opened(bundle, engine, batch=1)
    expected = np.concatenate([alone(image[index : index + 1]).copy() for index in range(4)])
    found = together(image).copy()
    assert float(np.linalg.norm(found - expected) / np.linalg.norm(expected)) < 1e-3
    # A part of a batch does not see what was there before.
    np.testing.assert_array_equal(together(image[:3]).copy(), together(image[:3]))
    together.close()
    alone.close()


def test_working_ahead_changes_nothing(bundle: Bundle, engine: Engine) -> None:
    images = [windows(bundle, 2, seed) for seed in range(7)]
    network = opened(bundle, engine)
    expected = [network(image).copy() for image in images]
    found = [scores.copy() for scores in network.predict_all(iter(images))]
    np.testing.assert_array_equal(found, expected)
    stopped = network.predict_all(iter(images))
    next(stopped)
    stopped.close()
    np.testing.assert_array_equal(network(images[0]), expected[0])
    network.close()


def test_a_tensor_on_the_gpu_goes_in_as_it_is(bundle: Bundle, engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    image = windows(bundle, 2)
    network = opened(bundle, engine)
    expected = network(image).copy()
    np.testing.assert_array_equal(network(torch.from_numpy(image).cuda()), expected)
    np.testing.assert_array_equal(network(torch.from_numpy(image).cuda()[:1]), network(image[:1]))

    class Only:
        """What pycuda's GPUArray offers."""

        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor
            self.__cuda_array_interface__ = tensor.__cuda_array_interface__

    np.testing.assert_array_equal(network(Only(torch.from_numpy(image).cuda())), expected)
    for wrong in (torch.from_numpy(image).cuda().half(), torch.from_numpy(image).cuda().transpose(3, 4)):
        with pytest.raises(BackendError):
            network(wrong)
    network.close()


def test_less_memory_means_fewer_windows_and_then_a_refusal(bundle: Bundle, engine: Engine) -> None:
    network = opened(bundle, engine, batch=4)
    need = network.need
    network.close()
    network = opened(bundle, engine, batch=4, max_vram=need.total - 1)
    assert network.batch < 4
    assert network.need.total < need.total
    network.close()
    with pytest.raises(MemoryLimitError, match=r"weights .*allowed are 1\.0 MiB; raise --max-vram"):
        opened(bundle, engine, max_vram=2**20)


def test_a_full_gpu_is_a_clear_error_and_leaves_nothing_behind(bundle: Bundle, engine: Engine) -> None:
    from cuda.core import Device

    from masksam_deploy.runtimes.cuda.buffers import Gpu

    gpu = Gpu()
    stream = Device(0).create_stream()
    before = gpu.free_bytes()
    assert before is not None
    hog = Device(0).allocate(before - 64 * 2**20, stream=stream)
    stream.sync()
    for _ in range(3):  # no crash, however often it is tried
        with pytest.raises(BackendError, match="end other programs that use this GPU"):
            opened(bundle, engine, batch=4)
    hog.close()
    stream.sync()
    network = opened(bundle, engine, batch=4)
    network(windows(bundle, 4))
    network.close()


def test_closing_gives_the_memory_back(bundle: Bundle, engine: Engine) -> None:
    from masksam_deploy.runtimes.cuda.buffers import Gpu

    gpu = Gpu()
    opened(bundle, engine, batch=4).close()  # what TensorRT and CUDA keep once they were used
    before = gpu.free_bytes()
    for _ in range(5):
        network = opened(bundle, engine, batch=4)
        scores = network(windows(bundle, 4))
        network.close()
        assert np.isfinite(scores).all()  # the array owns its memory
    after = gpu.free_bytes()
    assert before is not None
    assert after is not None
    assert before - after < 32 * 2**20


def test_a_closed_network_and_a_third_run_are_refused(bundle: Bundle, engine: Engine) -> None:
    image = windows(bundle, 1)
    network = opened(bundle, engine)
    runs = [network.submit(image), network.submit(image)]
    with pytest.raises(BackendError, match="found 2 runs under way"):
        network.submit(image)
    np.testing.assert_array_equal(*(network.result(run) for run in runs))
    with pytest.raises(BackendError, match=r"found an image of shape \(9, "):
        network(windows(bundle, 9))
    network.close()
    with pytest.raises(BackendError, match="the network is closed"):
        network(image)


def test_an_engine_with_one_flipped_bit_is_refused_before_it_is_loaded(bundle: Bundle, engine: Engine) -> None:
    path = engine.path(next(iter(engine.record.graphs)))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(EngineError, match="found another file than was built"):
            engine.check_files()
    finally:
        path.write_bytes(content)


def test_scores_that_stay_on_the_gpu_give_the_same_label_map(bundle: Bundle, engine: Engine) -> None:
    pytest.importorskip("cupy")
    scan = read_volume(SCAN)
    found = {}
    for place in ("cpu", "gpu"):
        with Segmenter(bundle, network=opened(bundle, engine), scores_on=place) as segmenter:
            labels, report = segmenter(scan)
            assert "scores_on_cpu_because" not in report.scan
            again = segmenter(scan)[0]
        np.testing.assert_array_equal(again.array, labels.array)
        found[place] = labels.array
    assert (found["cpu"] == found["gpu"]).mean() > 0.99999


def test_compiled_kernels_are_kept_and_damaged_ones_replaced(bundle: Bundle, engine: Engine) -> None:
    if engine.record.target != "rtx":
        pytest.skip("TensorRT compiles nothing at run time")
    image = windows(bundle, 2)
    network = opened(bundle, engine)
    expected = network(image).copy()
    network.close()
    kept = {path: path.read_bytes() for path in engine.folder.glob("*.kernels")}
    assert set(kept) == {engine.folder / f"{name}.kernels" for name in engine.record.graphs}
    for path, content in kept.items():
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    network = opened(bundle, engine)
    np.testing.assert_array_equal(network(image), expected)
    network.close()
    engine.check_files()  # they are no part of the engine


def test_the_gate_judges_the_engines_themselves(bundle: Bundle, engine: Engine) -> None:
    target = engine.record.target
    spec = EngineSpec.of(bundle, target, "fp16")
    case = Case(find_scans([SCAN], bundle.channels)[0])
    request = BuildRequest(spec, validation=(case,), max_mean_loss=0.05, max_class_loss=0.05)
    gate: Any = build_engine(bundle, open_builder(target), request).engine.record.gate
    assert gate["on_device"]["passed"]


@pytest.fixture
def echo() -> Iterator[Any]:
    """Runs whose one engine is a copy: scores are the image. Needs no TensorRT."""
    from cuda.core import Buffer, Stream

    from masksam_deploy.runtimes.cuda.buffers import Gpu
    from masksam_deploy.runtimes.cuda.plan import Need, plan_buffers
    from masksam_deploy.runtimes.cuda.runs import GpuRuns

    image = Port(name="image", dtype="float32", shape=("B", 2, 3))
    scores = Port(name="semseg", dtype="float32", shape=("B", 2, 3))
    plan = plan_buffers([Graph(name="echo", file="echo", inputs=(image,), outputs=(scores,))])
    size = 4 * 4 * 2 * 3

    def copy(addresses: Mapping[str, int], stream: int) -> None:
        source, target = (Buffer.from_handle(addresses[name], size) for name in ("image", "semseg"))
        target.copy_from(source, stream=Stream.from_handle(stream))

    runs = GpuRuns(Gpu(), plan, Need(4, 0, 0, plan.device_bytes(4)))
    runs.start_with(copy)
    yield runs
    runs.close()


def test_scores_can_be_read_where_they_lie(echo: Any) -> None:
    cupy = pytest.importorskip("cupy")
    images = [np.random.default_rng(seed).standard_normal((1 + seed % 4, 2, 3), np.float32) for seed in range(9)]
    for image in images:
        left = echo.result_on_gpu(echo.submit(image))
        assert left.shape == image.shape
        np.testing.assert_array_equal(cupy.asnumpy(cupy.asarray(left)), image)


@pytest.mark.parametrize("captured", [False, True])
def test_what_goes_up_comes_down(echo: Any, captured: bool) -> None:
    if captured:
        assert echo.capture() is None
    images = [np.random.default_rng(seed).standard_normal((1 + seed % 4, 2, 3), np.float32) for seed in range(9)]
    for image in images:
        np.testing.assert_array_equal(echo.result(echo.submit(image)), image)
    first, second = echo.submit(images[0]), echo.submit(images[1])
    np.testing.assert_array_equal(echo.result(first), images[0])
    np.testing.assert_array_equal(echo.result(second), images[1])


def test_a_graph_that_gives_other_scores_is_not_used(echo: Any) -> None:
    plain, own = echo._enqueue, int(echo._compute.handle)

    def does_nothing_when_captured(addresses: Mapping[str, int], stream: int) -> None:
        if stream == own:
            plain(addresses, stream)

    echo.start_with(does_nothing_when_captured)
    assert echo.capture() == "it gave other scores than the engines one after the other"
    image = np.ones((2, 2, 3), np.float32)
    np.testing.assert_array_equal(echo.result(echo.submit(image)), image)


def test_what_cannot_be_captured_runs_without_a_graph(echo: Any) -> None:
    from cuda.core import Stream

    plain = echo._enqueue

    def waits(addresses: Mapping[str, int], stream: int) -> None:
        plain(addresses, stream)
        Stream.from_handle(stream).sync()  # forbidden during capture

    echo.start_with(waits)
    reason = echo.capture()
    assert isinstance(reason, str)
    assert reason
    image = np.ones((2, 2, 3), np.float32)
    np.testing.assert_array_equal(echo.result(echo.submit(image)), image)
