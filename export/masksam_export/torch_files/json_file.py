"""Reads JSON files that may be hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.torch_files.plain_values import Copier, DamagedError, no_leaf
from masksam_export.torch_files.quoting import reason
from masksam_export.torch_files.safe_load import open_regular

MAX_JSON_BYTES = 16 * 2**20


def read_json(path: str | Path) -> Any:
    """What an nnU-Net JSON file holds, as plain values.

    Raises:
        CheckpointError: no regular file, larger than 16 MiB, not UTF-8, not JSON, nested deeply, with a name twice in
            one object, or with text or numbers beyond any use.
    """
    file = one_line(str(path))
    try:
        with open_regular(Path(path), "an nnU-Net JSON file") as stream:
            data = (
                stream.read(MAX_JSON_BYTES + 1) or b""
            )  # nothing, where the system's own files would have it waited for
        if len(data) > MAX_JSON_BYTES:
            raise CheckpointError(f"'{file}' is larger than {MAX_JSON_BYTES >> 20} MiB; expected an nnU-Net JSON file")
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        return Copier(no_leaf).copy(value)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"'{file}' cannot be read as JSON: {reason(error)}; expected nnU-Net's plans.json or dataset.json: get "
            "the file again"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))  # type: ignore[func-returns-value]
        raise DamagedError(f"it has '{one_line(twice, limit=60)}' twice in one object")
    return found
