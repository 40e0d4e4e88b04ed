"""What a network was measured to cost in faster ways to run it, as a file that `benchmarks/profiles.py` writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from masksam_deploy.base.errors import ExportError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.manifest import Measured

LIMIT = 2**20
"""Bytes. Real files have some kilobytes."""


def read_measured(path: Path, source_sha256: str) -> Measured:
    """The figures of one checkpoint.

    Args:
        path: the file.
        source_sha256: hash of the checkpoint that is exported.

    Raises:
        ExportError: the file cannot be read, holds something else, or is about another checkpoint.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT)
        found = Measured.model_validate_json(data)
    except OSError as error:
        raise ExportError(
            f"--measured: found that {shown(path)} cannot be read ({error.strerror}), expected a file that "
            "benchmarks/profiles.py wrote; check the path"
        ) from error
    except ValidationError as error:
        reason = one_line(str(error.errors()[0]["msg"]))
        raise ExportError(
            f"--measured: found something else in {shown(path)} ({reason}), expected what benchmarks/profiles.py "
            "writes; name that file"
        ) from error
    if found.source_sha256 != source_sha256:
        raise ExportError(
            f"--measured: found figures of the checkpoint with SHA-256 {found.source_sha256[:12]}… in {shown(path)}, "
            f"expected those of this one ({source_sha256[:12]}…); measure this network, or leave the option out"
        )
    return found
