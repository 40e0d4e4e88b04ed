"""The tables of `masksam-deploy inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from pydantic import JsonValue
from rich.table import Table
from rich.text import Text

from masksam_deploy.base.tables import add_row, figures, open_console, table, words
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Port, Provenance
from masksam_deploy.bundle.recipe import AxisSize, Channel, Recipe, Resampling, Step, Windows

_TIMES = " × "  # noqa: RUF001 - what people write between sizes
_DECISIONS = {
    "argmax": "the class with the highest score",
    "regions": "classes above 0.5 paint in order, later ones over earlier ones",
}


def report(bundle: Bundle, file: IO[str], *, verified: bool) -> None:
    """Write the tables, in colour only if `file` is a terminal."""
    console = open_console(file)
    manifest = bundle.manifest
    state = "every file matches its hash" if verified else "NOT verified: hashes were skipped"
    console.print(Text(f"{one_line(manifest.name)}  ({shown(bundle.path)})"), style="bold", soft_wrap=True)
    console.print(Text(f"schema {manifest.schema_version}, {state}", style="" if verified else "bold yellow"))
    console.print(Text(f"manifest SHA-256 {bundle.sha256}"), soft_wrap=True)
    console.print(_pairs(f"Network ({manifest.family}, {manifest.contract})", manifest.network))
    console.print(_graphs(bundle))
    console.print(_pairs("Recipe", _recipe(manifest.recipe)))
    console.print(_channels(manifest.recipe.channels))
    console.print(_labels(bundle))
    console.print(_pairs("Inference", _inference(bundle)))
    console.print(_pairs("Provenance", _provenance(manifest.provenance)))
    console.print(_files(bundle))


def _graphs(bundle: Bundle) -> Table:
    made = table("Graphs", (*words("graph", "", "port", "type", "shape"), *figures("bytes", fold=True)))
    for graph in bundle.manifest.graphs:
        size = f"{bundle.manifest.files[graph.file].bytes:,}"
        ports = [("in", port) for port in graph.inputs] + [("out", port) for port in graph.outputs]
        for index, (direction, port) in enumerate(ports):
            first = index == 0
            cells = (graph.name if first else "", direction, *_port_cells(port), size if first else "")
            add_row(made, cells, end_section=index == len(ports) - 1)
    return made


def _port_cells(port: Port) -> tuple[str, str, str]:
    return (port.name, port.dtype, _sizes(port.shape))


def _channels(channels: Sequence[Channel]) -> Table:
    rows = [
        (str(index), channel.name, _steps(channel.before), _steps(channel.after), _steps(channel.on_window))
        for index, channel in enumerate(channels)
    ]
    columns = words("#", "name", "on the scan's grid", "on the network's grid", "on each window")
    return table("Channels", columns, rows)


def _steps(steps: Sequence[Step]) -> str:
    """In one line, such as `clip (lower -100, upper 300), scale (subtract 80, divide 40)`."""
    return ", ".join(_step(step) for step in steps) or "-"


def _step(step: Step) -> str:
    values = step.model_dump(exclude={"kind"}).items()
    listed = ", ".join(f"{name} {_value_line(value)}" for name, value in values)
    return f"{step.kind} ({listed})" if listed else step.kind


def _labels(bundle: Bundle) -> Table:
    labels = bundle.manifest.labels
    rows = [(str(index), str(label.value), label.name) for index, label in enumerate(labels.classes)]
    return table(f"Labels ({labels.decision})", words("class", "value", "name"), rows)


def _files(bundle: Bundle) -> Table:
    digests = sorted(bundle.manifest.files.items())
    rows = [(name, f"{digest.bytes:,}", f"{digest.sha256[:12]}…") for name, digest in digests]
    return table("Files", (*words("file"), *figures("bytes", fold=True), *words("SHA-256")), rows)


def _recipe(recipe: Recipe) -> dict[str, JsonValue]:
    grid, windows, scores = recipe.grid, recipe.windows, recipe.scores
    return {
        "new axes from old (z, y, x = 0, 1, 2)": _listed(grid.transpose),
        "turned round": _listed(grid.flip) or "none",
        "cropped to": "voxels that are not zero" if grid.crop == "nonzero" else "nothing",
        "size of the new axes": ", ".join(_size(size) for size in grid.size),
        "resampling of the scan": _resampling(grid.resampling),
        "windows": _windows(windows),
        "before averaging": scores.before_sum,
        "brought back": scores.bring_back,
        f"resampling of the {scores.bring_back}": _resampling(scores.resampling),
    }


def _size(size: AxisSize) -> str:
    values = size.model_dump(exclude={"kind"}).items()
    return " ".join([size.kind, *(f"{_value_line(value)} {unit}" for unit, value in values)])


def _resampling(resampling: Resampling) -> str:
    if resampling.coordinates == "corners":
        return f"order {resampling.order}, corners aligned"
    separate = {True: "always", False: "never", None: "if anisotropic"}[resampling.force_separate_z]
    return f"order {resampling.order}, across the plane {resampling.order_z}, separately {separate}"


def _windows(windows: Windows) -> str:
    advance = ", ".join(
        f"{step.share:g} of a window" if step.kind == "share" else f"{step.voxels} voxels" for step in windows.advance
    )
    overhang = f", {_listed(windows.overhang)} voxels over the edge" if any(windows.overhang) else ""
    return f"every {advance}{overhang}; {windows.edge} beyond the edge, {windows.weight} weights"


def _provenance(provenance: Provenance) -> dict[str, JsonValue]:
    rows: dict[str, JsonValue] = {
        "source": f"{provenance.source_name} (SHA-256 {provenance.source_sha256[:12]}…)",
        "created (UTC)": provenance.created_utc,
    }
    rows.update({f"tool: {name}": version for name, version in provenance.tools.items()})
    rows.update({f"parity: {name}": figures for name, figures in provenance.parity.items()})
    return rows


def _inference(bundle: Bundle) -> dict[str, JsonValue]:
    return {
        "patch (T, H, W)": _sizes(bundle.patch_size),
        "channels, classes": _listed((bundle.channels, bundle.classes)),
        "decision": _DECISIONS[bundle.manifest.labels.decision],
        "mirror axes": _listed(bundle.manifest.mirror_axes) or "none",
        "GPU kernels": "none" if bundle.kernels is None else f"a pack in {bundle.kernels.name}/",
    }


def _pairs(title: str, rows: Mapping[str, JsonValue]) -> Table:
    return table(title, words("", ""), [(name, _value_line(value)) for name, value in rows.items()])


def _value_line(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value_line(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(_value_line(inner) for inner in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in values)


def _sizes(sizes: Iterable[int | str]) -> str:
    return _TIMES.join(str(size) for size in sizes)
