"""A click group that imports the module of a command only when that command runs."""

from __future__ import annotations

from importlib import import_module

import click

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.cli.help import Group

ENTRY_POINTS = "masksam_deploy.commands"
"""Entry-point group through which other packages (the torch side) add commands."""

# name -> (where it is, its short help, repeated here so that the list of commands needs no import)
_BUILT_IN = {
    "bench": ("masksam_deploy.cli.bench:bench", "Measure how fast a bundle runs here, after checking it."),
    "build-engine": ("masksam_deploy.cli.build_engine:build_engine", "Build a faster engine and judge it by Dice."),
    "compare": ("masksam_deploy.cli.compare:compare", "Compare the label maps of two bundles on the same scans."),
    "doctor": ("masksam_deploy.cli.doctor:doctor", "Show what this machine can build and run."),
    "evaluate": ("masksam_deploy.cli.evaluate:evaluate", "Compare label maps with references."),
    "infer": ("masksam_deploy.cli.infer:infer", "Segment one scan or many with a bundle."),
    "inspect": ("masksam_deploy.cli.inspect:inspect", "Show what a bundle holds, and verify it."),
    "pack": ("masksam_deploy.cli.pack:pack", "Put a bundle into one file."),
    "sensitivity": ("masksam_deploy.cli.sensitivity:sensitivity", "Rank layers by the accuracy they lose in int8."),
    "unpack": ("masksam_deploy.cli.unpack:unpack", "Restore a bundle from its packed file, and verify it."),
}


class LazyGroup(Group):
    """The commands of the table above and of the entry-point group; a built-in command hides another of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands; no command is imported."""
        return [*_BUILT_IN, *sorted(set(_entry_points()) - set(_BUILT_IN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command.

        Returns:
            The command; None if there is none of this name.

        Raises:
            MaskSamError: the module of a command cannot be imported.
        """
        if cmd_name in _BUILT_IN:
            return _loaded(_BUILT_IN[cmd_name][0])
        where = _entry_points().get(cmd_name)
        if where is None:
            return None
        try:
            return _loaded(where)
        except ImportError as exc:
            raise MaskSamError(
                f"command '{cmd_name}': found that '{where}' cannot be imported ({exc}), expected a complete "
                "installation; install masksam-deploy again"
            ) from exc

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing the built-in ones."""
        rows = [(name, self._short_help(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _short_help(self, ctx: click.Context, name: str) -> str:
        if name in _BUILT_IN:
            return _BUILT_IN[name][1]
        try:
            command = self.get_command(ctx, name)
        except MaskSamError:
            return "(cannot be loaded; run it to see why)"
        return command.get_short_help_str(limit=80) if command else ""


def _loaded(where: str) -> click.Command:
    module, _, attribute = where.partition(":")
    command: object = getattr(import_module(module), attribute)
    if not isinstance(command, click.Command):
        raise ImportError(f"{where} is not a click command")
    return command


def _entry_points() -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
