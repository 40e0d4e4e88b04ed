"""State dicts from files: names and tensors that everything after may rely on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.torch_files.quoting import some
from masksam_export.torch_files.torch_pickle import INFLATED, UnusualTensor

MAX_TENSORS = 20_000
"""The largest official network has 1,600 names."""
FLOAT32_GROWTH = 8  # float8 grows fourfold; the rest is for tensors that share some of their values
_WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)*")  # DistributedDataParallel, torch.compile


def named_tensors(state: Any, what: str, expected: str) -> dict[str, Tensor]:
    """The tensors of a state dict by name, without the prefixes that wrappers add.

    Args:
        state: what a file has where a state dict is expected.
        what: how to call it in messages.
        expected: which files have one, for messages.

    Raises:
        CheckpointError: no dict, too many names, or anything in it that is not a printable name with a dense
            floating-point tensor.
    """
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{what} holds a {type(state).__name__} where its weights should be; expected names and tensors, as in "
            f"{expected}"
        )
    if len(state) > MAX_TENSORS:
        raise CheckpointError(
            f"{what} has {len(state):,} entries; expected at most {MAX_TENSORS:,} tensors, as in {expected}"
        )
    # A name that does not print as it is cannot be a network's, and must not reach a message either.
    strangers = [
        str(name)
        for name, value in state.items()
        if not isinstance(value, Tensor | UnusualTensor) or not isinstance(name, str) or one_line(name, 10**6) != name
    ]
    if strangers:
        raise CheckpointError(
            f"{what} is no state dict: {some(strangers)} are no named tensors; expected nothing else, as in {expected}"
        )
    _refuse_odd(state, what)
    # The longest run of wrappers that every name starts with, in one pass over the names.
    prefix = _WRAPPERS.match(os.path.commonprefix(list(state)))  # noqa: RUF071  names, no paths
    length = prefix.end() if prefix else 0
    return {name[length:]: value.detach() for name, value in state.items()}


def _refuse_odd(state: Mapping[str, Tensor | UnusualTensor], what: str) -> None:
    unusual = {name: value.kind for name, value in state.items() if isinstance(value, UnusualTensor)}
    inflated = [f"{name} {kind.removeprefix(INFLATED).strip()}" for name, kind in unusual.items() if INFLATED in kind]
    odd = [f"{name} ({kind})" for name, kind in unusual.items() if INFLATED not in kind]
    odd += [
        f"{name} ({value.dtype})"
        for name, value in state.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
    ]
    if odd:
        raise CheckpointError(
            f"{what} has weights that are not dense floating-point tensors: {some(odd)}; expected only those: save the "
            "checkpoint again with plain tensors"
        )
    if inflated:
        raise CheckpointError(
            f"{what} has tensors larger than the data stored for them: {some(inflated)}; save the checkpoint again "
            "with tensors that have data of their own"
        )


def in_float32(weights: Mapping[str, Tensor], *, copy: bool = False) -> dict[str, Tensor]:
    """Every tensor in float32, all of them finite; names of the same values share the result.

    Args:
        weights: dense floating-point tensors of any width.
        copy: take memory of its own also where the tensor is float32 already.

    Raises:
        CheckpointError: views of the same data that would take far more memory than it does, or values that are NaN,
            infinite or too large for float32.
    """
    places = {name: place(value) for name, value in weights.items()}
    distinct = {places[name]: value for name, value in weights.items()}
    needed = 4 * sum(value.numel() for value in distinct.values())
    stored = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in distinct.values())}
    if needed > FLOAT32_GROWTH * sum(stored.values()):
        raise CheckpointError(
            f"the weights would take {needed / 2**20:.0f} MiB in float32, far more than the file holds; "
            "expected tensors with data of their own: save the checkpoint again"
        )
    converted = {where: value.to(torch.float32, copy=copy) for where, value in distinct.items()}
    # Judged after the conversion: a float64 of 1e300 is infinite only then.
    broken = {where for where, value in converted.items() if not bool(torch.isfinite(value).all())}
    if broken:
        names = sorted(name for name, where in places.items() if where in broken)
        raise CheckpointError(
            f"NaN, infinite or too large values in {some(names)}; expected finite float32 values: get the file again"
        )
    return {name: converted[where] for name, where in places.items()}


def place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors of the same values in the same memory."""
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def listed(kind: str, names: Iterable[str]) -> list[str]:
    """'kind: names', or nothing where there are none."""
    found = sorted(names)
    return [f"{kind}: {some(found)}"] if found else []
