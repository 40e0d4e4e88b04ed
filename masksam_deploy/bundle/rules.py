"""From the bytes of a `manifest.json` to a `Manifest` that the runtime may rely on.

The schema (`manifest.py`) says what a field may hold; the rules here say how fields fit together: the graphs
chain through their ports, and channels, classes and normalisation agree with them. Text from a manifest is
untrusted, so messages show it as `repr`, shortened: one line and no terminal control codes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from masksam_deploy.base.errors import BundleError
from masksam_deploy.bundle.manifest import OLDEST_MAJOR, SCHEMA_VERSION, Graph, Labels, Manifest, Port
from masksam_deploy.bundle.recipe_rules import recipe_problems
from masksam_deploy.bundle.upgrade import Manifest1, upgraded

MANIFEST_NAME = "manifest.json"
MANIFEST_LIMIT = 16 * 2**20
"""Bytes. A real manifest takes some kilobytes; more is refused before it is parsed."""

MOST_VALUES = 100_000
"""Of numbers, texts, lists and objects. A real manifest has some hundred; millions take gigabytes to check."""
LONGEST_TEXT = 65_536
"""Characters of one name or other text."""

ENGINES_DIRECTORY = "engines"
"""Belongs to the machine, not to the bundle: never listed, never packed, never checked."""

KERNELS_DIRECTORY = "kernels"
"""A pack of GPU kernels, where the bundle carries one: files like all others, read by `masksam_kernels.pack`."""

IMAGE_PORT = "image"
SCORES_PORT = "semseg"
_DTYPES = frozenset(["bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32", "float64"])

# An allow-list: it leaves out absolute names, `..`, backslashes, drive letters, streams (`a:b`), hidden
# files, trailing dots, control characters and all that another file system would read as another name.
_PLAIN_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]{0,198}[A-Za-z0-9_+-])?\Z")
_DEVICE_PART = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)


def shown(value: object) -> str:
    """`repr`, shortened to fit into a one-line message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def is_plain_name(name: str) -> bool:
    """Whether `name` is a relative POSIX path of plain parts, the same file on every system."""
    parts = name.split("/")
    return len(name) <= 400 and all(_PLAIN_PART.match(part) and not _DEVICE_PART.match(part) for part in parts)


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Read and check the bytes of a `manifest.json`.

    Args:
        data: the file's bytes, at most `MANIFEST_LIMIT`.
        source: what to call the bundle in messages.

    Raises:
        BundleError: not JSON, an unknown schema version, a field of the wrong kind, or fields that contradict
            each other.
    """
    where = f"{source}: {MANIFEST_NAME}"
    _check_number_of_values(data, where)
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        # Back to text, so that the strict parser below sees exactly what was checked here.
        text = json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError) as exc:
        raise BundleError(
            f"{where}: found text that is not valid JSON ({shown(str(exc))}), expected a JSON object; "
            "copy or export the bundle again"
        ) from exc
    if not isinstance(content, dict):
        raise BundleError(
            f"{where}: found a JSON {type(content).__name__}, expected an object; copy or export the bundle again"
        )
    _check_texts(content, where)
    _check_version(content.get("schema_version"), where)
    try:
        manifest = _manifest_of(text, major=int(str(content["schema_version"]).split(".")[0]), where=where)
    except ValidationError as exc:
        raise BundleError(f"{where}: {condensed(exc)}; export the bundle again") from exc
    except RecursionError as exc:
        raise BundleError(
            f"{where}: found nesting too deep to read, expected a manifest; export the bundle again"
        ) from exc
    check_manifest(manifest, source)
    return manifest


def _manifest_of(text: str, major: int, where: str) -> Manifest:
    if major == OLDEST_MAJOR:
        return upgraded(Manifest1.model_validate_json(text, strict=True), where)
    return Manifest.model_validate_json(text, strict=True)


def check_manifest(manifest: Manifest, source: str) -> None:
    """Check that the fields of a manifest fit together.

    Raises:
        BundleError: the first contradiction found.
    """
    for problem in _problems(manifest):
        raise BundleError(f"{source}: {MANIFEST_NAME}: {problem}; export the bundle again")


def condensed(error: ValidationError) -> str:
    """A pydantic error on one line: the first field at fault, what was found, what was expected."""
    errors = error.errors(include_url=False, include_context=False)
    first = errors[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole document"
    found = "nothing" if first["type"] == "missing" else shown(first["input"])
    more = f" (and {len(errors) - 1} more fields at fault)" if len(errors) > 1 else ""
    return f"field {shown(field)}: found {found}, expected another value: {first['msg']}{more}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        # Readers disagree on which of two equal keys counts, so one of them would not see what was checked.
        raise ValueError("a key occurs twice in one object")
    return content


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _check_number_of_values(data: bytes, where: str) -> None:
    """Refuse text with too many values before it is parsed; those marks that stand within texts count as well."""
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > MOST_VALUES:
        raise BundleError(
            f"{where}: found about {values} values, expected at most {MOST_VALUES}; copy or export the bundle again"
        )


def _check_texts(content: dict[str, Any], where: str) -> None:
    """Refuse texts that no name is as long as: they would be printed."""
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise BundleError(
                f"{where}: found a text of {len(value)} characters, expected at most {LONGEST_TEXT}; copy or export "
                "the bundle again"
            )
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _check_version(version: object, where: str) -> None:
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        found = "nothing" if version is None else shown(version)
        raise BundleError(
            f"{where}: field 'schema_version': found {found}, expected a version like '{SCHEMA_VERSION}'; "
            "export the bundle again"
        )
    major, known = int(version.split(".")[0]), int(SCHEMA_VERSION.split(".", maxsplit=1)[0])
    if major > known:
        todo = "install a newer masksam-deploy, or export the bundle again with this one"
    else:
        todo = "export the bundle again with this masksam-deploy"
    if not OLDEST_MAJOR <= major <= known:
        raise BundleError(
            f"{where}: field 'schema_version': found '{version}', expected a version that this "
            f"masksam-deploy knows ({OLDEST_MAJOR}.x to {known}.x); {todo}"
        )


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _file_problems(manifest)
    yield from _graph_problems(manifest.graphs)
    yield from _end_problems(manifest)
    yield from recipe_problems(manifest.recipe, manifest.labels, _patch(manifest))
    yield from _label_problems(manifest.labels)
    yield from _validation_problems(manifest)
    source = manifest.provenance.source_sha256
    if manifest.measured is not None and manifest.measured.source_sha256 != source:
        found = manifest.measured.source_sha256
        yield f"field 'measured.source_sha256': found {found}, expected {source} of the checkpoint"


def _file_problems(manifest: Manifest) -> Iterator[str]:
    folded: dict[str, str] = {}
    for name in manifest.files:
        field = f"field 'files': found {shown(name)}"
        if not is_plain_name(name):
            yield f"{field}, expected a plain relative file name inside the bundle"
        if name.casefold() == MANIFEST_NAME or name.casefold().split("/")[0] == ENGINES_DIRECTORY:
            yield f"{field}, expected neither {MANIFEST_NAME} nor anything in {ENGINES_DIRECTORY}/"
        if name.casefold() in folded:
            yield (f"{field} and {shown(folded[name.casefold()])}, expected names that differ by more than case")
        folded[name.casefold()] = name
    for key, name in folded.items():
        parents = key.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if "/".join(parents[:depth]) in folded:
                yield f"field 'files': found {shown(name)} inside another file, expected a folder there"
    for graph in manifest.graphs:
        if graph.file not in manifest.files:
            yield f"graph '{graph.name}': found file {shown(graph.file)}, expected one that 'files' lists"
    for case in manifest.validation:
        for name in filter(None, (*case.scans, case.reference)):
            if name not in manifest.files:
                yield f"validation case {shown(case.name)}: found file {shown(name)}, expected one that 'files' lists"


def _graph_problems(graphs: Sequence[Graph]) -> Iterator[str]:
    for what, values in (
        ("name", [graph.name for graph in graphs]),
        ("file", [graph.file for graph in graphs]),
        ("output", [port.name for graph in graphs for port in graph.outputs]),
    ):
        if repeated := _first_repeated(values):
            yield f"field 'graphs': found {what} {repeated} twice, expected every {what} once"
    known: dict[str, Port] = {}
    for graph in graphs:
        if repeated := _first_repeated([port.name for port in graph.inputs]):
            yield f"graph '{graph.name}': found input {repeated} twice, expected every input once"
        for port in (*graph.inputs, *graph.outputs):
            yield from _port_problems(port, graph.name)
        for port in graph.inputs:
            if port.name == IMAGE_PORT:
                known.setdefault(IMAGE_PORT, port)
            if port.name not in known:
                yield (
                    f"graph '{graph.name}': found input {shown(port.name)}, expected '{IMAGE_PORT}' or an "
                    "output of an earlier graph"
                )
            elif (port.dtype, port.shape) != (known[port.name].dtype, known[port.name].shape):
                yield (
                    f"graph '{graph.name}': found input {shown(port.name)} as {_described(port)}, expected "
                    f"{_described(known[port.name])} as it is elsewhere"
                )
        for port in graph.outputs:
            if port.name == IMAGE_PORT:
                yield (f"graph '{graph.name}': found output '{IMAGE_PORT}', expected another name: it is the input")
            known[port.name] = port


def _port_problems(port: Port, graph: str) -> Iterator[str]:
    if port.dtype not in _DTYPES:
        yield (f"graph '{graph}': port {shown(port.name)}: found dtype {shown(port.dtype)}, expected a tensor type")
    if port.shape[:1] != ("B",) or not all(isinstance(dim, int) for dim in port.shape[1:]):
        yield (
            f"graph '{graph}': port {shown(port.name)}: found shape {_described(port)}, expected 'B' and "
            "then whole numbers"
        )


def _end_problems(manifest: Manifest) -> Iterator[str]:
    channels = len(manifest.recipe.channels)
    classes = len(manifest.labels.classes)
    image = next((port for port in manifest.graphs[0].inputs if port.name == IMAGE_PORT), None)
    if image is None:
        return  # said already: an input that is no image and no output
    if image.dtype != "float32" or len(image.shape) != 5 or image.shape[1] != channels:
        yield (
            f"port '{IMAGE_PORT}': found {_described(image)}, expected float32 [B, {channels}, T, H, W] for "
            f"the {channels} entries of 'recipe.channels'"
        )
    last = manifest.graphs[-1]
    scores = next((port for port in last.outputs if port.name == SCORES_PORT), None)
    if scores is None:
        yield (
            f"graph '{last.name}': found outputs {shown([port.name for port in last.outputs])}, expected "
            f"'{SCORES_PORT}' among those of the last graph"
        )
        return
    expected = ("B", classes, *image.shape[2:])
    if scores.dtype != "float32" or scores.shape != expected:
        yield (
            f"port '{SCORES_PORT}': found {_described(scores)}, expected float32 {_listed(expected)} for the "
            f"{classes} entries of 'labels.classes' and the image"
        )


def _patch(manifest: Manifest) -> tuple[int, ...]:
    """Voxels of a window along each axis; empty if the graphs do not say."""
    image = next((port for port in manifest.graphs[0].inputs if port.name == IMAGE_PORT), None)
    return tuple(size for size in image.shape[2:] if isinstance(size, int)) if image else ()


def _label_problems(labels: Labels) -> Iterator[str]:
    if labels.decision == "argmax" and (repeated := _first_repeated([label.value for label in labels.classes])):
        yield f"field 'labels.classes': found value {repeated} twice, expected every class to have its own"


def _validation_problems(manifest: Manifest) -> Iterator[str]:
    channels = len(manifest.recipe.channels)
    for case in manifest.validation:
        if len(case.scans) != channels:
            yield f"validation case {shown(case.name)}: found {len(case.scans)} scans, expected {channels}"
    if repeated := _first_repeated([case.name for case in manifest.validation]):
        yield f"field 'validation': found case {repeated} twice, expected every name once"


def _first_repeated(values: Iterable[object]) -> str:
    """The first value that was there before, for a message, or an empty string."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            return shown(value)
        seen.add(value)
    return ""


def _described(port: Port) -> str:
    return f"{shown(port.dtype)[1:-1]} {_listed(port.shape)}"


def _listed(shape: tuple[int | str, ...]) -> str:
    return shown(list(shape)).replace("'", "")
