from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy.base.text import one_line
from masksam_deploy.bench.charts import roofline_chart, roofline_points, whole_work
from masksam_deploy.bench.compare import compare_results
from masksam_deploy.bench.html import html_report
from masksam_deploy.bench.results import BenchResult, GpuState
from masksam_deploy.bench.svg import Scale, Svg, round_step
from masksam_deploy.bench.table import merged, print_comparison, print_result
from tests.bench.example_result import refused, result, run

HOSTILE = '<script src="http://evil.example/x.js">&"\x1b[2J'
VOID = {"meta", "br", "img", "hr", "input", "link"}
LOADING = {"src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Keeps track of open elements and of everything that would load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attrs if name in LOADING or name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def everything() -> BenchResult:
    return result(
        run("onnxruntime fp32", [0.5 + 0.01 * i for i in range(20)]),
        run(HOSTILE, [0.2] * 20),
        refused("rtx int8", HOSTILE),
        name=HOSTILE,
    )


RESULTS = {
    "everything": everything(),
    "one contender": result(run("a", [0.001])),
    "none timed": result(refused("a", "wrong")),
    "windows only": result(run("a", [1.0, 2.0]).model_copy(update={"scan": None, "cold": None}), roofline=False),
    "many": result(*(run(f"contender {i} of a long name that does not fit", [0.1 * (i + 1)]) for i in range(9))),
}


@pytest.mark.parametrize("name", RESULTS)
def test_the_page_is_well_formed_and_loads_nothing(name: str) -> None:
    text = html_report(RESULTS[name])
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert not set(page.tags) & {"script", "iframe", "object", "embed", "link", "img", "image", "use", "foreignobject"}
    assert not re.search(r"url\(|@import|@font-face", text)
    for address in re.findall(r"https?://[^\s\"'<]+", text):
        assert address.startswith("http://e")  # text that a name brought, escaped; nothing of our own


def test_names_are_shown_as_text() -> None:
    page = Page(html_report(everything()))
    assert any(one_line(HOSTILE) in text for text in page.texts)
    assert "\x1b" not in "".join(page.texts)
    assert "script" not in page.tags


def test_the_page_has_a_dark_and_a_light_dress_for_every_colour() -> None:
    text = html_report(everything())
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    assert set(re.findall(r"--(\w+):", light)) == set(re.findall(r"--(\w+):", dark))
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(re.findall(r"--(\w+):", light))
    body = text.split("</style>")[1]
    assert not re.search(r"(?:fill|stroke|color)=", body)
    classes = {name for found in re.findall(r'class="([^"]+)"', body) for name in found.split()}
    styled = set(re.findall(r"\.([a-z]\w*)", text.split("</style>", maxsplit=1)[0]))
    assert classes - styled <= {"label", "bar"}  # these two look as text and boxes do anyway


def test_every_sample_stage_and_graph_is_drawn() -> None:
    text = html_report(everything())
    assert text.count('dot"') == 40
    assert text.count('bar"') == 2 * 5 + 2  # stages of two contenders, and the legend of the roofline
    assert text.count('point"') == 2 * 4 + 4  # graphs and the whole network; their legend
    assert "NaN" not in text and "inf" not in text


def test_a_point_of_the_roofline_is_work_over_time() -> None:
    one = result(run("a", [3.0]))
    assert one.roofline is not None
    work = one.roofline.graphs
    points = {graph: rate for _, _, graph, rate in roofline_points(work, one.runs, "cpu")}
    assert points == {"encoder": 1e9, "prompt_generator": 2e9, "decoder": 3e9}
    assert whole_work(one.roofline).flops == 6 * 10**9
    assert "matrix product: 100 GFLOP/s" in str(roofline_chart(one.roofline, one.runs))
    assert roofline_points(work, one.runs, "cuda") == []  # another device's roof
    assert "matrix product" in str(roofline_chart(one.roofline.model_copy(update={"device": "cuda"}), one.runs))


@given(st.floats(1e-3, 1e9), st.floats(1.5, 1e6))
def test_logarithmic_ticks_lie_inside_and_grow(low: float, factor: float) -> None:
    scale = Scale(low, low * factor, 0, 100, log=True)
    ticks = scale.ticks()
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
    assert scale(low) == pytest.approx(0, abs=1e-6) and scale(low * factor) == pytest.approx(100)


@given(st.floats(1e-6, 1e6))
def test_linear_ticks_are_few_and_round(high: float) -> None:
    ticks = Scale(0, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks[0] == 0 and ticks[-1] <= high * (1 + 1e-9)
    step = round_step(high / 5)
    assert f"{step:e}"[0] in "125" and high / 5 <= step * (1 + 1e-6) <= 2.5 * high / 5 * (1 + 1e-6)


def test_what_is_drawn_is_escaped() -> None:
    svg = Svg(10, 10, HOSTILE)
    svg.text(0, 0, HOSTILE)
    svg.mark(0, 0, "c0", "diamond", tip=HOSTILE)
    assert "<script" not in str(svg)


@pytest.mark.parametrize("name", RESULTS)
def test_the_tables_fit_a_pipe_and_carry_no_control_codes(name: str) -> None:
    file = io.StringIO()
    print_result(RESULTS[name], file)
    assert "\x1b" not in file.getvalue()
    assert "Agreement" in file.getvalue()


def test_stages_of_several_contenders_keep_their_order() -> None:
    graphs = ["read", "encoder", "decoder", "write"]
    assert merged([graphs, ["read", "network", "write"]]) == ["read", "encoder", "decoder", "network", "write"]
    assert merged([["read", "write"], graphs]) == graphs
    assert merged([graphs, graphs]) == graphs


def test_warnings_stand_where_they_are_seen() -> None:
    file = io.StringIO()
    one = everything().model_copy(update={"warnings": ("the machine was busy: <5 cores>",)})
    print_result(one, file)
    assert file.getvalue().splitlines()[-1] == "warning: the machine was busy: <5 cores>"
    assert '<p class="warning">the machine was busy: &lt;5 cores&gt;</p>' in html_report(one)


def test_the_gpu_is_told_where_it_answered() -> None:
    state = GpuState(readings={"power, W": (80.0, 120.5, 140.0)})
    file = io.StringIO()
    one = everything().model_copy(update={"gpu": state})
    print_result(one, file)
    assert "120.5" in file.getvalue() and "120.5" in html_report(one)


def test_a_comparison_is_a_table_with_what_became_slower() -> None:
    old, new = result(run("a", [1.0] * 9)), result(run("a", [1.1] * 9))
    file = io.StringIO()
    print_comparison(compare_results(old, new), file)
    row = next(line for line in file.getvalue().splitlines() if line.split()[:2] == ["a", "window"])
    assert row.split() == ["a", "window", "1000", "ms", "1100", "ms", "0", "ms", "1.100", "slower"]
