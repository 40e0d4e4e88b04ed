"""What plain values from a hostile file may be: bounded in size and depth, text that is UTF-8, names that are short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from masksam_deploy.base.text import one_line

MAX_TEXT = 2**20
MAX_NAME = 512
MAX_WHOLE_BITS = 256  # states of random generators have 128; any such number still fits a float
MAX_DEPTH = 64
MAX_VALUES = 1_000_000
_KEY_LIMIT = 2**31
"""Of whole numbers as keys: Python's hashes of larger ones can be made to collide, and then a dict takes for ever."""


class DamagedError(ValueError):
    """A file is not what its format says, or beyond a limit; the message continues 'it cannot be read: '."""


def checked_text(text: str) -> str:
    """The text itself.

    Raises:
        DamagedError: longer than any file of ours needs, or not encodable as UTF-8 (lone surrogates).
    """
    if len(text) > MAX_TEXT:
        raise DamagedError(f"it holds a text of {len(text):,} characters, expected at most {MAX_TEXT:,}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DamagedError(f"it holds text that is not UTF-8: '{one_line(text, limit=60)}'") from None
    return text


def checked_whole(number: int) -> int:
    """The number itself.

    Raises:
        DamagedError: more than 256 bits.
    """
    if number.bit_length() > MAX_WHOLE_BITS:
        raise DamagedError(f"it holds a whole number of {number.bit_length():,} bits, expected {MAX_WHOLE_BITS}")
    return number


def checked_key(key: Any) -> str | int | None:
    """The key of a dict itself.

    Raises:
        DamagedError: neither a short text nor a whole number of 32 bits nor None.
    """
    if type(key) is str:
        if len(key) > MAX_NAME:
            raise DamagedError(
                f"it holds a name of {len(key):,} characters, expected at most {MAX_NAME}: '{one_line(key, limit=60)}'"
            )
        return key
    if key is None or (isinstance(key, int) and -_KEY_LIMIT <= key < _KEY_LIMIT):
        return key
    if isinstance(key, int):
        raise DamagedError(
            f"a key of a dict in it has {key.bit_length()} bits, expected a name or a small whole number"
        )
    raise DamagedError(
        f"a key of a dict in it is of type {type(key).__name__}, expected a name or a small whole number"
    )


class Copier:
    """Makes plain copies of what was read, and refuses what would not end.

    Values that a file mentions often are copied as often, so that whoever walks the copy needs no limits of his own.

    Args:
        leaf: what becomes of values that are no containers and no plain values; raises DamagedError otherwise.
    """

    def __init__(self, leaf: Callable[[Any], Any]) -> None:
        self._leaf = leaf
        self._left = MAX_VALUES

    def copy(self, value: Any, depth: int = 0) -> Any:
        """A copy of dicts, lists and tuples; each value in it checked.

        Raises:
            DamagedError: too deep (or within itself), too many values, text that is not UTF-8, long names.
        """
        self._left -= 1
        if self._left < 0:
            raise DamagedError(f"it holds more than {MAX_VALUES:,} values")
        kind = type(value)
        if kind is str:
            return checked_text(value)
        if kind is int:
            return checked_whole(value)
        if value is None or kind in (float, bool, bytes, complex):
            return value
        if kind not in (dict, list, tuple, set):
            return self._leaf(value)
        if depth >= MAX_DEPTH:
            raise DamagedError(f"its values are nested more than {MAX_DEPTH} deep")
        if kind is dict:
            # Checked as texts as well: the keys of a JSON file come here first.
            return {self.copy(checked_key(key)): self.copy(item, depth + 1) for key, item in value.items()}
        return kind(self.copy(item, depth + 1) for item in value)


def no_leaf(value: Any) -> Any:
    """For `Copier`: plain values only.

    Raises:
        DamagedError: always.
    """
    raise DamagedError(f"it holds a value of type {type(value).__name__}, expected plain values")
