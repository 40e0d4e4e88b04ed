"""The list of nodes that stay out of int8, as `sensitivity` writes it and `build-engine` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from masksam_deploy.base.atomic import atomic_path
from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.records import Record
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.directory import Bundle, reporting_writes
from masksam_deploy.bundle.rules import ENGINES_DIRECTORY, condensed

DEFAULT_NAME = "exclusions.json"
_LIMIT = 64 * 2**20


class Exclusions(Record):
    """A ranking of layers, and those that stay out of int8."""

    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    excluded: dict[str, list[str]]
    """Graph -> nodes."""
    ranking: list[dict[str, Any]] = Field(default_factory=list)
    """Most harmful first; for people."""
    settings: dict[str, Any] = Field(default_factory=dict)


def default_path(bundle: Bundle) -> Path:
    """Where a bundle's own list lies."""
    return bundle.path / ENGINES_DIRECTORY / DEFAULT_NAME


def read_exclusions(bundle: Bundle, path: Path | None) -> dict[str, list[str]]:
    """Graph -> nodes that stay out of int8.

    Args:
        bundle: that the list must be of.
        path: a list, or None for the bundle's own, if it has one.

    Raises:
        EngineError: no such list, damaged, or of another bundle.
    """
    source = path or default_path(bundle)
    if path is None and not source.is_file():
        return {}
    try:
        if source.stat().st_size > _LIMIT:
            raise EngineError(f"{shown(source)}: found more than {_LIMIT} bytes, expected an exclusion list")
        content = Exclusions.model_validate_json(source.read_bytes(), strict=True)
    except OSError as error:
        raise EngineError(
            f"{shown(source)}: cannot be read ({error.strerror}), expected an exclusion list; write one with "
            "masksam-deploy sensitivity"
        ) from error
    except ValidationError as error:
        raise EngineError(
            f"{shown(source)}: {condensed(error)}; write it again with masksam-deploy sensitivity"
        ) from error
    if content.bundle_sha256 != bundle.sha256:
        raise EngineError(
            f"{shown(source)}: found the list of another bundle, expected that of {shown(bundle.path)}; write it again "
            "with masksam-deploy sensitivity"
        )
    return content.excluded


def write_exclusions(content: Exclusions, path: Path) -> None:
    """Write a list, whole or not at all.

    Raises:
        OutputError: the disk refuses.
    """
    with reporting_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content.model_dump(), indent=2) + "\n", encoding="utf-8")
