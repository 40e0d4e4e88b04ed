"""What pages state about the repository holds: links, paths, generated parts, sizes."""

from __future__ import annotations

import copy
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

from docs.extensions.fences import fences_of, pages_of
from docs.extensions.manifest_schema import schema, split_docstring
from docs.gallery import IMAGES, MOST_BYTES
from docs.generate import generated
from docs.tables import filled
from masksam_deploy.base.errors import BundleError
from masksam_deploy.bundle.manifest import Label, Labels
from masksam_deploy.bundle.nnunet import Normalization, Preprocessing, SplineOrders, recipe_of
from masksam_deploy.bundle.recipe import Recipe
from masksam_deploy.bundle.recipe_rules import recipe_problems
from masksam_deploy.bundle.rules import parse_manifest
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


def test_the_layers_that_contributors_read_are_those_of_the_import_contract() -> None:
    listed = re.search(
        r"^## Layers.*?```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S
    )
    contract = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M | re.S)
    assert listed and contract
    assert listed[1].splitlines() == re.findall(r'"(.+)"', contract[1])


@pytest.mark.parametrize("package", ["masksam_deploy", "export/masksam_export"])
def test_every_room_is_in_the_listing_of_the_tree(package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms - set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) == set()


def test_the_examples_of_recipes_are_valid_and_the_first_is_nnunets() -> None:
    page = ROOT / "docs" / "explanation" / "recipe.md"
    recipes = [Recipe.model_validate_json(fence.code, strict=True) for fence in fences_of(page)]
    labels = Labels(classes=(Label(name="background", value=0), Label(name="organ", value=1)))
    assert len(recipes) == 2
    for recipe, patch in zip(recipes, [(4, 80, 80), (5, 512, 512)], strict=True):
        assert list(recipe_problems(recipe, labels, patch)) == []
    plans = Preprocessing(
        channel_names=("MRI",),
        transpose_forward=(0, 1, 2),
        spacing=(8.0, 4.0, 4.0),
        normalization=(Normalization(scheme="ZScoreNormalization"),),
        resample_data=SplineOrders(order=3, order_z=0),
        resample_scores=SplineOrders(order=1, order_z=0),
    )
    assert recipes[0] == recipe_of(plans)


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
    assert "mirrored" in found["$defs"]["Windows"]["properties"]["mirror_axes"]["description"]


def test_the_schema_describes_models_of_other_modules_and_fields_by_docstring_or_by_string() -> None:
    defined = schema()["$defs"]
    assert defined["MinMax"]["properties"]["over"]["description"].startswith("what the smallest and the largest are of")
    assert defined["ValidationCase"]["properties"]["reference"]["description"] == "A label map on the scan's grid."
    assert [name for name, model in defined.items() if "Attributes:" in model.get("description", "")] == []


def test_the_schema_requires_the_version_and_the_kinds_that_readers_ask_for(lv_bundle: Path) -> None:
    found = schema()
    assert found["required"][0] == "schema_version"
    assert found["$defs"]["ZScore"]["required"] == ["kind"]
    content = json.loads((lv_bundle / "manifest.json").read_text(encoding="utf-8"))
    kindless = copy.deepcopy(content)
    del kindless["recipe"]["grid"]["size"][0]["kind"]
    for damaged in ({key: content[key] for key in content if key != "schema_version"}, kindless):
        with pytest.raises(BundleError):
            parse_manifest(json.dumps(damaged).encode(), "a bundle")


def test_a_docstring_is_split_into_its_text_and_its_attributes() -> None:
    docstring = "A pair.\n\nAttributes:\n    left, right: a value,\n        in mm.\n    name: for people.\n\nMore."
    text, attributes = split_docstring(docstring)
    assert text == "A pair.\n\nMore."
    assert attributes == {"left": "a value, in mm.", "right": "a value, in mm.", "name": "for people."}


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
