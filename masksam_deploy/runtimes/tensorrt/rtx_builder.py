"""TensorRT for RTX: engines for named GPUs, built on any machine, with or without a GPU.

Never register a plugin with it: its ONNX parser ends the process when it has made one. Nodes of domain `masksam` are
built from their function bodies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.runtimes.builder import (
    BuildOptions,
    BuiltEngine,
    Progress,
    check_common,
    refuse,
)
from masksam_deploy.runtimes.spec import Precision, Target
from masksam_deploy.runtimes.tensorrt.log import Log
from masksam_deploy.runtimes.tensorrt.network import Recipe, build_engine
from masksam_deploy.runtimes.versions import import_rtx, rtx_facts, rtx_gpus

_REFUSED = {
    "hardware_compatible": "its engines serve every GPU named with --gpu",
    "version_compatible": "its packages lack the lean runtime that such engines need",
    "timing_cache": "it measures nothing while it builds; it keeps a runtime cache where engines run",
    "optimization_level": "it has one level",
}


class RtxBuilder:
    """See `Builder`."""

    target: Target = "rtx"
    suffix = ".rtx"

    def facts(self, options: BuildOptions) -> dict[str, str]:
        """See `Builder.facts`."""
        return rtx_facts(options.gpus)

    def check(self, options: BuildOptions) -> None:
        """See `Builder.check`."""
        check_common(options)
        refuse(options, self.target, _REFUSED)
        trt = import_rtx()
        known = known_gpus(trt)
        what_is_known = f"TensorRT for RTX {trt.__version__} builds for {', '.join(known)}"
        if options.strip_weights and not find_gpus().devices:
            raise EngineError("--strip-weights: found no GPU, which this needs in TensorRT for RTX; leave it out")
        names = rtx_gpus(options.gpus)
        if not names:
            raise EngineError(
                f"target 'rtx': found {find_gpus().problem}, expected the names of GPUs to build for, e.g. "
                f"--gpu sm86,sm89; {what_is_known}"
            )
        unknown = [name for name in names if name not in known]
        if unknown:
            raise EngineError(
                f"target 'rtx': found GPU {', '.join(map(repr, unknown))}, expected some of those below; "
                f"{what_is_known}; use target 'tensorrt' for others"
            )
        if len(set(names)) < len(names):
            raise EngineError(f"target 'rtx': found a GPU twice in {', '.join(names)}, expected each once; correct it")

    def build(
        self, graph: Path, output: Path, precision: Precision, options: BuildOptions, progress: Progress
    ) -> BuiltEngine:
        """See `Builder.build`."""
        self.check(options)
        trt = import_rtx()

        def configure(config: Any, _: Log) -> None:
            names = options.gpus or ("current",)
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.upper()), index)
            if options.strip_weights:
                config.set_flag(trt.BuilderFlag.STRIP_PLAN)

        recipe = Recipe(
            name=f"TensorRT for RTX {trt.__version__}",
            configure=configure,
            finish=lambda _: (),
            facts=self.facts(options),
        )
        return build_engine(trt, recipe, graph, output, precision, options, progress)


def known_gpus(trt: Any) -> tuple[str, ...]:
    """GPUs that this version builds for: `sm75` …, oldest first."""
    names = [name.lower() for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(sorted(names, key=lambda name: int(name[2:])))
