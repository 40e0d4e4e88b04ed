"""What TensorRT for RTX needs besides TensorRT: contexts that compile at once, and the kernels that they compiled.

It compiles kernels for this GPU when an engine is first used, and they are kept beside the engine so that the next
start is quick. They are no part of the engine: losing them costs time, nothing else. Since they are code that is run,
and the runtime's own check finds another version or GPU but need not find a flipped bit, a file carries the hash of its
content and of the engine that it belongs to. Reading and writing files is tested; use on a device is **not yet run on
a GPU**.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import OutputError

_DIGEST_BYTES = hashlib.sha256().digest_size


class KernelCache:
    """The compiled kernels of one engine.

    Args:
        path: their file; need not exist.
        engine_hash: of the engine's file, so that no other engine's kernels are taken.
    """

    def __init__(self, path: Path, engine_hash: str) -> None:
        self._path = path
        self._engine_hash = engine_hash
        self._stored = read_cache(path, engine_hash)
        self._kernels: Any = None

    def attach(self, runtime_config: Any) -> None:
        """Give them to a context that is to be made. What the runtime does not take is left out, and later replaced."""
        kernels = runtime_config.create_runtime_cache()
        if self._stored and not kernels.deserialize(self._stored):
            self._stored = b""
        runtime_config.set_runtime_cache(kernels)
        self._kernels = kernels

    def save(self) -> None:
        """Write what was compiled since. If the folder cannot be written, the next start compiles again."""
        memory = self._kernels.serialize()
        content = b"" if memory is None else bytes(memory)
        if content and content != self._stored:
            write_cache(self._path, self._engine_hash, content)


def new_context(trt: Any, engine: Any, kernel_cache: KernelCache | None) -> tuple[Any, object]:
    """See `LoadedEngine`: a context, and its configuration."""
    runtime_config = engine.create_runtime_config()
    runtime_config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    # By default kernels for the shapes in use are compiled in the background and taken when ready: the same scan would
    # give other bytes from run to run.
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
    runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # all engines are captured together
    if kernel_cache is not None:
        kernel_cache.attach(runtime_config)
    return engine.create_execution_context(runtime_config), runtime_config


def read_cache(path: Path, engine_hash: str) -> bytes:
    """The content of a file; empty if it is missing, damaged, or of another engine."""
    try:
        data = path.read_bytes()
    except OSError:
        return b""
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return content if digest == _digest(engine_hash, content) else b""


def write_cache(path: Path, engine_hash: str, content: bytes) -> bool:
    """Write it, complete or not at all; returns whether it could be written."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(_digest(engine_hash, content) + content)
    except OutputError:
        return False
    return True


def _digest(engine_hash: str, content: bytes) -> bytes:
    return hashlib.sha256(engine_hash.encode() + content).digest()
