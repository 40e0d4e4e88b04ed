"""The directive `commands-not-run`: every block of the pages that no test runs, with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.extensions.fences import Fence, fences_of, pages_of

ROOT = Path(__file__).parents[2]


class CommandsNotRun(SphinxDirective):
    """A list of the blocks that are marked `no-run` or `slow`."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The list; the page is built again whenever another one changes."""
        listed = nodes.bullet_list()
        for page in pages_of(ROOT):
            self.env.note_dependency(str(page))
            listed += [_item(fence) for fence in fences_of(page) if fence.marks]
        return [listed]


def _item(fence: Fence) -> nodes.list_item:
    """One block: its page, why it is not run, and its first line."""
    where = f"{fence.page.relative_to(ROOT).as_posix()}, line {fence.line}: "
    reasons = "; ".join(
        reason if mark == "no-run" else f"{reason} (run with --slow)" for mark, reason in fence.marks.items()
    )
    first = next(line for line in fence.code.splitlines() if line.strip())
    paragraph = nodes.paragraph("", "", nodes.Text(f"{where}{reasons}. "), nodes.literal(text=first))
    return nodes.list_item("", paragraph)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands-not-run", CommandsNotRun)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
