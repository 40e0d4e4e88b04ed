"""Prepared cases kept on disk: a data set may be far larger than memory."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.text import shown
from masksam_deploy.base.volume import Volume
from masksam_export.families.masksam.training.cases import PreparedCase

_ALIGNMENT = 64


@dataclass(frozen=True)
class _Place:
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class CaseStore:
    """Collects the arrays of all cases in one file without a name, then maps it.

    The system frees the file with the arrays, or when the process ends, however it ends. What fits into memory is
    read from there. One file, because every mapped one takes one of the process's few file descriptors. A context
    manager; what `cases` returned outlives it.

    Args:
        folder: on the disk to use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed on leaving the context
        self._size = 0
        self._kept: list[tuple[PreparedCase, list[_Place]]] = []

    def __enter__(self) -> CaseStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, case: PreparedCase) -> None:
        """Take over the arrays of a case.

        Raises:
            OutputError: the disk is full, or refuses.
        """
        arrays = [case.image, case.labels, *([case.reference.array] if case.reference else [])]
        try:
            places = [self._write(array) for array in arrays]
        except OSError as error:
            raise OutputError(
                f"{shown(self._folder)}: cannot hold the prepared case '{case.name}' "
                f"({sum(array.nbytes for array in arrays) / 2**20:.0f} MiB): {error.strerror}; free space, or give a "
                "run folder on another disk"
            ) from error
        empty = np.empty(0, np.float32), np.empty(0, np.int8)
        self._kept.append((replace(case, image=empty[0], labels=empty[1]), places))

    def cases(self) -> list[PreparedCase]:
        """All cases in the order they were added, their arrays mapped."""
        self._file.flush()
        whole = np.memmap(self._file, dtype=np.uint8, mode="r+", shape=(max(self._size, 1),)) if self._size else None
        return [_restored(case, [_view(whole, place) for place in places]) for case, places in self._kept]

    def _write(self, array: NDArray[Any]) -> _Place:
        """Written, not only mapped: a full disk is an error here, and a crash in the middle of training otherwise."""
        place = _Place(self._size, array.dtype, array.shape)
        self._file.write(np.ascontiguousarray(array).data)
        padding = -array.nbytes % _ALIGNMENT
        self._file.write(bytes(padding))
        self._size += array.nbytes + padding
        return place


def check_space(needed: int, folder: Path) -> None:
    """Refuse, before the work, a disk that cannot hold `needed` bytes of prepared cases.

    Raises:
        OutputError: names what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{shown(folder)}: the prepared cases need {needed / 2**30:.1f} GiB of disk while training runs, found "
            f"{free / 2**30:.1f} GiB free; free space, or give a run folder on another disk"
        )


def _view(whole: NDArray[np.uint8] | None, place: _Place) -> NDArray[Any]:
    length = prod(place.shape) * place.dtype.itemsize
    if whole is None or not length:
        return np.empty(place.shape, place.dtype)
    return np.asarray(whole[place.offset : place.offset + length]).view(place.dtype).reshape(place.shape)


def _restored(case: PreparedCase, arrays: list[NDArray[Any]]) -> PreparedCase:
    image, labels, *rest = arrays
    reference = Volume(rest[0], case.reference.geometry) if case.reference else None
    return replace(case, image=image, labels=labels, reference=reference)
