"""A bundle for people to read: the tables of `masksam-deploy inspect`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO

from pydantic import JsonValue
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Normalization, Port, Preprocessing, Provenance

_PIPE_WIDTH = 120
_TIMES = " × "  # noqa: RUF001 - what people write between sizes
_DECISIONS = {
    "argmax": "the class with the highest score",
    "regions": "classes above 0.5 paint in order, later ones over earlier ones",
}


def report(bundle: Bundle, file: IO[str], *, verified: bool) -> None:
    """Write the report; colours only if `file` is a terminal."""
    # Everything printed below is Text, never markup: names in a bundle are untrusted.
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    manifest = bundle.manifest
    state = "every file matches its hash" if verified else "NOT verified: hashes were skipped"
    console.print(_clean(f"{manifest.name}  ({bundle.path})"), style="bold", soft_wrap=True)
    console.print(Text(f"schema {manifest.schema_version}, {state}", style="" if verified else "bold yellow"))
    console.print(Text(f"manifest SHA-256 {bundle.sha256}"), soft_wrap=True)
    console.print(_pairs("Model", manifest.model))
    console.print(_graphs(bundle))
    console.print(_pairs("Preprocessing", _preprocessing(manifest.preprocessing)))
    console.print(_channels(manifest.preprocessing))
    console.print(_labels(bundle))
    console.print(_pairs("Inference", _inference(bundle)))
    console.print(_pairs("Provenance", _provenance(manifest.provenance)))
    console.print(_files(bundle))


def _graphs(bundle: Bundle) -> Table:
    table = _table("Graphs", "graph", "", "port", "type", "shape", "bytes")
    table.columns[-1].justify = "right"
    for graph in bundle.manifest.graphs:
        size = f"{bundle.manifest.files[graph.file].bytes:,}"
        ports = [("in", port) for port in graph.inputs] + [("out", port) for port in graph.outputs]
        for index, (direction, port) in enumerate(ports):
            first = index == 0
            cells = (graph.name if first else "", direction, *_port_cells(port), size if first else "")
            table.add_row(*map(_clean, cells), end_section=index == len(ports) - 1)
    return table


def _port_cells(port: Port) -> tuple[str, str, str]:
    return (port.name, port.dtype, _sizes(port.shape))


def _channels(preprocessing: Preprocessing) -> Table:
    table = _table("Channels", "#", "name", "normalisation")
    pairs = zip(preprocessing.channel_names, preprocessing.normalization, strict=True)
    for index, (name, normalization) in enumerate(pairs):
        table.add_row(str(index), _clean(name), _clean(_normalization_line(normalization)))
    return table


def _normalization_line(normalization: Normalization) -> str:
    line: str = normalization.scheme
    if normalization.scheme == "CTNormalization":
        line += (
            f": clip to {normalization.lower:g} … {normalization.upper:g}, mean {normalization.mean:g}, "
            f"std {normalization.std:g}"
        )
    return f"{line}, inside the nonzero mask" if normalization.use_mask else line


def _labels(bundle: Bundle) -> Table:
    labels = bundle.manifest.labels
    table = _table(f"Labels ({labels.decision})", "class", "value", "name")
    for index, label in enumerate(labels.classes):
        table.add_row(str(index), str(label.value), _clean(label.name))
    return table


def _files(bundle: Bundle) -> Table:
    table = _table("Files", "file", "bytes", "SHA-256")
    table.columns[1].justify = "right"
    for name, digest in sorted(bundle.manifest.files.items()):
        table.add_row(_clean(name), f"{digest.bytes:,}", f"{digest.sha256[:12]}…")
    return table


def _preprocessing(preprocessing: Preprocessing) -> dict[str, JsonValue]:
    rows: dict[str, JsonValue] = {
        "spacing (mm, transposed axes)": _TIMES.join(f"{value:g}" for value in preprocessing.spacing),
        "new axes from old (z, y, x = 0, 1, 2)": _listed(preprocessing.transpose_forward),
    }
    for what, resampling in (
        ("scan", preprocessing.resample_data),
        ("scores", preprocessing.resample_scores),
    ):
        separate = {True: "always", False: "never", None: "if anisotropic"}[resampling.force_separate_z]
        rows[f"resampling of the {what}"] = (
            f"order {resampling.order}, across the plane {resampling.order_z}, separately {separate}"
        )
    return rows


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
    table = _table(title, "", "")
    table.show_header = False
    for name, value in rows.items():
        table.add_row(_clean(name), _clean(_value_line(value)))
    return table


def _value_line(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value_line(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(_value_line(inner) for inner in value)}]"
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _listed(values: Iterable[int]) -> str:
    return ", ".join(str(value) for value in values)


def _sizes(sizes: Iterable[int | str]) -> str:
    return _TIMES.join(str(size) for size in sizes)


def _clean(text: str) -> Text:
    # A control code in a name could rewrite what the terminal shows.
    return Text("".join(char if char.isprintable() else "�" for char in text))
