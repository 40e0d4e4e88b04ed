"""The legend of an overlay: colour, value, name and volume of every label, in columns that never overflow."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font: TypeAlias = FreeTypeFont | ImageFont

Colour: TypeAlias = tuple[int, int, int]

TEXT: Colour = (235, 235, 235)
FAINT: Colour = (150, 150, 150)
_SIZE = 17
_ROW = 26
_SWATCH = 16
_GAP = 10
_WIDEST_NAME = 330


@dataclass(frozen=True)
class Entry:
    """One line of the legend.

    Attributes:
        value, name: the label value and its name.
        colour: RGB of the label's contours.
        volume_ml: volume in millilitres; None if the label does not occur.
        shown: whether one of the drawn slices shows the label.
    """

    value: int
    name: str
    colour: Colour
    volume_ml: float | None
    shown: bool

    @property
    def amount(self) -> str:
        """The volume as text, with a note if no drawn slice shows the label."""
        if self.volume_ml is None:
            return "not found"
        digits = 2 if self.volume_ml < 10 else 1 if self.volume_ml < 100 else 0
        text = f"{self.volume_ml:.{digits}f} ml"
        return text if self.shown else f"{text}, not on these slices"


class Legend:
    """The entries, laid out in as many columns as fit into a width.

    Args:
        entries: in the order of drawing.
        width: of the legend in pixels.

    Attributes:
        height: of the legend in pixels.
    """

    def __init__(self, entries: Sequence[Entry], width: int) -> None:
        texts = [(str(entry.value), fitting(entry.name, _SIZE, _WIDEST_NAME), entry.amount) for entry in entries]
        self._entries = entries
        self._texts = texts
        widths = [max((_width(text[part]) for text in texts), default=0) for part in range(3)]
        self._offsets = (_SWATCH + _GAP + widths[0], _SWATCH + 2 * _GAP + widths[0])
        self._content = self._offsets[1] + widths[1] + 2 * _GAP + widths[2]
        most = max(1, (width + 4 * _GAP) // (self._content + 4 * _GAP))
        # As few columns as the least number of rows needs, so that they fill evenly.
        self._rows = -(-len(entries) // most)
        columns = -(-len(entries) // self._rows) if entries else 1
        self._step = (width + 4 * _GAP) // max(columns, 3)
        self._step = max(self._step, self._content + 4 * _GAP)
        self.height = self._rows * _ROW

    def draw(self, draw: ImageDraw, left: int, top: int) -> None:
        """Draw the legend.

        Args:
            draw: the image.
            left, top: pixel of the legend's upper left corner.
        """
        for index, (entry, (value, name, amount)) in enumerate(zip(self._entries, self._texts, strict=True)):
            x = left + index // self._rows * self._step
            y = top + index % self._rows * _ROW + _ROW // 2
            swatch = (x, y - _SWATCH // 2, x + _SWATCH, y + _SWATCH // 2)
            found = entry.volume_ml is not None
            draw.rectangle(swatch, fill=entry.colour if found else None, outline=entry.colour, width=2)
            ink = TEXT if found else FAINT
            draw.text((x + self._offsets[0], y), value, FAINT, font(_SIZE), anchor="rm")
            draw.text((x + self._offsets[1], y), name, ink, font(_SIZE), anchor="lm")
            draw.text((x + self._content, y), amount, ink, font(_SIZE), anchor="rm")


@cache
def font(size: int) -> Font:
    """The font that comes with Pillow, which is the same on every machine.

    Args:
        size: in pixels.
    """
    from PIL.ImageFont import load_default

    return load_default(size=size)


def fitting(text: str, size: int, width: int) -> str:
    """Replace letters that the font lacks, and shorten the text.

    Args:
        text: any text.
        size: of the font in pixels.
        width: the largest width in pixels.
    """
    # The font knows ASCII only: an accent is dropped, another script becomes question marks.
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    plain = "".join(char if " " <= char <= "~" else "?" for char in plain)
    if font(size).getlength(plain) <= width:
        return plain
    while plain and font(size).getlength(f"{plain}...") > width:
        plain = plain[:-1]
    return f"{plain}..."


def _width(text: str) -> int:
    return round(font(_SIZE).getlength(text))
