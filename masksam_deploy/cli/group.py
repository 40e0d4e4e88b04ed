"""A click group that imports a command's module when the command runs, and not before."""

from __future__ import annotations

from importlib import import_module

import click

from masksam_deploy.base.errors import MaskSamError

ENTRY_POINTS = "masksam_deploy.commands"
"""Entry-point group through which other packages (the torch side) add commands."""

# name -> (where it is, the first line of its help, repeated here so that the list needs no import)
_BUILT_IN = {
    "bench": ("masksam_deploy.cli.bench:bench", "Measure a bundle stage by stage, after checking it."),
    "build-engine": ("masksam_deploy.cli.build_engine:build_engine", "Build a faster engine, judged by Dice."),
    "compare": ("masksam_deploy.cli.compare:compare", "Compare two bundles by their label maps of the same scans."),
    "doctor": ("masksam_deploy.cli.doctor:doctor", "Show what this machine can build and run, and what is missing."),
    "evaluate": ("masksam_deploy.cli.evaluate:evaluate", "Compare label maps with references."),
    "infer": ("masksam_deploy.cli.infer:infer", "Segment a scan, or many, with a bundle."),
    "inspect": ("masksam_deploy.cli.inspect:inspect", "Show what a bundle holds, and verify it."),
    "pack": ("masksam_deploy.cli.pack:pack", "Put a bundle into one file."),
    "sensitivity": ("masksam_deploy.cli.sensitivity:sensitivity", "Rank layers by what int8 does to them."),
    "unpack": ("masksam_deploy.cli.unpack:unpack", "Restore a bundle from its packed file, and verify it."),
}


class LazyGroup(click.Group):
    """Commands from the table above and from the entry-point group, built-in ones first and winning."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands; nothing of ours is imported for it."""
        return [*_BUILT_IN, *sorted(set(_entry_points()) - set(_BUILT_IN))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None if there is none of that name.

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
