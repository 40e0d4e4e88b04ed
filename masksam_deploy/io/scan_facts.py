"""What a worker says of a scan, as JSON: written by the worker, checked where it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

from masksam_deploy.base.isolation.wire import Message
from masksam_deploy.base.text import one_line
from masksam_deploy.base.volume import Geometry, NiftiForms

_MOST_WARNINGS, _LONGEST_WARNING = 200, 1000


def facts_of(geometry: Geometry, warnings: Sequence[str]) -> Message:
    """The worker's side."""
    texts = [one_line(text, _LONGEST_WARNING) for text in warnings[:_MOST_WARNINGS]]
    return {"geometry": asdict(geometry), "warnings": texts}


_Number = TypeVar("_Number", int, float)


def _numbers(value: object, count: int, kind: type[_Number]) -> tuple[_Number, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise ValueError("not a list of numbers")
    return tuple(kind(item) for item in value)


def geometry_from(value: object) -> Geometry:
    """A grid from its JSON.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is none.
    """
    if not isinstance(value, dict):
        raise TypeError("not a grid")
    x, y, z = _numbers(value["size_xyz"], 3, int)
    dx, dy, dz = _numbers(value["spacing_xyz"], 3, float)
    ox, oy, oz = _numbers(value["origin_lps"], 3, float)
    forms = value["nifti_forms"]
    return Geometry(
        (x, y, z),
        (dx, dy, dz),
        (ox, oy, oz),
        _numbers(value["direction_lps"], 9, float),
        None if forms is None else _forms(forms),
    )


def _forms(value: object) -> NiftiForms:
    if not isinstance(value, dict):
        raise TypeError("not the forms of a NIfTI header")
    b, c, d = _numbers(value["quaternion"], 3, float)
    x, y, z = _numbers(value["offset"], 3, float)
    return NiftiForms(
        qform_code=int(value["qform_code"]),
        sform_code=int(value["sform_code"]),
        qfac=float(value["qfac"]),
        quaternion=(b, c, d),
        offset=(x, y, z),
        sform=_numbers(value["sform"], 12, float),
    )


def warnings_from(value: object) -> tuple[str, ...]:
    """Warnings about a scan from their JSON.

    Raises:
        TypeError: it is no list.
    """
    if not isinstance(value, list):
        raise TypeError("not a list of warnings")
    return tuple(one_line(str(item), _LONGEST_WARNING) for item in value[:_MOST_WARNINGS])
