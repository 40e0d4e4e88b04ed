"""The JSON Schema of a bundle's manifest, made from the model that reads it, and the directive that shows it.

`make docs-generated` writes docs/reference/manifest.schema.json; a test says if it is out of date.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import masksam_deploy

SCHEMA_FILE = Path(__file__).parents[1] / "reference" / "manifest.schema.json"


def manifest_model() -> type[BaseModel]:
    """The model behind `Bundle.manifest`, wherever it lives."""
    model = get_type_hints(masksam_deploy.Bundle)["manifest"]
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"Bundle.manifest is a {model!r}, expected a pydantic model")
    return model


def schema() -> dict[str, Any]:
    """The JSON Schema; what the models' docstrings say of their fields becomes the fields' descriptions."""
    model = manifest_model()
    found = model.model_json_schema()
    models = {each.__name__: each for each in _models(model)}
    for name, definition in _definitions(found):
        if name in models:
            _describe(definition, models[name])
            _require_what_readers_ask_for(definition)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _definitions(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model itself, then every model it is made of."""
    yield found["title"], found
    yield from found.get("$defs", {}).items()


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and all that its fields are made of, whatever modules they live in."""
    found: set[type[BaseModel]] = set()
    waiting: list[Any] = [model]
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in found:
            found.add(kind)
            waiting += [field.annotation for field in kind.model_fields.values()]
    return found


def _describe(definition: dict[str, Any], model: type[BaseModel]) -> None:
    """Take the fields' descriptions from the class's docstring, or from the strings beneath the fields."""
    text, attributes = split_docstring(inspect.getdoc(model) or "")
    definition["description"] = text
    comments = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
    for field, value in definition.get("properties", {}).items():
        description = attributes.get(field) or " ".join(comments.get((model.__name__, field), [])).strip()
        if description:
            value["description"] = description


def _require_what_readers_ask_for(definition: dict[str, Any]) -> None:
    """Name fields as required that have a default in Python, and without which no manifest is read."""
    asked = [field for field in ("schema_version", "kind") if field in definition.get("properties", {})]
    if asked:
        definition["required"] = [*asked, *definition.get("required", [])]


def split_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring without its section `Attributes`, and what that section says of each name.

    Args:
        docstring: of a class, without common indentation. An entry may name several attributes: `commit, date: ...`.

    Returns:
        The other paragraphs, and a text in one line by attribute.
    """
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n(?=[ ]))+)", docstring, re.MULTILINE)
    if section is None:
        return docstring, {}
    attributes: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE):
        attributes |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    paragraphs = (docstring[: section.start()].strip(), docstring[section.end() :].strip())
    return "\n\n".join(filter(None, paragraphs)), attributes


def text() -> str:
    """What the committed file holds."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


class ManifestSchema(SphinxDirective):
    """One table of fields for each model of the manifest."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The parsed tables."""
        lines: list[str] = []
        for name, definition in _definitions(schema()):
            if "properties" in definition:
                lines += _table(name, definition)
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def _table(name: str, definition: dict[str, Any]) -> list[str]:
    required = definition.get("required", [])
    lines = [f"## {name}", "", definition.get("description", ""), ""]
    lines += ["| field | type | required | meaning |", "|---|---|---|---|"]
    for field, value in definition["properties"].items():
        kind = _type(value).replace("|", "\\|")
        meaning = value.get("description", "").replace("|", "\\|")
        lines.append(f"| `{field}` | {kind} | {'yes' if field in required else 'no'} | {meaning} |")
    return [*lines, ""]


def _type(value: dict[str, Any]) -> str:
    """A type in words: `list of Port`, `"argmax" or "regions"`."""
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2])
    if "enum" in value:
        return " or ".join(f"`{json.dumps(item)}`" for item in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    for union in ("anyOf", "oneOf"):
        if union in value:
            return " or ".join(dict.fromkeys(_type(item) for item in value[union]))
    return _container(value)


def _container(value: dict[str, Any]) -> str:
    kind = value.get("type", "any JSON value")
    if kind == "array":
        items = value.get("items") or value.get("prefixItems", [{}])[0]
        count = f"{value['maxItems']} × " if "prefixItems" in value else "list of "
        return f"{count}{_type(items)}"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"map of names to {_type(value['additionalProperties'])}"
    return str(kind)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("manifest-schema", ManifestSchema)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
