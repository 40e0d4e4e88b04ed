"""Reads a torch file that may be hostile: only tensors and plain values come out, and nothing is executed.

torch's own loader is not used: even with `weights_only` it calls what a file asks for, in amounts that a file chooses.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.torch_files.pickle_walk import UnsafeObjectsError
from masksam_export.torch_files.plain_values import Copier, DamagedError
from masksam_export.torch_files.quoting import reason, some
from masksam_export.torch_files.torch_archive import Region, read_contents
from masksam_export.torch_files.torch_pickle import StorageRef, TensorSpec, UnusualTensor

MAX_FILE_BYTES = 64 * 2**30
"""Several times the largest official checkpoint; a file with a hole of terabytes costs nothing to make."""


def load_mapping(path: Path) -> dict[Any, Any]:
    """The dict that a torch file holds, its tensors mapped from the file; see `load_with_digest`."""
    return load_with_digest(path)[0]


def load_with_digest(path: Path) -> tuple[dict[Any, Any], str]:
    """The dict that a torch file holds, and the SHA-256 of the file, both from one reading.

    Dicts, lists, tuples, text, numbers, torch's dtypes and dense tensors come out as they were saved, with these
    differences: every dict is a plain dict, NumPy's scalars are Python's numbers, devices and layouts are their
    names, tensors need no gradients, and tensors that are not dense are `UnusualTensor`s. Tensors are mapped from the
    file and can be written to, which leaves the file as it is; those that shared memory still do.

    Raises:
        CheckpointError: no file, damaged, changed while it was read, no dict, or objects other than tensors and
            plain values; the message names them.
    """
    name = one_line(path.name)
    try:
        with open_regular(path, "a checkpoint: checkpoint_final.pth or a state dict") as file:
            before = _state(file)
            if before[0] > MAX_FILE_BYTES:
                raise DamagedError(f"it has {before[0]:,} bytes, expected at most {MAX_FILE_BYTES:,}")
            contents = read_contents(file)
            value = Copier(_Tensors(file, contents.regions).made).copy(contents.value)
            if _state(file) != before:
                raise DamagedError("it changed while it was read")
    except UnsafeObjectsError as error:
        raise CheckpointError(_why_unsafe(name, error.names)) from error
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"checkpoint '{name}' cannot be read: {reason(error)}; "
            "expected a file written by torch.save, complete: copy it again or check where it came from"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"checkpoint '{name}' holds a value of type {type(value).__name__}, expected a dict of weights: check that "
            "this is the file you meant"
        )
    return value, contents.sha256


def open_regular(path: Path, expected: str) -> BinaryIO:
    """A regular file, open to be read; pipes and devices are not waited for.

    Args:
        path: to open; links are followed.
        expected: what kind of file, for the message.

    Raises:
        CheckpointError: there is no such file, or it is of another kind.
        OSError, ValueError: as `open`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    problem = f"'{one_line(str(path))}' is not a file; expected {expected}"
    if not path.is_file():
        raise CheckpointError(problem)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced since
        file.close()
        raise CheckpointError(problem)
    return file


def _state(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


class _Tensors:
    """Makes the tensors of a file, which it maps: a checkpoint of 3 GB is not held twice."""

    def __init__(self, file: BinaryIO, regions: Mapping[str, Region]) -> None:
        # Copy on write: torch has no tensors that cannot be written to.
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._regions = regions
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._tensors: dict[TensorSpec, Tensor] = {}

    def made(self, value: Any) -> Any:
        """The tensor that a record describes; for `Copier`."""
        if isinstance(value, torch.dtype | UnusualTensor):
            return value
        if not isinstance(value, TensorSpec):
            raise DamagedError("it holds a function, a type or a storage where a value should be")
        if value not in self._tensors:
            self._tensors[value] = self._tensor(value)
        return self._tensors[value]

    def _tensor(self, spec: TensorSpec) -> Tensor:
        if 0 in spec.shape:
            return torch.empty(spec.shape, dtype=spec.dtype)
        last = spec.offset + sum((size - 1) * step for size, step in zip(spec.shape, spec.stride, strict=True))
        storage = self._storage(spec.storage)
        if (last + 1) * spec.dtype.itemsize > storage.nbytes():
            raise DamagedError(f"a tensor {list(spec.shape)} in it is larger than the data stored for it")
        return torch.empty(0, dtype=spec.dtype).set_(storage, spec.offset, spec.shape, spec.stride)

    def _storage(self, reference: StorageRef) -> torch.UntypedStorage:
        place, itemsize = self._regions.get(reference.key), reference.dtype.itemsize
        if place is None or place.length // itemsize != reference.numel:
            found = "no such data" if place is None else f"{place.length:,} bytes of data"
            raise DamagedError(
                f"its storage '{one_line(reference.key, limit=60)}' has {found}, expected "
                f"{reference.numel * itemsize:,} bytes"
            )
        if reference.key not in self._storages:
            flat = torch.frombuffer(self._map, dtype=torch.uint8, count=place.length, offset=place.start)
            # Other tools that write zip archives do not align what is in them.
            aligned = flat if place.start % 16 == 0 else flat.clone()
            self._storages[reference.key] = aligned.untyped_storage()
        return self._storages[reference.key]


def _why_unsafe(name: str, unsafe: tuple[str, ...]) -> str:
    return (
        f"checkpoint '{name}' contains objects other than tensors and plain values: {some(unsafe)}; such "
        "objects can run code when loaded, so it was not loaded. Save the weights as plain tensors, "
        "torch.save({'network_weights': model.state_dict()}, ...), and pass --plans and --dataset"
    )
