"""The JSON Schema of a bundle's manifest, made from the model that reads it, and the directive that shows it.

`make docs-generated` writes docs/reference/manifest.schema.json; a test says if it is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

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
    """The JSON Schema; the strings beneath the model's fields become descriptions."""
    model = manifest_model()
    found = model.model_json_schema()
    comments = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
    for name, definition in _definitions(found):
        for key, value in definition.get("properties", {}).items():
            text = " ".join(comments.get((name, key), []))
            if text:
                value["description"] = text.strip()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _definitions(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model itself, then every model it is made of."""
    yield found["title"], found
    yield from found.get("$defs", {}).items()


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
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(item) for item in value["anyOf"]))
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
