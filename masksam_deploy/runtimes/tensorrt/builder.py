"""TensorRT 10.3 … 11: engines for the GPU of this machine. **Not yet run on a GPU**: neither it nor its libraries were
at hand. Its calls are checked against the real bindings of 10.3, 10.16 and 11.4, and most of its lines run in the
tests of TensorRT for RTX, which has the same API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.nvidia import Gpus, find_gpus, jetson_release
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
from masksam_deploy.runtimes.versions import import_tensorrt, tensorrt_facts, tensorrt_install_line

OLDEST = (10, 3)
_AMPERE = (8, 0)
_REFUSED = {"gpus": "it builds for the GPU of this machine; target 'rtx' builds for others"}


class TensorRTBuilder:
    """See `Builder`."""

    target: Target = "tensorrt"
    suffix = ".engine"

    def facts(self, options: BuildOptions) -> dict[str, str]:
        """See `Builder.facts`."""
        del options
        return tensorrt_facts()

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
        raise EngineError(f"found TensorRT {found}, expected {oldest} or newer; needs: {tensorrt_install_line()}")


def _check_hardware_compatible(gpus: Gpus) -> None:
    gpu = gpus.devices[0]
    if jetson_release() is not None or gpu.compute_capability < _AMPERE:
        raise EngineError(
            f"--hardware-compatible: found {gpu.name} ({gpu.sm}), expected an Ampere or newer GPU that is not a "
            "Jetson's; leave it out"
        )
