"""The Dice gate on the GPU itself: engines as they were built, not only the graphs that they were built from.

**Not yet run on a GPU**; on a machine without one it says no and changes nothing, which is tested.
"""

from __future__ import annotations

from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.choose import machine_for, open_engine
from masksam_deploy.engines.gate import Gate, Limits, Verdict
from masksam_deploy.engines.store import Engine, digests, machine_problem
from masksam_deploy.runtimes.cuda.buffers import import_cuda_core
from masksam_deploy.runtimes.cuda.plan import GpuOptions
from masksam_deploy.runtimes.registry import Builder, BuildOptions


def runs_here(builder: Builder, options: BuildOptions) -> bool:
    """Whether this machine's GPU can run what will be built with these options.

    Raises:
        MissingDependencyError, BackendError: it could, but for a package: better said now than after the build.
    """
    if builder.target == "onnxruntime" or options.strip_weights:
        return False
    machine = machine_for(builder.target)
    if machine is None or machine_problem(builder.facts(options), machine) is not None:
        return False
    import_cuda_core()
    return True


def judge_on_device(bundle: Bundle, engine: Engine, gate: Gate, limits: Limits) -> Verdict:
    """Judge engines that are built but not yet stored.

    Raises:
        BackendError: they do not run.
    """
    staged = Engine(engine.folder, engine.record.model_copy(update={"files": digests(engine.folder)}))
    # What the runtime compiles is not kept here: it would be stored as a part of the engine.
    return gate.judge(open_engine(bundle, staged, gpu=GpuOptions(keep_kernels=False)), limits, "the engines on the GPU")
