"""TensorRT's timing cache: measurements of kernels that make the next build faster, and more alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.text import shown
from masksam_deploy.runtimes.tensorrt.log import Log


def attach(config: Any, path: Path, log: Log) -> list[str]:
    """Let a build start from the measurements in `path`, if it exists. Returns notes: why they were not used.

    Raises:
        EngineError: the file cannot be read.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise EngineError(
            f"--timing-cache {shown(path)}: cannot be read ({error.strerror}); give another path"
        ) from error
    before = len(log.warnings())
    cache = config.create_timing_cache(content)
    # TensorRT takes a cache that it cannot read for an empty one, and says so only in its log.
    usable = cache is not None and len(log.warnings()) == before and config.set_timing_cache(cache, False)
    if usable:
        return []
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return [f"the timing cache {shown(path)} is damaged, or of another TensorRT or GPU: not used, and replaced"]


def save(config: Any, path: Path) -> None:
    """Write the measurements back, old and new.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(config.get_timing_cache().serialize())
