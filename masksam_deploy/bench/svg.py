"""Just enough SVG for the report's charts: elements as text, everything escaped, colours left to the page's CSS."""

from __future__ import annotations

import math
from html import escape
from typing import Literal, TypeAlias

from masksam_deploy.base.text import one_line

Anchor: TypeAlias = Literal["start", "middle", "end"]
Marker: TypeAlias = Literal["circle", "square", "diamond", "triangle"]

MARKERS: tuple[Marker, ...] = ("circle", "square", "diamond", "triangle")


class Svg:
    """A drawing of a fixed size in pixels. `cls` arguments are classes of the page's style sheet."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, cls: str) -> None:
        """A straight line."""
        self._parts.append(f'<line class="{cls}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def rect(self, x: float, y: float, width: float, height: float, cls: str, tip: str = "") -> None:
        """A box, at least a pixel wide so that it is seen; `tip` shows when pointed at."""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect class="{cls}" {place}>{_tip(tip)}</rect>')

    def text(self, x: float, y: float, text: str, cls: str = "label", anchor: Anchor = "start") -> None:
        """One line of text; y is its baseline."""
        self._parts.append(f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_plain(text)}</text>')

    def mark(self, x: float, y: float, cls: str, marker: Marker = "circle", size: float = 5, tip: str = "") -> None:
        """A point of the given half size."""
        if marker == "circle":
            self._parts.append(f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="{size:g}">{_tip(tip)}</circle>')
            return
        offsets = {
            "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
            "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
            "triangle": ((0, -1.2), (1.1, 0.9), (-1.1, 0.9)),
        }[marker]
        points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in offsets)
        self._parts.append(f'<polygon class="{cls}" points="{points}">{_tip(tip)}</polygon>')

    def __str__(self) -> str:
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        head = f'<svg {size} role="img" aria-label="{_plain(self.title)}">'
        return "\n".join([head, *self._parts, "</svg>"])


class Scale:
    """A value to a pixel, linear or logarithmic.

    Args:
        low, high: values at the ends; both positive if logarithmic.
        start, stop: pixels at the ends.
        log: whether logarithmic.
    """

    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self._log = log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        self._start, self._stop = start, stop

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        position = math.log10(value) if self._log else value
        share = (position - self._low) / (self._high - self._low)
        return self._start + share * (self._stop - self._start)

    def ticks(self) -> list[float]:
        """Round values inside: 1, 2 or 5 times a power of ten apart; logarithmic, powers of ten (few: 2 and 5 too)."""
        if not self._log:
            step = round_step((self._high - self._low) / 5)
            first = math.ceil(self._low / step - 1e-9)
            return [number * step for number in range(first, math.floor(self._high / step + 1e-9) + 1)]
        factors = (1, 2, 5) if self._high - self._low < 2.5 else (1,)
        decades = range(math.floor(self._low), math.ceil(self._high) + 1)
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        return [value for value in values if self._low - 1e-9 <= math.log10(value) <= self._high + 1e-9]


def round_step(rough: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tip(text: str) -> str:
    return f"<title>{_plain(text)}</title>" if text else ""


def _plain(text: str) -> str:
    return escape(one_line(text, 200))
