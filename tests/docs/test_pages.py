"""What pages state about the repository holds: links, paths, generated parts, sizes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs.extensions.fences import pages_of
from docs.extensions.manifest_schema import schema
from docs.gallery import IMAGES, MOST_BYTES
from docs.generate import generated
from docs.tables import filled
from tests.conftest import ROOT

STATUS = ROOT / "docs" / "reference" / "status.md"
NEVER_RAN = re.compile(
    r"(not|never) (yet )?(been )?run (yet|on)|(not yet|neither has|has not|has never) run", re.IGNORECASE
)


def tokens_of(page: Path) -> Iterator[Token]:
    for block in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        yield block
        yield from block.children or ()


def links_of(page: Path) -> Iterator[str]:
    for token in tokens_of(page):
        target = token.attrs.get("href") or token.attrs.get("src")
        if target is not None:
            yield unquote(str(target))


@pytest.mark.parametrize(
    "page", [*pages_of(ROOT), ROOT / "CHANGELOG.md"], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_links_and_pictures_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if not re.match(r"[a-z]+:|#", link):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_paths_in_the_listing_of_the_tree_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:masksam_deploy|export|kernels|benchmarks|tests|docs|models|examples)/[^`]*)`", text)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_generated_files_are_current() -> None:
    for path, text in generated():
        assert path.read_text(encoding="utf-8") == text, f"{path.relative_to(ROOT)} is out of date: make docs-generated"


def test_a_changed_figure_in_a_table_is_found() -> None:
    page = (ROOT / "docs" / "results" / "accuracy.md").read_text(encoding="utf-8")
    changed = page.replace("0.896 | 0.817", "0.899 | 0.817")
    assert changed != page
    assert filled(changed) == page


def test_the_schema_describes_fields_and_takes_a_real_manifest(lv_bundle: Path) -> None:
    found = schema()
    manifest = json.loads((lv_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert set(found["required"]) <= manifest.keys() <= found["properties"].keys()
    assert "mirrored" in found["properties"]["mirror_axes"]["description"]


def test_the_readme_is_short_and_has_its_two_commands_and_its_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert re.search(r"^make demo ", text, re.MULTILINE)
    assert re.search(r"^make test ", text, re.MULTILINE)
    assert "docs/images/demo.png" in text


def test_pictures_are_small_and_all_of_them_are_shown() -> None:
    shown = {
        (page.parent / link).resolve() for page in pages_of(ROOT) for link in links_of(page) if link.endswith(".png")
    }
    for picture in IMAGES.glob("*.png"):
        assert picture.stat().st_size <= MOST_BYTES, picture.name
        assert picture.resolve() in shown, picture.name


def test_only_the_status_page_says_what_has_never_run() -> None:
    for page in pages_of(ROOT):
        if page != STATUS:
            assert not NEVER_RAN.search(page.read_text(encoding="utf-8")), page.name


@pytest.mark.parametrize(
    "text", ["**not yet run on a GPU**", "It has not been run on a GPU yet", "Never run on a board"]
)
def test_saying_so_elsewhere_is_found(text: str) -> None:
    assert NEVER_RAN.search(text)


def test_making_the_reference_imports_no_torch() -> None:
    code = (
        "import sys; from docs.extensions import manifest_schema; manifest_schema.text(); "
        "from masksam_deploy.cli import app; import click; c = click.Context(app); "
        "[app.get_command(c, name) for name in app.list_commands(c)]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
