"""What TensorRT says while it works, kept for error messages instead of printed."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol


class Log(Protocol):
    """A `trt.ILogger` that remembers warnings and errors."""

    def clear(self) -> None:
        """Forget everything."""

    def first_error(self) -> str:
        """The first error since the last `clear`, or an empty text: when loading fails, what follows is its wake."""

    def last_error(self) -> str:
        """The last error, or an empty text."""

    def warnings(self) -> list[str]:
        """All warnings since the last `clear`."""


@cache
def open_log(trt: Any) -> Log:
    """The one log of this process and module: TensorRT keeps the first logger that it gets, and ignores others."""

    class Remembering(trt.ILogger):  # type: ignore[misc]
        """Appends under the interpreter's lock: TensorRT calls it from any thread."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lines: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if int(severity) <= int(trt.ILogger.Severity.WARNING):
                self._lines.append((int(severity), message))

        def clear(self) -> None:
            """See `Log`."""
            self._lines.clear()

        def first_error(self) -> str:
            """See `Log`."""
            return next(iter(self._errors()), "")

        def last_error(self) -> str:
            """See `Log`."""
            return next(reversed(self._errors()), "")

        def warnings(self) -> list[str]:
            """See `Log`."""
            return [text for level, text in self._lines if level == int(trt.ILogger.Severity.WARNING)]

        def _errors(self) -> list[str]:
            return [text for level, text in self._lines if level <= int(trt.ILogger.Severity.ERROR)]

    log: Log = Remembering()
    return log
