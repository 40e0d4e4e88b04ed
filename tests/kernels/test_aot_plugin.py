"""The ahead-of-time plugin against TensorRT's real Python side; its libraries and a GPU are not needed for that."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.adapter_formulations import adapter_model, random_tensors, reference_output
from masksam_kernels.arguments import INPUTS, float32_bits
from masksam_kernels.depth_adapter.aot_plugin import register_aot_plugin
from masksam_kernels.depth_adapter.plugin import INTEGERS
from masksam_kernels.pack import read_pack
from masksam_kernels.ptx import without_scratch
from tests.kernels.command import masksam_kernels
from tests.kernels.tensorrt_session import LIBRARIES

ARCHITECTURE = 87
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""All that TensorRT's bindings want of its libraries before anything is called."""


@dataclass(frozen=True)
class TensorRT:
    """A way to ask TensorRT's Python side, in a process of its own, what our plugin told it."""

    libraries: Path
    pack: Path

    def ask(self, cases: list[dict[str, Any]], architecture: int = ARCHITECTURE) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.kernels.tensorrt_session", str(self.libraries), str(self.pack)]
        request = json.dumps({"architecture": architecture, "cases": cases})
        root = Path(__file__).parents[2]
        done = subprocess.run(command, input=request, capture_output=True, text=True, check=False, cwd=root)
        assert done.returncode == 0, done.stderr
        # TensorRT's logger writes to the same place.
        content: dict[str, Any] = json.loads(done.stdout[done.stdout.index('{"answers"') :])
        return content


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory, pack: Path) -> TensorRT:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, 'cc', to make empty libraries in the place of TensorRT's")
    if find_spec("tensorrt_bindings") is None:
        pytest.skip("needs TensorRT's bindings: pip install 'masksam-deploy[dev]' (Linux, Python < 3.14)")
    folder = tmp_path_factory.mktemp("libraries")
    source = folder / "empty.c"
    source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in SYMBOLS))
    for name in LIBRARIES:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True)
    return TensorRT(folder, pack)


def case(**changes: Any) -> dict[str, Any]:
    """One node of an encoder and its profile; `changes` to its attributes, or to the rest."""
    attributes = {"frames": 4, "inner": 1, "height": 14, "width": 14, "channels": 320}
    attributes |= {name: value for name, value in changes.items() if name in attributes}
    whole = attributes["frames"] * attributes["inner"]
    rest = {"epsilon": 1e-6, "dtype": "HALF", "rows": [whole, 50 * whole]}
    rest["shape"] = [25 * whole, attributes["height"], attributes["width"], attributes["channels"]]
    return {
        **rest,
        **{name: value for name, value in changes.items() if name not in attributes},
        "attributes": attributes,
    }


cases = st.builds(
    case,
    frames=st.integers(1, 40),
    inner=st.integers(1, 60),
    height=st.integers(1, 64),
    width=st.integers(1, 64),
    channels=st.sampled_from([64, 320]),
    epsilon=st.floats(0, 1),
)


def test_tensorrt_takes_the_plugin_s_three_functions(tensorrt: TensorRT) -> None:
    """Their names, order, types and returns are what it asks for."""
    names, attributes, same = tensorrt.ask([])["registered"]
    assert names == list(INPUTS)
    assert attributes == [*INTEGERS, "epsilon"]
    assert same


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(cases, min_size=5, max_size=10))
def test_an_engine_gets_the_pack_s_kernel_its_launch_and_its_integers(
    tensorrt: TensorRT, wanted: list[dict[str, Any]]
) -> None:
    pack = read_pack(tensorrt.pack)
    for given_case, told in zip(wanted, tensorrt.ask(wanted)["answers"], strict=True):
        sizes, shape = given_case["attributes"], given_case["shape"]
        kernel = pack.find(ARCHITECTURE, sizes["channels"], "fp16")
        assert told["outputs"] == ["HALF"]
        assert told["combinations"] == [["HALF", "LINEAR"]] * (len(INPUTS) + 1)
        assert told["symbol"] == kernel.symbol
        assert told["ptx"] == without_scratch(pack.ptx(kernel), kernel.name)
        assert told["launch"] == {
            "grid_x": kernel.programs(shape[0], sizes["frames"], sizes["height"], sizes["width"]),
            "grid_y": 1,
            "grid_z": 1,
            "block_x": kernel.threads,
            "block_y": 1,
            "block_z": 1,
            "shared_mem": kernel.shared_bytes,
        }
        expected = [sizes[name] for name in ("frames", "inner", "height", "width")]
        assert told["integers"] == [*expected, float32_bits(given_case["epsilon"])]
        assert told["integers_taken"] == len(expected) + 1  # each an int32: TensorRT refuses others


@pytest.mark.parametrize(
    ("changes", "architecture", "message"),
    [
        ({"rows": [6, 200]}, 87, "6 rows of 14x14 do not divide into 4 frames of 1 rows"),
        ({"rows": [4, 201]}, 87, "201 rows of 14x14 do not divide"),
        ({"shape": [100, 14, 7, 320]}, 87, r"is for images of \[14, 14, 320\], its profile has \[14, 7, 320\]"),
        ({"channels": 192}, 87, "has no kernel for sm_87, 192 channels, fp16; it was built for"),
        ({}, 100, "has no kernel for sm_100, 320 channels, fp16; .*--arch sm_100"),
    ],
)
def test_what_the_kernel_cannot_do_fails_while_the_engine_is_built(
    tensorrt: TensorRT, changes: dict[str, Any], architecture: int, message: str
) -> None:
    (told,) = tensorrt.ask([case(**changes)], architecture)["answers"]
    assert re.search(message, told["error"])


def test_the_pack_s_types_are_offered_together_never_mixed(tensorrt: TensorRT, tmp_path: Path) -> None:
    done = masksam_kernels("build", "-o", tmp_path / "both", "--arch", "sm_87", "--channels", "64")
    assert done.returncode == 0, done.stderr
    (told,) = replace(tensorrt, pack=tmp_path / "both").ask([case(channels=64)])["answers"]
    tensors = len(INPUTS) + 1
    assert told["combinations"] == [["HALF", "LINEAR"]] * tensors + [["BF16", "LINEAR"]] * tensors


@pytest.mark.gpu
def test_an_engine_that_holds_the_kernel_equals_the_reference(tmp_path: Path) -> None:
    """Builds an engine and runs it; not yet run on a GPU."""
    trt = pytest.importorskip("tensorrt", reason="needs TensorRT >= 10.9 itself, not its bindings alone")
    major, minor = torch.cuda.get_device_capability()
    architecture, channels = 10 * major + minor, 64
    options = ("--arch", str(architecture), "--channels", str(channels), "--dtype", "fp32")
    done = masksam_kernels("build", "-o", tmp_path / "p", *options)
    assert done.returncode == 0, done.stderr
    register_aot_plugin(trt, read_pack(tmp_path / "p"), architecture=architecture)
    tensors = random_tensors(6, 4, 5, channels, seed=0)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS))
    parser = trt.OnnxParser(network, logger)
    model = adapter_model(tensors, frames=3, inner=1, body=None)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("hidden", (3, 4, 5, channels), (6, 4, 5, channels), (12, 4, 5, channels))
    config.add_optimization_profile(profile)
    engine = trt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context = engine.create_execution_context()
    hidden = torch.from_numpy(tensors["hidden"]).cuda()
    out = torch.full_like(hidden, float("nan"))
    context.set_input_shape("hidden", tuple(hidden.shape))
    context.set_tensor_address("hidden", hidden.data_ptr())
    context.set_tensor_address("out", out.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    expected = torch.from_numpy(reference_output(tensors, frames=3, inner=1))
    assert float((out.cpu() - expected).norm() / expected.norm()) <= 1e-5  # both float32, in another order of sums
