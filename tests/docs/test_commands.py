"""Every command and snippet of the pages: run where it can be, else held to what exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest

from docs.extensions.fences import Fence, fences_of, pages_of
from masksam_deploy.cli import app
from masksam_kernels.cli import cli
from tests.conftest import LV_CHECKPOINT, LV_EXPORT, ROOT
from tests.docs.sandbox import CHECKPOINT, Sandbox, exports_the_demo, logical_lines, states

GROUPS: dict[str, click.Group] = {"masksam-deploy": app, "masksam-kernels": cli}
OF_OTHERS = {"--slow", "--require-gpu"}
"""Options of pytest that pages name."""
PAGES = pages_of(ROOT)
FENCES = {page: list(fences_of(page)) for page in PAGES}
RUN = [page for page, fences in FENCES.items() if any(fence.runnable and not fence.marks for fence in fences)]
SLOW = [page for page, fences in FENCES.items() if any("slow" in fence.marks for fence in fences)]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run_page(page: Path, sandbox: Sandbox, marks: set[str]) -> None:
    """Run the blocks of a page that have no other marks than these, and compare what they print with what is stated."""
    fences = [fence for fence in FENCES[page] if fence.runnable or fence.is_output]
    if not any(exports_the_demo(line) for fence in fences for line in logical_lines(fence.code)):
        sandbox.give_bundle()
    printed = ""
    for fence in fences:
        if fence.is_output:
            assert states(fence.code, printed), f"{name_of(page)}:{fence.line}: not printed; found:\n{printed}"
        elif set(fence.marks) <= marks:
            printed = sandbox.run(fence)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_commands_of_a_page_run_and_print_what_it_says(page: Path, lv_bundle: Path, tmp_path: Path) -> None:
    run_page(page, Sandbox(tmp_path, lv_bundle), marks=set())


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name_of)
def test_the_slow_commands_of_a_page_run_as_well(page: Path, lv_bundle: Path, tmp_path: Path) -> None:
    run_page(page, Sandbox(tmp_path, lv_bundle), marks={"slow"})


def commands_not_run() -> Iterator[tuple[Fence, str]]:
    """Each line of shell that no test runs."""
    for fence in (fence for fences in FENCES.values() for fence in fences):
        if fence.language == "bash" and fence.marks:
            yield from ((fence, line) for line in logical_lines(fence.code))


def test_commands_that_cannot_be_run_exist_with_all_their_options() -> None:
    checked = 0
    for fence, line in commands_not_run():
        program, *words = shlex.split(line, comments=True)
        if program in GROUPS:
            parse(GROUPS[program], words, f"{name_of(fence.page)}:{fence.line}: {line}")
            checked += 1
    assert checked > 10


def parse(group: click.Group, words: list[str], where: str) -> None:
    """Let click take a command's words without running it."""
    command = group.get_command(click.Context(group), words[0])
    assert command is not None, where
    try:
        command.make_context(words[0], words[1:])
    except click.ClickException as error:
        raise AssertionError(f"{where}: {error.format_message()}") from error


def texts() -> Iterator[tuple[str, str]]:
    """Code of the pages, block by block, and what stands in backquotes in their lines."""
    for page, fences in FENCES.items():
        yield from ((name_of(page), fence.code) for fence in fences if fence.runnable)
        yield from ((name_of(page), code) for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")))


def test_make_targets_scripts_and_extras_that_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (section,) = re.findall(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.MULTILINE | re.DOTALL)
    extras = re.findall(r"^([a-z-]+) = \[", section, re.MULTILINE)
    found = 0
    for page, code in texts():
        for target in re.findall(r"^make ([a-z-]+)", code, re.MULTILINE):
            assert target in targets, f"{page}: make {target}"
            found += 1
        for script in re.findall(r"python (benchmarks/\S+\.py)", code):
            assert (ROOT / script).is_file(), f"{page}: {script}"
        for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)", code):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page}: {module}"
        for listed in re.findall(r"masksam-deploy\[([a-z,-]+)\]", code):
            assert set(listed.split(",")) <= set(extras), f"{page}: {listed}"
            found += 1
    assert found > 20


def options_of(group: click.Group) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)


def test_options_that_pages_mention_exist() -> None:
    known = {option for group in GROUPS.values() for option in options_of(group)} | OF_OTHERS | {"--help"}
    ours = {*GROUPS, *app.list_commands(click.Context(app))}
    for page, code in texts():
        if code.startswith("--") or code.split()[0] in ours:
            unknown = set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", code)) - known
            assert not unknown, f"{page}: `{code}`"


def test_the_shared_export_is_the_one_that_the_tutorial_shows() -> None:
    tutorial = ROOT / "docs" / "tutorials" / "segment-a-heart.md"
    (line,) = (line for fence in FENCES[tutorial] for line in logical_lines(fence.code) if exports_the_demo(line))
    assert shlex.split(line)[5:] == list(LV_EXPORT)
    assert (ROOT / CHECKPOINT) == LV_CHECKPOINT


def test_an_output_follows_the_block_that_prints_it() -> None:
    for page, fences in FENCES.items():
        shown = [fence for fence in fences if fence.runnable or fence.is_output]
        for before, after in pairwise(shown):
            assert not after.is_output or (before.runnable and not before.marks), f"{name_of(page)}:{after.line}"
