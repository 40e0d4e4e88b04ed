"""`masksam-deploy export`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from masksam_deploy.base.errors import ExportError
from masksam_export.families.registry import Families, installed_families

if TYPE_CHECKING:
    from masksam_export.passes.convolutions import Convolutions


@dataclass(frozen=True)
class ExportRequest:
    """What was asked of the export command; see its options.

    Attributes:
        families: gives the families to choose from.
        options: that were typed for the checkpoint's family, by parameter name.
    """

    checkpoint: Path
    target: Path
    family: str | None
    families: Families
    options: dict[str, object]
    convolutions: Convolutions
    validation: tuple[Path, ...]
    references: Path | None
    measured: Path | None
    force: bool
    as_json: bool


class ExportCommand(click.Command):
    """A command with options of its own and those of all families, which are looked up when they are needed."""

    def __init__(self, families: Families, **settings: Any) -> None:
        self.families = families
        self._complete = False
        super().__init__(**settings)

    @property
    def params(self) -> list[click.Parameter]:
        """The command's own parameters, then each family's: one list, which click changes and changes back."""
        if not self._complete:
            self._all += self._family_options()
            self._complete = True
        return self._all

    @params.setter
    def params(self, own: list[click.Parameter]) -> None:
        self._all = own

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then those of each family or families under its name."""
        owners = self._owners()
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                names = owners.get(str(parameter.name))
                groups.setdefault(f"Options of {', '.join(names)}" if names else "Options", []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def typed_options(self, ctx: click.Context) -> dict[str, object]:
        """The values of families' options that were given, by parameter name."""
        return {
            name: ctx.params[name]
            for name in self._owners()
            if ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
        }

    def _owners(self) -> dict[str, list[str]]:
        """Names of the families that have an option, by its parameter name."""
        owners: dict[str, list[str]] = {}
        for family in self.families():
            for option in family.options():
                owners.setdefault(str(option.name), []).append(family.name)
        return owners

    def _family_options(self) -> list[click.Option]:
        own = {parameter.name: parameter for parameter in self._all}
        found: dict[str, click.Option] = {}
        for family in self.families():
            for option in family.options():
                name = str(option.name)
                other = own.get(name) or found.get(name)
                if other is not None and (name in own or other.to_info_dict() != option.to_info_dict()):
                    raise ExportError(
                        f"family '{family.name}': found option {option.opts[0]}, which the command or another family "
                        "has with another meaning, expected another name; uninstall the package of one of them"
                    )
                found[name] = option
        return list(found.values())


def export_command(families: Families) -> click.Command:
    """The command with the options of these families.

    Args:
        families: gives them, whenever they are needed.
    """
    return ExportCommand(
        families,
        name="export",
        callback=click.pass_context(_export),
        params=_own_parameters(),
        help=_export.__doc__,
        short_help="Turn a trained checkpoint into a verified bundle of ONNX graphs.",
    )


def _own_parameters() -> list[click.Parameter]:
    path = click.Path(path_type=Path)
    return [
        click.Argument(["checkpoint"], type=path),
        click.Option(["-o", "--output"], type=path, help="Bundle directory [NAME.masksam]."),
        click.Option(["--family"], help="Family of the network [the one that recognises the weights]."),
        click.Option(
            ["--convolutions"],
            type=click.Choice(["saving", "direct"]),
            default="saving",
            show_default=True,
            help="The 3D convolutions in the graphs: with fewer multiplications for the same function (for CPUs), or "
            "as the network has them (for GPUs, whose libraries save in their own ways).",
        ),
        click.Option(
            ["--validation"],
            type=path,
            multiple=True,
            help="Small scan, or folder of scans, that travels with the bundle for judging engines; repeat for more. "
            "Voxels and geometry are kept, nothing else of the patient.",
        ),
        click.Option(["--references"], type=path, help="Label map of the validation scan, or folder."),
        click.Option(
            ["--measured"],
            type=path,
            help="What this network was measured to cost in faster ways to run it, from benchmarks/profiles.py; `infer "
            "--profile` prints it.",
        ),
        click.Option(["--force"], is_flag=True, help="Replace an existing bundle."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print a summary for machines instead of people."),
    ]


def _export(
    context: click.Context,
    checkpoint: Path,
    output: Path | None,
    family: str | None,
    convolutions: str,
    validation: tuple[Path, ...],
    references: Path | None,
    measured: Path | None,
    force: bool,
    as_json: bool,
    **_: object,
) -> None:
    """Turn a trained CHECKPOINT into a verified bundle of ONNX graphs.

    CHECKPOINT is a trainer's file, such as nnU-Net's checkpoint_final.pth, or a plain state dict with the files
    that its family asks for. Nothing in it is executed. The graphs are compared with the network; a bundle that
    disagrees is not written.
    """
    from masksam_deploy.base.optional import require_packages

    require_packages("torch", "onnx", "onnxscript", "onnxruntime", extra="cpu,export", purpose="export")
    from masksam_export.run_export import run_export

    command = cast("ExportCommand", context.command)
    run_export(
        ExportRequest(
            checkpoint,
            output or Path(checkpoint.stem + ".masksam"),
            family=family,
            families=command.families,
            options=command.typed_options(context),
            convolutions=cast("Convolutions", convolutions),
            validation=validation,
            references=references,
            measured=measured,
            force=force,
            as_json=as_json,
        )
    )


export = export_command(installed_families)
