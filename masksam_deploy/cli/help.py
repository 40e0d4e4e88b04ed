"""How `--help` reads: options under headings, and examples at the end.

Click prints all options in one list. Commands with twenty options need headings, and every command needs an example.
This is done here with click's own formatter, because `--help` must not import rich.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound="Callable[..., Any] | click.Command")

_WITHOUT_HEADING = "Other options"


class GroupedOption(click.Option):
    """An option that stands under a heading of `--help`."""

    def __init__(self, *args: Any, heading: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


class OptionGroup:
    """Declares options as `click.option` does, and lists them under one heading of `--help`."""

    def __init__(self, heading: str) -> None:
        self._heading = heading

    def __call__(self, *names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
        return click.option(*names, cls=GroupedOption, heading=self._heading, **attributes)


class _WithExamples(click.Command):
    def __init__(self, *args: Any, examples: Mapping[str, str], **attributes: Any) -> None:
        # The epilog is what documentation generators for click print after the options.
        attributes["epilog"] = "\b\nExamples:\n" + "\n".join(_lines_of(examples))
        super().__init__(*args, **attributes)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples as they are typed, never wrapped."""
        with formatter.section("Examples"):
            for line in _lines_of(self.examples):
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(_WithExamples):
    """A command with examples, whose options may stand under headings.

    Attributes:
        examples: what an example does -> what is typed; long lines end in a backslash and go on below.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the options heading by heading, in the order of declaration; those without a heading come last."""
        sections: dict[str | None, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(self.heading_of(parameter), []).append(record)
        rest = sections.pop(None, [])
        for heading, records in sections.items():
            with formatter.section(str(heading)):
                formatter.write_dl(records)
        if rest:
            with formatter.section(_WITHOUT_HEADING if sections else "Options"):
                formatter.write_dl(rest)

    def heading_of(self, option: click.Option) -> str | None:
        """Under which heading an option stands; None for the end of the list."""
        return getattr(option, "heading", None)


class Group(_WithExamples, click.Group):
    """A group of commands with examples."""


def _lines_of(examples: Mapping[str, str]) -> list[str]:
    return [line for what, typed in examples.items() for line in (f"# {what}", *typed.splitlines())]
