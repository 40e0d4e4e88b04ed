"""Whole scans whose scores stay on the GPU: with NumPy in CuPy's place and a network that leaves them there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy import Segmenter
from masksam_deploy.base.errors import BackendError, MissingDependencyError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.cli import app
from masksam_deploy.runtimes import open_chain
from masksam_deploy.scan_path.gpu_arrays import open_cupy
from tests.engines.small_bundle import ball_scan, make_bundle, write_ball_scans
from tests.scan_path.on_gpu.numpy_arrays import numpy_arrays


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("balls") / "balls.masksam")


class LeavesScores:
    """A network as TensorRT's: its scores stay, unless they are asked for on the host."""

    def __init__(self, bundle: Bundle, spare: int | None) -> None:
        self._chain: Any = open_chain(bundle, threads=1)
        self._spare = spare
        self.stayed = 0
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    def predict_on_gpu(self, images: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for scores in self._chain.predict_all(images):
            self.stayed += 1
            yield scores

    def spare_vram(self) -> int | None:
        return self._spare

    def close(self) -> None:
        self.closed = True
        self._chain.close()


@pytest.fixture
def with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksam_deploy.scan_path.segmenter.open_cupy", numpy_arrays)


@pytest.mark.usefixtures("with_numpy")
@pytest.mark.parametrize("spare", [None, 2**30])
def test_the_label_map_is_the_hosts(bundle: Bundle, spare: int | None) -> None:
    scan = ball_scan(0)[0]
    network: Any = LeavesScores(bundle, spare)
    with Segmenter(bundle, network=network, scores_on="gpu") as segmenter:
        labels, report = segmenter(scan)
    with Segmenter(bundle, threads=1) as segmenter:
        expected, plain = segmenter(scan)
    np.testing.assert_array_equal(labels.array, expected.array)
    assert len(np.unique(labels.array)) > 1
    assert network.stayed == report.scan["windows"]
    assert (report.settings["scores_on"], plain.settings["scores_on"]) == ("gpu", "cpu")
    assert "scores_on_cpu_because" not in report.scan


@pytest.mark.usefixtures("with_numpy")
def test_a_scan_for_which_the_gpu_has_no_room_takes_the_hosts_way_and_says_so(bundle: Bundle) -> None:
    scan = ball_scan(0)[0]
    network: Any = LeavesScores(bundle, 2**10)
    with Segmenter(bundle, network=network, scores_on="gpu") as segmenter:
        labels, report = segmenter(scan)
    with Segmenter(bundle, threads=1) as segmenter:
        expected, _ = segmenter(scan)
    np.testing.assert_array_equal(labels.array, expected.array)
    assert network.stayed == 0
    assert "of GPU memory besides the network" in str(report.scan["scores_on_cpu_because"])


@pytest.mark.usefixtures("with_numpy")
def test_a_network_whose_scores_come_to_the_host_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="expected an engine of TensorRT"):
        Segmenter(bundle, threads=1, scores_on="gpu")


def test_infer_refuses_what_cannot_stay_and_writes_nothing(bundle: Bundle, tmp_path: Path) -> None:
    scan, out = write_ball_scans(tmp_path / "scans", range(1)), tmp_path / "labels.nii.gz"
    arguments = ["infer", str(next(scan.iterdir())), "-b", str(bundle.path), "-o", str(out), "--scores-on", "gpu"]
    with pytest.raises(BackendError, match="--scores-on gpu: found a network whose scores come to the host"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not out.exists()


@pytest.mark.usefixtures("with_numpy")
def test_float16_sums_are_refused_and_the_network_is_closed(bundle: Bundle) -> None:
    network: Any = LeavesScores(bundle, None)
    with pytest.raises(BackendError, match="expected float32"):
        Segmenter(bundle, network=network, accumulator="float16", scores_on="gpu")
    assert network.closed


def test_without_cupy_the_error_names_what_to_install(bundle: Bundle) -> None:
    try:
        import cupy  # noqa: F401
    except ModuleNotFoundError:
        network: Any = LeavesScores(bundle, None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'masksam-deploy\[gpu-scores\]'"):
            Segmenter(bundle, network=network, scores_on="gpu")
    else:
        pytest.skip("CuPy is installed")


def test_what_is_used_of_the_library_is_in_cupy() -> None:
    cupy = pytest.importorskip("cupy")
    sources = (Path(__file__).parents[3] / "masksam_deploy" / "scan_path").glob("*gpu*.py")
    used = {name for source in sources for name in re.findall(r"\bxp\.(\w+)", source.read_text(encoding="utf-8"))}
    assert used
    assert [name for name in sorted(used) if not hasattr(cupy, name)] == []


@pytest.mark.gpu
def test_cupy_works_here() -> None:
    pytest.importorskip("cupy")
    arrays = open_cupy()
    ones = arrays.xp.ones((2, 3), np.float32)
    arrays.finish()
    np.testing.assert_array_equal(arrays.to_host(ones), np.ones((2, 3)))
    arrays.release()
