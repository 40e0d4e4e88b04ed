"""Every name of TensorRT's API that building and running use exists in 10.3, 10.16 and 11.4, and in TensorRT for RTX.

The API files were read from the real bindings wheels by `tensorrt_api/read_api.py`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from masksam_deploy.runtimes import tensorrt

API = Path(__file__).parent / "tensorrt_api"
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
SOURCES = Path(str(tensorrt.__file__)).parent
SESSION = ("engine.py", "log.py")
SHARED = ("network.py", "serialize.py", "inspector.py", "timing_cache.py")

# What these variables (and attributes of the same names) hold wherever TensorRT is used.
CLASSES = {
    "builder": "Builder",
    "cache": "ITimingCache",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "engine": "ICudaEngine",
    "kernels": "IRuntimeCache",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "plan": "IHostMemory",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "tensor": "ITensor",
}

Names = dict[str, set[str]]


def names_used(source: str) -> Names:
    """Class -> its public attributes, from `trt.Class.ATTRIBUTE` and `variable.attribute` (of the variables above)."""
    used: Names = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        match node:
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="trt"), attr=owner), attr=name):
                used.setdefault(owner, set()).add(name)
            case ast.Attribute(value=ast.Name(id="trt"), attr=owner):
                used.setdefault(owner, set())
            case (
                ast.Attribute(value=ast.Name(id=variable), attr=name)
                | ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=variable), attr=name)
            ) if variable.lstrip("_") in CLASSES:
                used.setdefault(CLASSES[variable.lstrip("_")], set()).add(name)
    return used


def missing(used: Names, offered: Names) -> set[str]:
    absent = {owner for owner in used if owner not in offered}
    return absent | {f"{owner}.{name}" for owner in used if owner in offered for name in used[owner] - offered[owner]}


def api(version: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((API / f"{version}.json").read_text())
    return content


def offered(version: str) -> Names:
    return {owner: set(names) for owner, names in api(version)["names"].items()}


def sources(*files: str) -> str:
    return "\n".join((SOURCES / file).read_text() for file in files)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_the_builder_uses_is_in_tensorrt(version: str) -> None:
    assert missing(names_used(sources(*SHARED, "builder.py")), offered(version)) == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_running_engines_takes_is_in_tensorrt(version: str) -> None:
    assert missing(names_used(sources(*SESSION)), offered(version)) == set()


def test_the_search_finds_what_the_builder_uses() -> None:
    used = names_used(sources(*SHARED, "builder.py"))
    assert used["BuilderFlag"] == {"TF32", "VERSION_COMPATIBLE", "REFIT_IDENTICAL", "STRIP_PLAN"}
    assert {"set_flag", "clear_flag", "progress_monitor", "set_timing_cache"} <= used["IBuilderConfig"]
    assert {"get_error", "num_errors", "parse_from_file"} <= used["OnnxParser"]
    assert {"node_name", "desc", "code", "local_function_stack"} <= used["ParserError"]
    assert used["IHostMemory"] == {"nbytes"}
    assert {"serialize"} <= names_used("cache.serialize()")["ITimingCache"]


def test_the_search_finds_what_running_engines_takes() -> None:
    used = names_used(sources(*SESSION, "rtx_contexts.py"))
    assert used["Runtime"] == {"deserialize_cuda_engine", "engine_host_code_allowed"}
    assert used["IExecutionContext"] == {
        "execute_async_v3",
        "get_tensor_shape",
        "infer_shapes",
        "set_device_memory",
        "set_input_shape",
        "set_tensor_address",
        "update_device_memory_size_for_shapes",
    }
    assert {"get_tensor_profile_shape", "get_tensor_dtype", "create_execution_context"} <= used["ICudaEngine"]
    assert used["IRuntimeCache"] == {"deserialize", "serialize"}
    assert {"create_runtime_cache", "cuda_graph_strategy"} <= used["IRuntimeConfig"]
    assert used["ExecutionContextAllocationStrategy"] == {"USER_MANAGED"}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("layer.precision = trt.float16", "ILayer.precision"),
        ("trt.IInt8EntropyCalibrator2()", "IInt8EntropyCalibrator2"),
    ],
)
def test_what_tensorrt_11_dropped_would_be_noticed(line: str, name: str) -> None:
    used = names_used(line)
    used.pop("float16", None)  # a module-level value, not a class
    assert missing(used, offered("10.3.0")) == set()
    assert missing(used, offered("11.4.0.106")) == {name}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_files_say_which_wheel_they_come_from(version: str) -> None:
    content = api(version)
    assert content["version"] == version
    assert version in content["wheel"]
    assert len(content["sha256"]) == 64


def test_all_that_the_builder_uses_is_in_tensorrt_for_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    here = {name: set(dir(kind)) for name, kind in vars(trt).items() if isinstance(kind, type)}
    assert missing(names_used(sources(*SHARED, "rtx_builder.py")), here) == set()
    assert missing(names_used(sources(*SESSION, "rtx_contexts.py")), here) == set()
