"""The directives `public-api` and `error-types`: what a package exports, and the errors it raises, read off the code.

Both look names up in the package itself, so that they hold when modules move.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, get_type_hints

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class PublicApi(SphinxDirective):
    """Autodoc's directives for every name in a package's `__all__`, the version aside.

    The option `also` names attributes of these, such as `Segmentation.report`, whose types are documented as well.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"also": str.split}

    def run(self) -> list[nodes.Node]:
        """The parsed directives, in the order of `__all__`."""
        package = import_module(self.arguments[0])
        found = {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__ if name[0] != "_"}
        for attribute in self.options.get("also", []):
            kind = _type_of(package, attribute)
            found[f"{kind.__module__}.{kind.__name__}"] = kind
        return self.parse_text_to_nodes("\n".join(f".. {_directive(kind)}:: {name}\n" for name, kind in found.items()))


def _type_of(package: ModuleType, attribute: str) -> type:
    """The class that an annotation such as `Segmentation.report` names."""
    owner_name, _, name = attribute.partition(".")
    kind = get_type_hints(getattr(package, owner_name))[name]
    if not isinstance(kind, type):
        raise TypeError(f"{attribute} is a {kind!r}, expected a class")
    return kind


def _directive(thing: object) -> str:
    if inspect.isclass(thing):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    return "autofunction" if callable(thing) else "autodata"


class ErrorTypes(SphinxDirective):
    """A table of an error type and all types beneath it: name, exit code, meaning."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """The parsed table."""
        package, _, name = self.arguments[0].rpartition(".")
        base = getattr(import_module(package), name)
        _import_errors(import_module(package))
        lines = [".. list-table::", "   :header-rows: 1", "", "   * - type", "     - exit code", "     - meaning"]
        for kind in _beneath(base):
            meaning = (inspect.getdoc(kind) or "").splitlines()[0]
            lines += [f"   * - ``{kind.__name__}``", f"     - {kind.exit_code}", f"     - {meaning}"]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=self.arguments[0]), 0, node)
        return list(node.children)


def _import_errors(package: ModuleType) -> None:
    """Import every module `errors`, so that its types are known: most parts of a package are loaded on demand."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.endswith(".errors"):
            import_module(module.name)


def _beneath(base: Any) -> list[Any]:
    """A type and its subclasses, each after its parent."""
    return [base, *(kind for child in base.__subclasses__() for kind in _beneath(child))]


def refuse_torch(app: Sphinx, exception: Exception | None) -> None:
    """The reference of the run time must be built without torch, as the run time itself runs."""
    if exception is None and "torch" in sys.modules:
        raise RuntimeError("building the documentation imported torch, expected it not to; find the import")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("public-api", PublicApi)
    app.add_directive("error-types", ErrorTypes)
    app.connect("build-finished", refuse_torch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
