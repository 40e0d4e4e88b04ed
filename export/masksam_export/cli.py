"""`masksam-deploy export`. Imports torch only when it runs, so that `--help` works without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from masksam_deploy.base.errors import ExportError
from masksam_deploy.cli.help import Command, GroupedOption
from masksam_export.families.registry import Families, installed_families

if TYPE_CHECKING:
    from masksam_export.passes.convolutions import Convolutions

_OUTPUT, _NETWORK, _FILES = "Output", "Network and graphs", "Files in the bundle"
EXAMPLES = {
    "Export a checkpoint of nnU-Net's trainers": "masksam-deploy export checkpoint_final.pth -o lv.masksam",
    "Export a plain state dict, with scans for judging engines": "masksam-deploy export weights.pth -o lv.masksam \\\n"
    "    --plans plans.json --dataset dataset.json --validation imagesVal/",
}


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


class ExportCommand(Command):
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

    def heading_of(self, option: click.Option) -> str | None:
        """See `Command`; a family's options stand under its name."""
        names = self._owners().get(str(option.name))
        return f"Options of {', '.join(names)}" if names else super().heading_of(option)

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
        examples=EXAMPLES,
    )


def _own_parameters() -> list[click.Parameter]:
    path = click.Path(path_type=Path)
    return [
        click.Argument(["checkpoint"], type=path),
        GroupedOption(
            ["-o", "--output"],
            heading=_OUTPUT,
            type=path,
            help="Bundle directory to write. Default: NAME.masksam, after the checkpoint.",
        ),
        GroupedOption(["--force"], heading=_OUTPUT, is_flag=True, help="Replace an existing bundle."),
        GroupedOption(["--json", "as_json"], heading=_OUTPUT, is_flag=True, help="Print the summary as JSON."),
        GroupedOption(
            ["--family"],
            heading=_NETWORK,
            metavar="NAME",
            help="Family of the network. Default: the family that recognises the weights.",
        ),
        GroupedOption(
            ["--convolutions"],
            heading=_NETWORK,
            type=click.Choice(["saving", "direct"]),
            default="saving",
            show_default=True,
            help="Form of the 3D convolutions: saving computes the same function with fewer multiplications (for "
            "CPUs), direct keeps them as in the network (for GPUs, whose libraries optimise them).",
        ),
        GroupedOption(
            ["--validation"],
            heading=_FILES,
            type=path,
            multiple=True,
            help="Small scan, or folder of scans, to put into the bundle for judging engines. Repeat for more. Only "
            "voxels and geometry are copied, nothing else about the patient.",
        ),
        GroupedOption(
            ["--references"],
            heading=_FILES,
            type=path,
            help="Label map of the one validation scan, or folder of NAME.nii.gz.",
        ),
        GroupedOption(
            ["--measured"],
            heading=_FILES,
            type=path,
            help="JSON file that benchmarks/profiles.py wrote: what this network was measured to cost in faster ways "
            "to run it. 'infer --profile' prints it.",
        ),
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
    that its family asks for. Nothing in the file is executed. The graphs are compared with the network. If they
    disagree, no bundle is written.
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
