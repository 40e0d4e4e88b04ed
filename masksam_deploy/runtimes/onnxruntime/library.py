"""The onnxruntime module."""

from __future__ import annotations

import os
from typing import Any

from masksam_deploy.base.errors import BackendError, MissingDependencyError
from masksam_deploy.base.text import one_line
from masksam_deploy.runtimes.onnxruntime.settings import SessionSettings

FATAL_ONLY = 4
"""Errors come out as exceptions; ONNX Runtime would also print them, in colours and over several lines."""
LONGEST_REASON = 300


def import_runtime(extra: str = "cpu") -> Any:
    """The onnxruntime module, with its telemetry switched off.

    Since 1.32 importing it writes a device id into the user's home and reports to its makers; it reads the switch
    while it is being imported. A hospital's scanner must do neither.

    Raises:
        MissingDependencyError: it is not installed.
        BackendError: it is installed and broken.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendError(f"ONNX Runtime is installed but incomplete: {_reason(error)}; reinstall it") from error
        raise MissingDependencyError("onnxruntime", extra, "running a bundle") from error
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is installed but does not load: {_reason(error)}; reinstall it") from error
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    return onnxruntime


def runtime_version() -> str:
    """The installed ONNX Runtime."""
    return str(import_runtime().__version__)


def session_options(runtime: Any, settings: SessionSettings) -> Any:
    """ONNX Runtime's own form of the settings."""
    options = runtime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = settings.threads
    # From the second run on, a memory pattern holds one block for all tensors: up to twice what is needed.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = settings.arena
    for key, value in settings.config.items():
        options.add_session_config_entry(key, value)
    if not settings.optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if settings.by_priority:
        options.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    if settings.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = settings.profile
    return options


def _reason(error: Exception) -> str:
    return one_line(str(error), LONGEST_REASON)
