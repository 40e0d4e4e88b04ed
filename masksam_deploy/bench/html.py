"""A benchmark as one HTML file that needs nothing else: no script, no font, no image from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from masksam_deploy.base.text import one_line
from masksam_deploy.bench import table
from masksam_deploy.bench.charts import latency_chart, roofline_chart, waterfall_chart
from masksam_deploy.bench.results import BenchResult

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d2126; --soft: #5c6570; --grid: #e3e6ea; --mark: #1d2126;
  --c0: #2463b0; --c1: #c2570c; --c2: #18794e; --c3: #9c36a0; --c4: #8a6d00; --c5: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #e8eaed; --soft: #a3abb5; --grid: #33393f;
  --mark: #ffffff; --c0: #6ea8ef; --c1: #f2995b; --c2: #5fc796; --c3: #d68adb; --c4: #d9b93b; --c5: #f0837b; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; max-width: 900px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; } p { color: var(--soft); }
.warning { color: var(--c5); font-weight: 600; }
.wide { overflow-x: auto; } svg { display: block; max-width: 100%; height: auto; margin: 0.6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--grid); text-align: left;
  vertical-align: top; }
text { font: 13px system-ui, sans-serif; fill: var(--ink); }
text.heading { font-weight: 600; } text.tick { fill: var(--soft); font-size: 12px; } text.value { font-size: 12px; }
.grid { stroke: var(--grid); } .roof { stroke: var(--mark); stroke-width: 2; }
.median { stroke: var(--mark); stroke-width: 2.5; } .percentile { stroke: var(--mark); stroke-width: 1.2; }
.dot { fill-opacity: 0.55; } .point { stroke: var(--paper); stroke-width: 1; } .plain { fill: var(--soft); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); }
"""


def html_report(result: BenchResult) -> str:
    """The whole page."""
    title = f"Benchmark of {result.bundle['name']}"
    warnings = [f'<p class="warning">{_plain(warning)}</p>' for warning in result.warnings]
    body = "\n".join(
        [f"<h1>{_plain(title)}</h1>", f"<p>{_plain(table.headline(result))}</p>", *warnings, *_sections(result)]
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_plain(title)}</title><style>{STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _sections(result: BenchResult) -> Iterable[str]:
    yield _heading(
        "Agreement",
        "Each contender's class scores and label map, held to the float32 graphs in ONNX Runtime on the CPU. What "
        "disagrees is not timed.",
    )
    yield _table(table.AGREEMENT, table.agreement_rows(result))
    timed = [run for run in result.runs if run.windows]
    if timed:
        order = "in turns" if result.settings.get("in_turns", True) else "one after the other"
        yield _heading(
            "One window",
            f"Warm, contenders {order}, {result.settings.get('repeats')} runs each. A dot is a run; the thick line is "
            "the median, the thin ones p95 and p99. The spread is the scaled median absolute deviation.",
        )
        yield _figure(str(latency_chart(result.runs)))
        yield _table(table.WINDOWS, table.window_rows(timed))
        yield _table(("contender", "graph", "median ms", "spread ms"), table.graph_rows(timed))
    scans = [run for run in timed if run.scan]
    if scans:
        yield _heading("A whole scan", "From the scan's file to the label map's, warm: median of each stage.")
        longest = max(run.scan.whole.p50 for run in scans if run.scan)
        numbers = {run.name: number for number, run in enumerate(result.runs)}
        for run in scans:
            yield _figure(str(waterfall_chart(run, numbers[run.name], longest)))
        yield _table(("stage, ms", *(run.name for run in scans)), table.stage_rows(scans))
    fresh = [run for run in timed if run.cold]
    if fresh:
        yield _heading(
            "A fresh process", "Up to the first window, the files in the system's cache; and its peak memory."
        )
        yield _table(("", *(run.name for run in fresh)), table.cold_rows(fresh))
    if result.roofline:
        yield _heading(
            "Roofline",
            "Operations of matrix products and convolutions, and bytes as if nothing were fused, counted in the "
            f"bundle's graphs; the roof is what this machine's {result.roofline.device} reached in the same run at "
            "float32, over what ran there. Fused operators move fewer bytes, and smaller types compute faster: such "
            "points may lie above it. Contenders stand side by side around a graph's FLOP per byte.",
        )
        if timed:
            yield _figure(str(roofline_chart(result.roofline, result.runs)))
        yield _table(table.WORK, table.work_rows(result.roofline))
    elif result.roofline_problem:
        yield _heading("Roofline", f"None: {result.roofline_problem}")
    yield from _conditions(result)


def _conditions(result: BenchResult) -> Iterable[str]:
    yield _heading("Conditions", f"Measured {result.started_utc}.")
    if result.gpu:
        yield _table(("GPU meanwhile", "lowest", "median", "highest"), table.gpu_rows(result))
    facts = {
        **result.machine,
        **result.state,
        **result.software,
        "bundle": f"{result.bundle['name']} {result.bundle['manifest_sha256']}",
        "scan": f"{result.input.get('name')} {result.input.get('sha256')}",
        "settings": ", ".join(f"{name} {value}" for name, value in result.settings.items()),
    }
    for run in result.runs:
        engine = f", engine {run.engine}" if run.engine else ""
        facts[run.name] = f"{', '.join(sorted(set(run.providers.values())))}{engine}"
    yield _table(("", ""), list(facts.items()))


def _heading(title: str, text: str) -> str:
    return f"<h2>{_plain(title)}</h2>\n<p>{_plain(text)}</p>"


def _figure(svg: str) -> str:
    return f'<div class="wide">\n{svg}\n</div>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_plain(column)}</th>" for column in columns)
    lines = ("<tr>" + "".join(f"<td>{_plain(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return '<div class="wide"><table>\n<tr>' + head + "</tr>\n" + "\n".join(lines) + "\n</table></div>"


def _plain(text: str) -> str:
    """Names come from files: on one line, without control characters, and never as markup."""
    return escape(one_line(text, 2000))
