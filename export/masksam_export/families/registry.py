"""Finds the installed families of networks, and the one that a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import click

from masksam_deploy.base.errors import CheckpointError, ExportError
from masksam_deploy.base.text import one_line
from masksam_export.families.base import Family, LoadRequest, Shapes, Trained

if TYPE_CHECKING:
    from masksam_export.torch_files.checkpoint_file import CheckpointFile

GROUP = "masksam_deploy.families"
"""Entry-point group of families: each names an object that is a `Family`."""

Families: TypeAlias = Callable[[], Sequence[Family]]
EXPECTED = "a trainer's checkpoint with its weights, or a plain state dict"
_SHOWN = 3


def installed_families() -> list[Family]:
    """All families that installed packages offer, by name.

    Raises:
        ExportError: one cannot be imported, or two have the same name.
    """
    points = {(point.name, point.value): point for point in entry_points(group=GROUP)}  # one package may lie twice
    found = [_loaded(point) for point in points.values()]
    check_names(found)
    return sorted(found, key=lambda family: family.name)


def check_names(families: Sequence[Family]) -> None:
    """Refuse two families of the same name.

    Raises:
        ExportError: names the first one.
    """
    names = [family.name for family in families]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ExportError(
            f"found two installed families of networks named '{twice}', expected each name once; uninstall the package "
            "that brings one of them"
        )


def choose_family(shapes: Shapes, families: Sequence[Family], source: str, name: str | None = None) -> Family:
    """The family that a checkpoint belongs to.

    Args:
        shapes: of its weights, by name.
        families: that are installed.
        source: the checkpoint's name, for messages.
        name: the family that was asked for; by default the only one that recognises the weights.

    Raises:
        CheckpointError: no family, or more than one, recognises the weights.
        ExportError: no family has that name.
    """
    known = {family.name: family for family in families}
    if name is not None:
        if name not in known:
            raise ExportError(
                f"--family: found '{one_line(name)}', expected an installed family of networks: {_listed(families)}"
            )
        return known[name]
    fitting = [family for family in families if family.recognises(shapes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"checkpoint '{source}': found weights that several families recognise "
            f"({', '.join(family.name for family in fitting)}), expected one; choose with --family"
        )
    some = ", ".join(one_line(key) for key in list(shapes)[:_SHOWN])
    raise CheckpointError(
        f"checkpoint '{source}': found {len(shapes)} weights that no installed family of networks recognises "
        f"({some}{', …' if len(shapes) > _SHOWN else ''}), expected those of {_listed(families)}; check that this is "
        "the checkpoint you meant, or install the package of its family"
    )


def load_trained(
    path: str | Path,
    *,
    family: str | None = None,
    options: Mapping[str, object] | None = None,
    families: Families = installed_families,
    owned: bool = False,
) -> Trained:
    """Read a checkpoint of whatever installed family. Needs torch.

    Args:
        path: the checkpoint.
        family: the name of its family; by default the only one that recognises it.
        options: of that family, by parameter name; the others have their defaults.
        families: gives those to choose from.
        owned: see `LoadRequest`.

    Raises:
        CheckpointError: the file is unsafe, damaged or incomplete, or belongs to no family.
        ExportError: there is no such family, or an option does not fit the network.
    """
    from masksam_export.torch_files.checkpoint_file import CheckpointFile

    file = CheckpointFile.read(path)
    chosen = choose_family(shapes_of(file), families(), file.name, family)
    return chosen.load(LoadRequest(file, option_values(chosen, options or {}), owned))


def option_values(family: Family, given: Mapping[str, object]) -> dict[str, object]:
    """The values of a family's own options: those given, and the defaults of the others.

    Raises:
        ExportError: an option that the family does not have was given.
    """
    defaults = click.Command(family.name, params=list(family.options())).make_context(family.name, []).params
    strange = sorted(given.keys() - defaults.keys())
    if strange:
        options = ", ".join("--" + name.replace("_", "-") for name in strange)
        raise ExportError(
            f"found {options}, expected no such option: the checkpoint belongs to the family '{family.name}', which "
            "does not have it; leave it out"
        )
    return {**defaults, **given}


def shapes_of(file: CheckpointFile) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's weights.

    Raises:
        CheckpointError: it has none.
    """
    return {name: tuple(tensor.shape) for name, tensor in file.weights(EXPECTED).items()}


def _listed(families: Sequence[Family]) -> str:
    return ", ".join(f"{family.name} ({family.title})" for family in families) or "at least one (none is installed)"


def _loaded(point: EntryPoint) -> Family:
    try:
        return cast("Family", point.load())
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"family '{point.name}': found that '{point.value}' cannot be imported ({one_line(str(error))}), expected "
            "a complete installation; install the package that brings it again, or uninstall it"
        ) from error
