"""TensorRT 10.3 … 11: engines for the GPU of this machine. **Not yet run on a GPU**: neither it nor its libraries were
at hand. Its calls are checked against the real bindings of 10.3, 10.16 and 11.4, and most of its lines run in the
tests of TensorRT for RTX, which has the same API.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import BackendError, EngineError, MissingDependencyError
from masksam_deploy.base.nvidia import Gpus, find_gpus, jetson_release
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.builder import (
    BuildOptions,
    BuiltEngine,
    Progress,
    check_common,
    refuse,
)
from masksam_deploy.runtimes.spec import Precision, Target
from masksam_deploy.runtimes.tensorrt import timing_cache
from masksam_deploy.runtimes.tensorrt.log import Log
from masksam_deploy.runtimes.tensorrt.network import Recipe, build_engine

OLDEST = (10, 3)
_AMPERE = (8, 0)
_REFUSED = {"gpus": "it builds for the GPU of this machine; target 'rtx' builds for others"}


class TensorRTBuilder:
    """See `Builder`."""

    target: Target = "tensorrt"
    suffix = ".engine"

    def facts(self, options: BuildOptions) -> dict[str, str]:
        """See `Builder.facts`: an engine is bound to all of these, unless it was built to be compatible."""
        del options
        gpus = find_gpus()
        facts = {"tensorrt": str(import_tensorrt().__version__)}
        if gpus.devices:
            facts |= {"gpu": gpus.devices[0].name, "gpus": gpus.devices[0].sm}
        found = {"driver": gpus.driver, "cuda_driver": gpus.cuda, "jetson": jetson_release()}
        return facts | {name: value for name, value in found.items() if value}

    def check(self, options: BuildOptions) -> None:
        """See `Builder.check`."""
        check_common(options)
        refuse(options, self.target, _REFUSED)
        trt = import_tensorrt()
        check_version(str(trt.__version__))
        gpus = find_gpus()
        if not gpus.devices:
            raise EngineError(
                f"target 'tensorrt': found {gpus.problem}, expected the GPU that the engine is for; build on that "
                "machine, or use target 'rtx', which needs none"
            )
        if options.hardware_compatible:
            _check_hardware_compatible(gpus)

    def build(
        self, graph: Path, output: Path, precision: Precision, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        """See `Builder.build`."""
        self.check(options)
        trt = import_tensorrt()
        recipe = recipe_for(trt, options, self.facts(options))
        return build_engine(trt, recipe, graph, output, precision, options, progress)


def recipe_for(trt: Any, options: BuildOptions, facts: Mapping[str, str]) -> Recipe:
    """What only TensorRT does: flags, and the timing cache before and after."""
    notes: list[str] = []

    def configure(config: Any, log: Log) -> None:
        set_options(trt, config, options)
        if options.timing_cache is not None:
            notes.extend(timing_cache.attach(config, options.timing_cache, log))

    def finish(config: Any) -> tuple[str, ...]:
        if options.timing_cache is not None:
            timing_cache.save(config, options.timing_cache)
        return tuple(notes)

    return Recipe(f"TensorRT {trt.__version__}", configure, finish, facts)


def set_options(trt: Any, config: Any, options: BuildOptions) -> None:
    """Turn options into flags."""
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.strip_weights:
        # The weights come back from the same graph: said explicitly, since older versions do not assume it.
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level


def check_version(found: str) -> None:
    """Refuse a TensorRT that is too old.

    Raises:
        EngineError: it is.
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineError(f"found TensorRT {found}, expected {oldest} or newer; needs: {install_line()}")


def import_tensorrt() -> Any:
    """The module `tensorrt`.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and does not load.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise BackendError(f"TensorRT is incomplete: {one_line(str(error))}; needs: {install_line()}") from error
        raise MissingDependencyError("tensorrt", "", "target 'tensorrt'", install_line()) from error
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT is installed but does not load: {one_line(str(error))}; needs: {install_line()}"
        ) from error
    return tensorrt


def install_line() -> str:
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


def _check_hardware_compatible(gpus: Gpus) -> None:
    gpu = gpus.devices[0]
    if jetson_release() is not None or gpu.compute_capability < _AMPERE:
        raise EngineError(
            f"--hardware-compatible: found {gpu.name} ({gpu.sm}), expected an Ampere or newer GPU that is not a "
            "Jetson's; leave it out"
        )
