"""The runtimes that are installed here, and what an engine that is built for one depends on.

Opening engines and building them both ask here, so that opening needs none of the builders.
"""

from __future__ import annotations

import platform
from typing import Any

from masksam_deploy.base.nvidia import find_gpus, jetson_release
from masksam_deploy.base.optional import OptionalPackage
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.onnxruntime import import_runtime

_RTX = OptionalPackage(
    "tensorrt_rtx_bindings", "tensorrt-rtx-cu13-bindings", "rtx", "building for target 'rtx'", "TensorRT for RTX"
)


def onnxruntime_facts(device: Device = "cpu") -> dict[str, str]:
    """What a graph that was built for ONNX Runtime depends on here.

    The file runs elsewhere too; its speed was seen here.

    Raises:
        MissingDependencyError, BackendError: ONNX Runtime is not installed, or does not load.
    """
    facts = {
        "onnxruntime": str(import_runtime(device).__version__),
        "device": device,
        "machine": platform.machine(),
    }
    if device == "cuda":
        gpus = find_gpus()
        found = {"gpu": gpus.devices[0].name if gpus.devices else None, "driver": gpus.driver}
        facts |= {name: value for name, value in found.items() if value}
    return facts


def tensorrt_facts() -> dict[str, str]:
    """What an engine of TensorRT depends on here: it is bound to all of these, unless it was built to be compatible.

    Raises:
        MissingDependencyError, BackendError: TensorRT is not installed, or does not load.
    """
    gpus = find_gpus()
    facts = {"tensorrt": str(import_tensorrt().__version__)}
    if gpus.devices:
        facts |= {"gpu": gpus.devices[0].name, "gpus": gpus.devices[0].sm}
    found = {"driver": gpus.driver, "cuda_driver": gpus.cuda, "jetson": jetson_release()}
    return facts | {name: value for name, value in found.items() if value}


def rtx_facts(gpus: tuple[str, ...] = ()) -> dict[str, str]:
    """What an engine of TensorRT for RTX depends on: the version and the GPUs.

    Args:
        gpus: that it is named for, such as `sm86`; empty for this machine's own. Engines named for a GPU do not depend
            on this machine's.

    Raises:
        MissingDependencyError, BackendError: TensorRT for RTX is not installed, or does not load.
    """
    return {"tensorrt_rtx": str(import_rtx().__version__), "gpus": ",".join(rtx_gpus(gpus))}


def rtx_gpus(gpus: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs that are named, or this machine's first one; empty if it has none."""
    return gpus or tuple(gpu.sm for gpu in find_gpus().devices[:1])


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    return OptionalPackage("tensorrt", "tensorrt", "", "target 'tensorrt'", "TensorRT", tensorrt_install_line).load()


def import_rtx() -> Any:
    """The module `tensorrt_rtx_bindings`.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    return _RTX.load()


def tensorrt_install_line() -> str:
    """How to get TensorRT on this machine."""
    if jetson_release() is not None:
        # JetPack brings it for the system's Python; pip's wheels are for other boards.
        return (
            "sudo apt install nvidia-tensorrt python3-libnvinfer, and an environment made with "
            "'/usr/bin/python3 -m venv --system-site-packages'"
        )
    if platform.system() not in ("Linux", "Windows"):
        return "a machine with Linux or Windows and an NVIDIA GPU (TensorRT is made for no other)"
    cuda = find_gpus().cuda
    major = 12 if cuda is not None and int(cuda.split(".")[0]) < 13 else 13
    return f"pip install tensorrt-cu{major} --extra-index-url https://pypi.nvidia.com"
