"""TensorRT is not here; TensorRT for RTX, which has the same API, runs what is its own."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from masksam_deploy.base.errors import BackendError, EngineError, MissingDependencyError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.runtimes.registry import BuildOptions, open_builder
from masksam_deploy.runtimes.tensorrt.builder import check_version, recipe_for, set_options
from masksam_deploy.runtimes.tensorrt.log import open_log
from masksam_deploy.runtimes.tensorrt.network import build_engine
from masksam_deploy.runtimes.versions import tensorrt_install_line
from tests.runtimes.builders.graphs import write_graph

no_tensorrt = pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
# TensorRT for RTX has the calls of the timing cache, without effect.
deprecated = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    module: ModuleType = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    return module


@no_tensorrt
@pytest.mark.skipif(bool(find_gpus().devices), reason="the line depends on the driver")
def test_without_tensorrt_the_exact_line_to_install_it_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install tensorrt-cu13 --extra-index-url https://pypi"):
        open_builder("tensorrt").check(BuildOptions())


def test_a_jetson_is_told_to_use_what_its_system_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr("masksam_deploy.base.nvidia.JETSON_RELEASE", release)
    assert tensorrt_install_line().startswith("sudo apt install nvidia-tensorrt python3-libnvinfer")
    assert "--system-site-packages" in tensorrt_install_line()


def test_bindings_without_their_libraries_are_told_from_no_tensorrt(tmp_path: Path) -> None:
    """What `pip install tensorrt-cu13-bindings` alone leaves behind."""
    (tmp_path / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file: No such file or directory')"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from masksam_deploy.runtimes.registry import BuildOptions, open_builder\n"
        "open_builder('tensorrt').check(BuildOptions())"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert BackendError.__name__ in done.stderr
    assert "does not load: libnvinfer.so.10: cannot open shared object file" in done.stderr


def test_gpus_cannot_be_named_for_tensorrt() -> None:
    with pytest.raises(EngineError, match=r"--gpu cannot be used with target 'tensorrt'.*target 'rtx' builds for"):
        open_builder("tensorrt").check(BuildOptions(gpus=("sm89",)))


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0.post1"])
def test_an_old_tensorrt_is_refused(version: str) -> None:
    with pytest.raises(EngineError, match=f"found TensorRT {version}, expected 10.3 or newer; needs: "):
        check_version(version)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_a_recent_tensorrt_is_taken(version: str) -> None:
    check_version(version)


def test_options_become_flags(rtx: ModuleType) -> None:
    config = rtx.Builder(open_log(rtx)).create_builder_config()
    set_options(rtx, config, BuildOptions())
    flags = rtx.BuilderFlag
    wanted = (flags.VERSION_COMPATIBLE, flags.STRIP_PLAN, flags.REFIT_IDENTICAL)
    assert not any(config.get_flag(flag) for flag in wanted)
    set_options(rtx, config, BuildOptions(version_compatible=True, strip_weights=True, hardware_compatible=True))
    assert all(config.get_flag(flag) for flag in wanted)


@deprecated
def test_the_whole_recipe_runs_and_writes_its_timing_cache(rtx: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    options = BuildOptions(timing_cache=cache, optimization_level=1)
    recipe = recipe_for(rtx, options, {"tensorrt": "none"})
    graph = write_graph(tmp_path, "fp16")
    built = build_engine(rtx, recipe, graph, tmp_path / "out.engine", "fp16", options, lambda *_: None)
    assert cache.stat().st_size > 0
    assert built.notes == ()
    assert built.facts == {"tensorrt": "none"}


@deprecated
def test_a_foreign_timing_cache_is_ignored_with_a_note_and_replaced(rtx: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"of another version" * 20)
    options = BuildOptions(timing_cache=cache)
    recipe = recipe_for(rtx, options, {})
    graph = write_graph(tmp_path, "fp16")
    built = build_engine(rtx, recipe, graph, tmp_path / "out.engine", "fp16", options, lambda *_: None)
    assert built.notes == (
        f"the timing cache {cache} is damaged, or of another TensorRT or GPU: not used, and replaced",
    )
    assert not cache.read_bytes().startswith(b"of another")


@pytest.mark.gpu
def test_tensorrt_builds_on_this_gpu_and_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    graph = write_graph(tmp_path, "fp16")
    output = tmp_path / "out.engine"
    built = open_builder("tensorrt").build(graph, output, "fp16", BuildOptions(), lambda *_: None)
    assert built.precision_found is not None, built.not_read_back
    assert built.precision_found.get("fp16") or built.precision_found.get("fused")
