"""Writes what is committed under docs but made from the code and from benchmarks/results: `make docs-generated`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from docs.extensions import manifest_schema
from docs.tables import filled

RESULT_PAGES = Path(__file__).parent / "results"


def generated() -> Iterator[tuple[Path, str]]:
    """Each file with what it should hold."""
    yield manifest_schema.SCHEMA_FILE, manifest_schema.text()
    for page in sorted(RESULT_PAGES.glob("*.md")):
        yield page, filled(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path, text in generated():
        path.write_text(text, encoding="utf-8")
