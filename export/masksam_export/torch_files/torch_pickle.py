"""What a torch pickle may name, as records and plain values: tensors, storages, NumPy's scalars, containers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from masksam_deploy.base.text import one_line
from masksam_export.torch_files.pickle_walk import Call, Pickle
from masksam_export.torch_files.plain_values import DamagedError, checked_key

MAX_AXES = 16
MAX_ELEMENTS = 2**48
_NUMPY_KINDS = "fiub"
_ORDERS = (("<",), (">",), ("|",), ("=",))
_OF_PLAIN_NUMBERS = (None, None, None, -1, -1, 0)
"""What the state of a NumPy type says after version and byte order: subarray, names, fields, item size, alignment and
flags. With another item size NumPy itself reads memory that is not the number's."""
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QUInt8Storage": torch.quint8,
    "QInt8Storage": torch.qint8,
    "QInt32Storage": torch.qint32,
}
_UNUSUAL = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantised",
    "_rebuild_meta_tensor_no_storage": "without values",
    "_rebuild_wrapper_subclass": "a subclass",
    "_rebuild_device_tensor_from_numpy": "from NumPy",
    "_rebuild_device_tensor_from_cpu_tensor": "of another device",
}


@dataclass(frozen=True, eq=False)
class StorageRef:
    """Values of tensors, somewhere in the file.

    Attributes:
        key: its name in the file.
        dtype: of its elements; bytes where the file does not say.
        numel: how many.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """A dense tensor: a part of a storage.

    Attributes:
        storage: where its values are.
        dtype: of its elements.
        offset: of the first one, in elements.
        shape: of the tensor.
        stride: elements from one index to the next, one number for each axis.
    """

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class UnusualTensor:
    """Stands for a tensor that is not dense; no network here has one.

    Attributes:
        kind: what it is, for people.
    """

    kind: str


@dataclass(frozen=True, eq=False)
class _StorageType:
    dtype: torch.dtype


@dataclass(eq=False)
class _NumpyType:
    code: str
    order: str = "<"


@dataclass(frozen=True)
class Saved:
    """What one pickle holds.

    Attributes:
        value: plain values with `TensorSpec`s and `UnusualTensor`s in them.
        storages: every storage that it mentions, by key.
    """

    value: Any
    storages: dict[str, StorageRef]


def read_pickle(stream: io.BytesIO) -> Saved:
    """The next pickle of a stream.

    Raises:
        DamagedError: not a pickle, beyond a limit, or with values that make no sense.
        UnsafeObjectsError: objects other than tensors and plain values.
    """
    storages: dict[str, StorageRef] = {}
    return Saved(Pickle(stream, _KNOWN, partial(_storage, storages), _with_state).read(), storages)


def _storage(storages: dict[str, StorageRef], identity: Any) -> StorageRef:
    # Before torch 1.6 there is a sixth part: a view into another storage, which no torch since 0.4 writes.
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage" or any(identity[5:]):
        raise DamagedError("it refers to something other than a storage of values")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(kind, _StorageType) or type(key) is not str or not _is_count(numel):
        raise DamagedError("it describes a storage that cannot be")
    found = StorageRef(key, kind.dtype, numel)
    first = storages.setdefault(key, found)
    if first.numel * first.dtype.itemsize != numel * kind.dtype.itemsize:
        raise DamagedError(f"its storage '{one_line(key, limit=60)}' has two lengths")
    return found


def _with_state(target: Any, state: Any) -> Any:
    if isinstance(target, _NumpyType):
        if type(state) is not tuple or state[1:2] not in _ORDERS or state[2:] != _OF_PLAIN_NUMBERS:
            raise DamagedError("it describes a NumPy type that cannot be")
        return _NumpyType(target.code, state[1])
    if type(target) is not dict and not isinstance(target, TensorSpec | UnusualTensor):
        raise DamagedError("its pickle gives attributes to a value that has none")
    return target  # such as `_metadata` of a state dict: nothing here needs attributes, and they can shadow methods


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ELEMENTS


def _rebuild_tensor(arguments: tuple[Any, ...]) -> TensorSpec | UnusualTensor:
    """torch's `_rebuild_tensor(storage, offset, size, stride)`, and v2 with requires_grad, hooks and metadata."""
    storage = arguments[0] if arguments else None
    if not isinstance(storage, StorageRef):
        raise DamagedError("it has a tensor without a storage")
    return _tensor(storage, storage.dtype, arguments, metadata=arguments[6:7])


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> TensorSpec | UnusualTensor:
    """As v2, with a dtype of its own before the metadata."""
    if len(arguments) < 7 or not isinstance(arguments[0], StorageRef) or not isinstance(arguments[6], torch.dtype):
        raise DamagedError("it has a tensor without a storage")
    return _tensor(arguments[0], arguments[6], arguments, metadata=arguments[7:8])


def _tensor(
    storage: StorageRef, dtype: torch.dtype, arguments: tuple[Any, ...], metadata: tuple[Any, ...]
) -> TensorSpec | UnusualTensor:
    offset, shape, stride = (*arguments[1:4], None, None, None)[:3]
    if (
        type(shape) is not tuple
        or type(stride) is not tuple
        or len(shape) != len(stride)
        or len(shape) > MAX_AXES
        or not all(map(_is_count, (offset, *shape, *stride)))
        or prod(max(size, 1) for size in shape) > MAX_ELEMENTS
    ):
        raise DamagedError("it describes a tensor that cannot be")
    if any(metadata):
        return UnusualTensor("a lazy view")
    if dtype not in _DENSE:
        return UnusualTensor(str(dtype))
    if prod(shape) * dtype.itemsize > storage.numel * storage.dtype.itemsize:
        return UnusualTensor(f"{INFLATED} {list(shape)}")
    return TensorSpec(storage, dtype, offset, shape, stride)


def _unusual(kind: str, _: tuple[Any, ...]) -> UnusualTensor:
    return UnusualTensor(kind)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> TensorSpec | UnusualTensor:
    data = arguments[0] if arguments else None
    if not isinstance(data, TensorSpec | UnusualTensor):
        raise DamagedError("it has a parameter without a tensor")
    return data


def _rebuild_from_type(arguments: tuple[Any, ...]) -> TensorSpec | UnusualTensor:
    """A tensor with attributes of its own, or of a subclass: (function, type, its arguments, state)."""
    function, kind, inner = (*arguments[:3], None, None, None)[:3]
    if not isinstance(function, Call) or type(inner) is not tuple or function.build is _rebuild_from_type:
        raise DamagedError("it describes a tensor that cannot be")
    found = function.build(inner) if kind is _TENSOR else UnusualTensor("a subclass")
    if not isinstance(found, TensorSpec | UnusualTensor):
        raise DamagedError("it describes a tensor that cannot be")
    return found


def _numpy_type(arguments: tuple[Any, ...]) -> _NumpyType:
    code = arguments[0] if arguments else None
    # Codes of one letter and one digit: np.dtype itself takes whole grammars.
    if type(code) is not str or len(code) != 2 or code[0] not in _NUMPY_KINDS or code[1] not in "1248":
        raise DamagedError("it holds a NumPy value that is no plain number")
    return _NumpyType(code)


def _numpy_scalar(arguments: tuple[Any, ...]) -> float | int | bool:
    kind, data = (*arguments, None, None)[:2]
    if not isinstance(kind, _NumpyType) or type(data) is not bytes or len(data) != int(kind.code[1]):
        raise DamagedError("it holds a NumPy value that is no plain number")
    value = np.frombuffer(data, dtype=np.dtype(kind.order + kind.code))[0].item()
    return value if isinstance(value, float | int) else float(value)


def _encoded(arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes bytes: the text of the same code points, encoded as Latin-1."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
        raise DamagedError("it makes bytes in another way than Python writes them")
    return arguments[0].encode("latin-1")


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    """Empty, or as `_encoded`, or of such bytes."""
    if not arguments:
        return b""
    return arguments[0] if len(arguments) == 1 and type(arguments[0]) is bytes else _encoded(arguments)


def _dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """OrderedDict and Counter: empty, from pairs, or from a dict."""
    given = arguments[0] if arguments else ()
    pairs = list(given.items()) if type(given) is dict else given
    if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise DamagedError("it has a dict that is not made of pairs")
    return {checked_key(key): value for key, value in pairs}


def _set(arguments: tuple[Any, ...]) -> set[Any]:
    given = arguments[0] if arguments else []
    if type(given) not in (list, tuple):
        raise DamagedError("it has a set that is not made of a list")
    return set(map(checked_key, given))


def _size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    shape = arguments[0] if arguments else ()
    if type(shape) is not tuple or len(shape) > MAX_AXES or not all(map(_is_count, shape)):
        raise DamagedError("it has a shape that cannot be")
    return shape


def _complex(arguments: tuple[Any, ...]) -> complex:
    if len(arguments) != 2 or not all(type(part) is float for part in arguments):
        raise DamagedError("it has a complex number that is none")
    return complex(*arguments)


def _device(arguments: tuple[Any, ...]) -> str:
    """Its name: where tensors once were says nothing here."""
    if not 1 <= len(arguments) <= 2 or type(arguments[0]) is not str or not all(map(_is_count, arguments[1:])):
        raise DamagedError("it has a device that cannot be")
    return ":".join(map(str, arguments))


INFLATED = "larger than the data stored for it"
_SCHEMES = {str(value): str(value) for value in vars(torch).values() if isinstance(value, torch.qscheme)}
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_TENSOR = Call(_rebuild_parameter)
"""The classes, which `_rebuild_from_type_v2` names."""
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
_DENSE = {_DTYPES[f"torch.{name}"] for name in ("uint16", "uint32", "uint64", *_FLOAT8)} | {
    dtype for name, dtype in _STORAGES.items() if not name.startswith("Q")
}
_KNOWN: dict[str, Any] = {
    **_DTYPES,
    **_SCHEMES,
    **{
        f"{place}.{name}": _StorageType(dtype) for name, dtype in _STORAGES.items() for place in ("torch", "torch.cuda")
    },
    **{f"{place}.UntypedStorage": _StorageType(torch.uint8) for place in ("torch", "torch.storage", "torch.cuda")},
    **{f"torch._utils.{name}": Call(partial(_unusual, kind)) for name, kind in _UNUSUAL.items()},
    "torch._utils._rebuild_tensor": Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
    "torch._utils._rebuild_parameter_with_state": Call(_rebuild_parameter),
    "torch._tensor._rebuild_from_type_v2": Call(_rebuild_from_type),
    "torch.Tensor": _TENSOR,
    "torch.nn.parameter.Parameter": _TENSOR,
    "torch.Size": Call(_size),
    "torch.device": Call(_device),
    "torch.serialization._get_layout": Call(lambda _: "layout"),
    "collections.OrderedDict": Call(_dict),
    "collections.Counter": Call(_dict),
    "numpy.dtype": Call(_numpy_type),
    "numpy._core.multiarray.scalar": Call(_numpy_scalar),
    "numpy.core.multiarray.scalar": Call(_numpy_scalar),
    "_codecs.encode": Call(_encoded),
    **{
        f"{module}.{name}": Call(build)
        for module in ("builtins", "__builtin__")
        for name, build in {"set": _set, "complex": _complex, "bytes": _bytes, "bytearray": _bytes}.items()
    },
}
