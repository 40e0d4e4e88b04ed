"""Names of label values, from a bundle or from an nnU-Net `dataset.json`."""

from __future__ import annotations

import json
from pathlib import Path

from masksam_deploy.base.errors import EvaluationError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.metrics.label_maps import GREATEST_LABEL
from masksam_deploy.scan_path.report import label_names


def read_label_names(path: Path) -> dict[int, str]:
    """Read the names of label values.

    Args:
        path: a bundle directory, or an nnU-Net `dataset.json`.

    Returns:
        Label value -> name, without the background (0), ascending by value.

    Raises:
        BundleError: the directory is not a bundle.
        EvaluationError: the file cannot be read, or does not give every name a number of its own.
    """
    # Of a bundle only the manifest is used; hashing the graphs could take longer than the comparison.
    directory = path.is_dir()
    names = label_names(Bundle.load(path, verify=False).manifest.labels) if directory else _names_from_dataset(path)
    found = {value: one_line(name) for value, name in sorted(names.items()) if value != 0}
    if not found:
        raise EvaluationError(
            f"{shown(path)}: found no label besides the background, expected at least one; add the classes"
        )
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse repeated names, of which JSON readers keep only the last."""
    names = [name for name, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the name {twice[0]!r} occurs twice")
    return dict(pairs)


def _names_from_dataset(path: Path) -> dict[int, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise EvaluationError(f"{shown(path)}: cannot be read: {error.strerror}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            f"{shown(path)}: found no usable JSON ({one_line(str(error))}), expected an nnU-Net dataset.json or a "
            "bundle directory; give one of these"
        ) from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise EvaluationError(
            f'{shown(path)}: found no "labels", expected names with their numbers as in nnU-Net; add them'
        )
    names: dict[int, str] = {}
    for name, value in labels.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= GREATEST_LABEL:
            raise EvaluationError(
                f"{shown(path)}: found the label {one_line(name)!r} with {one_line(json.dumps(value))}, expected one "
                f"number from 0 to {GREATEST_LABEL} for each name; regions cannot be evaluated, name single labels"
            )
        if value in names:
            raise EvaluationError(
                f"{shown(path)}: found {one_line(names[value])!r} and {one_line(name)!r} with the same number {value}, "
                "expected a number of its own for each name; correct the file"
            )
        if name == "ignore":
            raise EvaluationError(
                f"{shown(path)}: found an 'ignore' label ({value}), which is not supported; set these voxels to 0 in "
                "both label maps, and remove the name from the file"
            )
        names[value] = name
    return names
