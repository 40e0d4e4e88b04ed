"""What this machine can build and run, and what it lacks: the facts behind `masksam-deploy doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.nvidia import Gpus, find_gpus, jetson_release
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.cuda.buffers import CUDA_CORE
from masksam_deploy.runtimes.onnxruntime import import_runtime
from masksam_deploy.runtimes.registry import BuildOptions, Target, open_builder
from masksam_deploy.runtimes.tensorrt.rtx_builder import known_gpus
from masksam_deploy.runtimes.versions import import_rtx, import_tensorrt


@dataclass(frozen=True)
class Package:
    """One runtime: its version if it loads, else why it does not and how to get it."""

    name: str
    version: str | None
    problem: str | None


@dataclass(frozen=True)
class Ability:
    """One target: None where it works, else what is in the way and what to do."""

    target: str
    build: str | None
    run: str | None


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    machine: dict[str, str]
    gpus: Gpus
    packages: tuple[Package, ...]
    abilities: tuple[Ability, ...]


def diagnose() -> Diagnosis:
    """Look at this machine. Nothing missing is an error; runtimes that are installed are loaded, nothing else is."""
    return Diagnosis(_machine(), find_gpus(), _packages(), _abilities())


def _machine() -> dict[str, str]:
    machine = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu cores": str(os.cpu_count()),
    }
    release = jetson_release()
    return machine | ({"jetson": release} if release else {})


def _packages() -> tuple[Package, ...]:
    return (
        _package("ONNX Runtime", import_runtime),
        _package("TensorRT", import_tensorrt),
        _package("TensorRT for RTX", import_rtx),
        _cuda_core(),
    )


def _package(name: str, load: Callable[[], Any]) -> Package:
    try:
        return Package(name, str(load().__version__), None)
    except MaskSamError as error:
        return Package(name, None, str(error))


def _cuda_core() -> Package:
    """It is looked for, not loaded."""
    from importlib.metadata import version

    if CUDA_CORE.is_installed:
        return Package("cuda-core", version("cuda-core"), None)
    return Package("cuda-core", None, str(CUDA_CORE.missing()))


def _abilities() -> tuple[Ability, ...]:
    cpu, cuda, tensorrt = (
        _refusal("onnxruntime"),
        _refusal("onnxruntime", device="cuda") or find_gpus().problem,
        _refusal("tensorrt"),
    )
    return (
        Ability("onnxruntime on the CPU", cpu, cpu),
        Ability("onnxruntime on the GPU", cuda, cuda),
        Ability("tensorrt", tensorrt, tensorrt or _cuda_core().problem),
        # Without a name, the engine would be for this machine's own GPU: refused if there is none that it knows.
        Ability("rtx", _refusal("rtx", _named_gpu()), _rtx_run_problem()),
    )


def _refusal(target: Target, options: BuildOptions | None = None, *, device: Device = "cpu") -> str | None:
    try:
        open_builder(target, device=device).check(options or BuildOptions())
    except MaskSamError as error:
        return str(error)
    return None


def _named_gpu() -> BuildOptions:
    return BuildOptions() if _rtx_problem() else BuildOptions(gpus=known_gpus(import_rtx())[:1])


def _rtx_run_problem() -> str | None:
    return _rtx_problem() or find_gpus().problem or _refusal("rtx") or _cuda_core().problem


def _rtx_problem() -> str | None:
    return _package("TensorRT for RTX", import_rtx).problem
