"""What a kernel's PTX takes, and the same without the arguments that only Triton's launcher passes."""

from __future__ import annotations

import re

from masksam_kernels.arguments import ARGUMENTS, SCRATCH
from masksam_kernels.errors import KernelError

TYPES = {"pointer": ".u64", "int32": ".u32"}
ENTRY = re.compile(r"(?P<head>\.entry\s+[\w$]+\s*\()(?P<parameters>[^)]*)(?P<body>\).*)", re.DOTALL)


def check_entry(ptx: str, name: str) -> None:
    """Refuses code whose entry takes other arguments than a launch passes, as another Triton might make it.

    Raises:
        KernelError: says what it takes.
    """
    found = [parameter.split()[1] for parameter in _parameters(_entry(ptx, name))]
    expected = [TYPES[kind] for _, kind in ARGUMENTS]
    if found != expected:
        raise KernelError(
            f"{name} was compiled to take {found}, expected {expected}: use the Triton of constraints.txt"
        )


def without_scratch(ptx: str, name: str) -> str:
    """The kernel without its last two arguments, for launchers that pass the documented ones only.

    Raises:
        KernelError: the kernel reads one of them, or takes other arguments than expected.
    """
    check_entry(ptx, name)
    entry = _entry(ptx, name)
    parameters = _parameters(entry)
    kept, scratch = parameters[: -len(SCRATCH)], parameters[-len(SCRATCH) :]
    for parameter in scratch:
        symbol = parameter.split()[-1]
        if re.search(rf"{re.escape(symbol)}(?![\w$])", entry["body"]):
            raise KernelError(
                f"{name} reads Triton's scratch argument {symbol}, expected it to be left alone: only Triton can "
                f"start it; build the pack again with the Triton of constraints.txt"
            )
    return ptx[: entry.start()] + entry["head"] + "\n\t" + ",\n\t".join(kept) + "\n" + entry["body"]


def _entry(ptx: str, name: str) -> re.Match[str]:
    entry = ENTRY.search(ptx)
    if entry is None or ".entry" in entry["body"]:
        raise KernelError(f"{name} has {ptx.count('.entry')} entry points, expected one: build the pack again")
    return entry


def _parameters(entry: re.Match[str]) -> list[str]:
    return [parameter.strip() for parameter in entry["parameters"].split(",")]
