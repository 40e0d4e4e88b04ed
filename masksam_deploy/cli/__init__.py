"""The command line `masksam-deploy`.

Starting it imports click and nothing else. Each command lives in a module of its own, which is imported when the
command runs: `--help` is instant, and a broken optional dependency breaks only the commands that need it.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO, TextIOWrapper
from types import FrameType
from typing import NoReturn

import click

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.base.text import printable
from masksam_deploy.cli.group import LazyGroup
from masksam_deploy.cli.stdout import discard_stdout

_LONGEST_LINE = 2_000
_LONGEST_TRACEBACK = 100_000
_REFUSALS = (
    {errno.EACCES, errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENOMEM}
    | {errno.ENXIO, errno.EPERM, errno.EROFS, errno.ETIMEDOUT}
    | {getattr(errno, name) for name in ("ESTALE", "EREMOTEIO") if hasattr(errno, name)}
)
"""Errors of the system with causes outside: a network share that went away, a limit on open files or processes."""
_REPORT = "this is a bug, please report it with the lines above and the command that you ran"


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("masksam-deploy")
        except PackageNotFoundError:
            found = "unknown (not installed)"
        click.echo(f"masksam-deploy {found}")
        ctx.exit()


_EXAMPLES = {
    "Segment one scan": "masksam-deploy infer scan.nii.gz -b lv.masksam -o seg.nii.gz",
    "Show the options of a command": "masksam-deploy infer --help",
}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, examples=_EXAMPLES)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Turn trained MaskSAM checkpoints into verified bundles, and segment scans with them."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0 success; 1 a bug; 2 a wrong call, input or environment; others as the error's type says
    (`errors.py`); 128 + signal after SIGINT, SIGTERM or SIGHUP, with temporary files removed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that cannot show a character of a label's name is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    with _signals_as_exits() as received:
        code = _run(args, received)
        try:
            if sys.stdout is not None:  # closed by the caller
                sys.stdout.flush()
        except BrokenPipeError:
            code = _after_broken_pipe()
    if _still_computing():
        # Python's own end would come while native code runs, and abort. All that has to be cleaned up was.
        os._exit(code)
    sys.exit(code)


def _still_computing() -> bool:
    """Whether a runtime still computes after an interruption: loading a network cannot be stopped."""
    module = sys.modules.get("masksam_deploy.base.interruptible")
    return module is not None and bool(module.still_running())


def _run(args: Sequence[str] | None, received: Sequence[int]) -> int:
    """Run one command and turn every way in which it can end into an exit code."""
    try:
        _check_arguments(args or ())
        result = app.main(args, prog_name="masksam-deploy", standalone_mode=False)
        # `ctx.exit(code)`, as after --help, comes back as the result.
        code = result if isinstance(result, int) else 0
    except Exception as exc:  # noqa: BLE001  the last place that can tell a bug from a refusal
        # A signal that arrives while a native module is being imported comes out as an error of that import.
        if received:
            return 128 + received[0]
        code = _code_of(exc)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    return code


def _check_arguments(args: Sequence[str]) -> None:
    """Refuse arguments that no shell can pass, only a caller in this process."""
    for argument in args:
        try:
            usable = b"\0" not in os.fsencode(argument)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise MaskSamError(
                f"{argument[:200]!r}: found an argument with a zero byte or half a character, expected text; correct it"
            )


def _code_of(exc: Exception) -> int:
    """Print what went wrong and return the exit code for it."""
    if isinstance(exc, MaskSamError):
        return _fail(str(exc), exc.exit_code)
    if isinstance(exc, click.ClickException):
        return _fail_as_click_does(exc)
    if isinstance(exc, click.Abort):
        return 128 + signal.SIGINT
    if isinstance(exc, BrokenPipeError):
        return _after_broken_pipe()
    if isinstance(exc, MemoryError):
        return _fail(
            "found too little memory for this work; close other programs, or use a machine with more memory", 2
        )
    return _code_of_system(exc)


def _code_of_system(exc: Exception) -> int:
    """The same for errors of the operating system; every other error is a bug."""
    if _is_full_disk(exc):
        return _fail_full_disk(exc)
    if _is_unusable_path(exc):
        return _fail_path(exc)
    return _fail_refused(exc) if _is_refused(exc) else _fail_unexpectedly(exc)


def _fail_as_click_does(exc: click.ClickException) -> int:
    text = StringIO()
    exc.show(text)
    with suppress(OSError):
        # Its lines quote what was typed.
        lines = map(printable, _cut(text.getvalue(), _LONGEST_LINE).splitlines())
        click.echo("\n".join(lines), err=True)
    return exc.exit_code


def _is_full_disk(exc: Exception) -> bool:
    return isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT)


def _fail_full_disk(exc: Exception) -> int:
    place = getattr(exc, "filename", None)
    while_writing = f" while writing {place!r}" if place else ""
    return _fail(f"found the disk full{while_writing}; free some space and run the command again", 2)


def _is_unusable_path(exc: Exception) -> bool:
    """Whether the error is about a path that no system call accepts."""
    if isinstance(exc, OSError):
        return exc.errno in (errno.ELOOP, errno.ENAMETOOLONG)
    # What pathlib makes of ELOOP before Python 3.13.
    return isinstance(exc, RuntimeError) and str(exc).startswith("Symlink loop")


def _fail_path(exc: Exception) -> int:
    what = exc.strerror if isinstance(exc, OSError) else "a symbolic link leads to itself"
    place = getattr(exc, "filename", None)
    named = f": {place!r}" if place else ""
    return _fail(f"found a path that cannot be used ({what}{named}), expected a file or folder; correct the path", 2)


def _is_refused(exc: Exception) -> bool:
    """Whether the system refused something; where this can be foreseen, a better message is raised earlier."""
    if isinstance(exc, OSError):
        return exc.errno in _REFUSALS
    return isinstance(exc, RuntimeError) and str(exc) == "can't start new thread"


def _fail_refused(exc: Exception) -> int:
    what = exc.strerror if isinstance(exc, OSError) else "no further thread can be started"
    place = getattr(exc, "filename", None)
    named = f": {place!r}" if place else ""
    return _fail(
        f"found that the system refuses to go on ({what}{named}); check the permissions, the disk or network share, "
        "and the limits on processes, open files and memory",
        2,
    )


def _cut(text: str, limit: int) -> str:
    """Shorten a text in its middle: its beginning says what was found, its end what to do."""
    if len(text) <= limit:
        return text
    end = limit // 4
    return f"{text[: limit - end - 5]} ... {text[-end:]}"


def _fail(message: str, code: int) -> int:
    # A message may quote names from files; it must stay one line and must not steer the terminal.
    line = " ".join(_cut(message, 2 * _LONGEST_LINE).split())
    with suppress(OSError):
        click.echo(f"error: {_cut(printable(line), _LONGEST_LINE)}", err=True)
    return code


def _fail_unexpectedly(exc: Exception) -> int:
    with suppress(OSError):
        click.echo(_cut("".join(traceback.format_exception(exc)), _LONGEST_TRACEBACK), err=True, nl=False)
    return _fail(f"unexpected {type(exc).__name__}: {exc}; {_REPORT}", 1)


def _after_broken_pipe() -> int:
    discard_stdout()
    return 1


class _Leave(SystemExit):
    """A signal asked the process to end."""


def _is_leaving(handled: BaseException | None) -> bool:
    """Whether the code that runs now cleans up after a signal, as the exception being handled shows."""
    while handled is not None:
        if isinstance(handled, _Leave):
            return True
        handled = handled.__context__
    return False


@contextmanager
def _signals_as_exits() -> Iterator[list[int]]:
    """Let signals that end the process unwind the stack first, so that temporary files are removed.

    Yields the list of signals received.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}

    def leave(number: int, _: FrameType | None) -> None:
        # A further signal must not interrupt the cleaning up, but must count where the first one was lost: Python
        # drops exceptions raised in finalizers.
        if not _is_leaving(sys.exc_info()[1]):
            received.append(number)
            raise _Leave(128 + number)

    for number, handler in previous.items():
        # One that is ignored already (nohup, background jobs) stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            if received:  # the process ends now, with the code of the first one
                signal.signal(number, signal.SIG_IGN)
            else:
                # None stands for a handler that was not installed from Python and cannot be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
