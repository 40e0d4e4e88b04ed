"""Reading and running blocks: what is wrong in a page is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.extensions.fences import Fence, fences_of
from masksam_deploy.cli import app
from tests.docs.sandbox import Sandbox, exports_the_demo, logical_lines, states
from tests.docs.test_commands import parse


def fence_in(folder: Path, text: str) -> Fence:
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    (fence,) = fences_of(page)
    return fence


def test_a_block_has_its_language_marks_and_line(tmp_path: Path) -> None:
    fence = fence_in(tmp_path, 'Text\n\n```bash no-run="needs a GPU"\nls\n```\n')
    assert (fence.language, fence.code, fence.line) == ("bash", "ls\n", 4)
    assert fence.marks == {"no-run": "needs a GPU"}
    assert fence.runnable
    assert not fence.is_output


@pytest.mark.parametrize("info", ["bash no-run", 'bash no-run=""', 'bash norun="a reason"', "bash skip"])
def test_a_mark_without_a_reason_or_of_another_name_is_refused(tmp_path: Path, info: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:1"):
        fence_in(tmp_path, f"```{info}\nls\n```\n")


@pytest.mark.parametrize(
    "block", ["```bash\nfalse\ntrue\n```\n", "```bash\nfalse | cat\n```\n", "```python\n1 / 0\n```\n"]
)
def test_a_block_that_fails_is_found(tmp_path: Path, block: str) -> None:
    fence = fence_in(tmp_path, block)
    (tmp_path / "work").mkdir()
    with pytest.raises(AssertionError, match=r"page\.md:2: exit code 1"):
        Sandbox(tmp_path / "work", tmp_path).run(fence)


def test_output_may_differ_in_figures_alone() -> None:
    printed = "begin\nran 20 windows in 7.2 s\nlabels: seg.nii.gz\n"
    assert states("ran 12 windows in 6.15 s\nlabels:   seg.nii.gz\n", printed)
    assert not states("ran 12 windows, mirrored\n", printed)
    assert not states("labels: seg.nii.gz\nran 12 windows in 6.15 s\n", printed)


def test_a_command_with_an_option_that_does_not_exist_is_found() -> None:
    parse(app, ["infer", "scan.nii.gz", "-b", "lv.masksam", "-o", "labels.nii.gz"], "here")
    with pytest.raises(AssertionError, match=r"here: .*--no-such-option"):
        parse(app, ["infer", "scan.nii.gz", "-b", "b", "-o", "o", "--no-such-option"], "here")
    with pytest.raises(AssertionError, match=r"here: .*--bundle"):
        parse(app, ["infer", "scan.nii.gz", "-o", "labels.nii.gz"], "here")


def test_lines_of_shell_are_joined_at_backslashes() -> None:
    assert logical_lines("# first\nls \\\n    -l\n\npwd\n") == ["ls      -l", "pwd"]


def test_only_the_export_that_was_run_is_replaced_by_a_copy() -> None:
    export = "masksam-deploy export models/masksam-tiny-lv/checkpoint_final.pth -o lv.masksam"
    assert exports_the_demo(export)
    assert exports_the_demo(f"{export} --validation examples/sunnybrook/scan")
    assert not exports_the_demo(f"{export} --validation scan.nii.gz")
    assert not exports_the_demo(f"{export} --adapters node")
    assert not exports_the_demo(f"{export} --force")
    assert not exports_the_demo("masksam-deploy export other.pth -o lv.masksam")
