"""Reads a pickle without Python's unpickler: a short list of opcodes, plain values, and limits on all of it.

Nothing that a file names is ever looked up in a module. Names stand in a table that the caller hands over; whatever a
pickle wants to call is a function from that table.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from masksam_export.torch_files.plain_values import DamagedError, checked_key, checked_text, checked_whole

MAX_PICKLE_BYTES = 32 * 2**20
MAX_OPCODES = 3_000_000
"""An official checkpoint of 1000 epochs with 15 classes has half a million."""
MAX_COPIED = 64 * 2**20
"""Bytes that calls may copy, all together: a call takes a few bytes of a file, its result may take any number."""
PROTOCOL = 2  # what torch.save writes and torch.load reads

_NAMES = {code.code.encode("latin-1"): code.name for code in pickletools.opcodes}


class UnsafeObjectsError(Exception):
    """A pickle names what is neither a tensor nor a plain value.

    Attributes:
        names: all of them, sorted.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__("objects other than tensors and plain values")


@dataclass(frozen=True, eq=False)
class Call:
    """What a pickle may call.

    Attributes:
        build: gets the arguments; raises DamagedError on any that make no sense.
    """

    build: Callable[[tuple[Any, ...]], Any]


class Pickle:
    """One pickle of a stream, and what it holds.

    Args:
        stream: positioned where the pickle starts; afterwards where it ends.
        known: values and `Call`s by the names that a pickle may use, as `module.name`.
        persistent: what a persistent id, such as that of a storage, stands for.
        build: takes the state that a pickle gives to an object, and returns the object with it.

    Raises:
        DamagedError: not a pickle, unknown opcodes, or beyond a limit.
        UnsafeObjectsError: names that are not in `known`.
    """

    def __init__(
        self,
        stream: io.BytesIO,
        known: Mapping[str, Any],
        persistent: Callable[[Any], Any],
        build: Callable[[Any, Any], Any],
    ) -> None:
        self._stream, self._known, self._persistent, self._build = stream, known, persistent, build
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._strangers: set[str] = set()
        self._copied = 0

    def read(self) -> Any:
        """Walk to the end; call it once."""
        try:
            return self._walk()
        except DamagedError as error:
            if self._strangers:  # what such objects leave behind makes no sense to what follows
                raise UnsafeObjectsError(self._strangers) from error
            raise

    def _walk(self) -> Any:
        read, stack = self._stream.read, self._stack
        for _ in range(MAX_OPCODES):
            code = read(1)
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise DamagedError(_unknown(code))
            value = opcode.arg.reader(self._stream) if opcode.arg else None
            if opcode.name == "STOP":
                return self._result()
            if opcode.name in _CONSTANTS:
                stack.append(_CONSTANTS[opcode.name])
            else:
                _ACTIONS[opcode.name](self, value)
        raise DamagedError(f"it takes more than {MAX_OPCODES:,} steps to read")

    def _result(self) -> Any:
        value = self._pop()
        if self._strangers:
            raise UnsafeObjectsError(self._strangers)
        if self._stack or self._marks:
            raise DamagedError("its pickle ends in the middle")
        return value

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise DamagedError("its pickle takes values that are not there")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise DamagedError("its pickle takes values that are not there")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _protocol(self, version: int) -> None:
        if version != PROTOCOL:
            raise DamagedError(f"it is a pickle of protocol {version}, expected {PROTOCOL}, which torch.save writes")

    def _text(self, text: str) -> None:
        self._stack.append(checked_text(text))

    def _old_text(self, text: str) -> None:
        """Text as Python 2 wrote it, which `pickletools` takes for Latin-1."""
        self._stack.append(text.encode("latin-1").decode("utf-8"))

    def _whole(self, number: int) -> None:
        self._stack.append(checked_whole(number))

    def _number(self, number: float) -> None:
        self._stack.append(number)

    def _tuple(self, length: int | None) -> None:
        if length is None:
            self._stack.append(tuple(self._since_mark()))
        else:
            self._stack.append(tuple(reversed([self._pop() for _ in range(length)])))

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise DamagedError(f"its pickle appends to a {type(target).__name__}")
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict or len(values) % 2:
            raise DamagedError(f"its pickle puts entries into a {type(target).__name__}")
        target.update((checked_key(key), value) for key, value in zip(values[::2], values[1::2], strict=True))

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise DamagedError("its pickle refers to a value that is not there")
        self._stack.append(self._memo[index])

    def _global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        path = f"{module}.{attribute}"
        if path not in self._known:
            # Goes on, so that the message names all of them: what is called by such a name gives nothing.
            self._strangers.add(path)
        self._stack.append(self._known.get(path, _STRANGER))

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        if _STRANGER is function:
            self._stack.append(_STRANGER)
            return
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise DamagedError("its pickle calls what cannot be called")
        self._copied += sum(map(_cost, arguments))
        if self._copied > MAX_COPIED:
            raise DamagedError(f"reading it copies more than {MAX_COPIED >> 20} MiB")
        self._stack.append(function.build(arguments))

    def _set_state(self, _: None) -> None:
        state, target = self._pop(), self._pop()
        self._stack.append(_STRANGER if target is _STRANGER else self._build(target, state))

    def _persistent_id(self, _: None) -> None:
        self._stack.append(self._persistent(self._pop()))


_STRANGER = Call(lambda _: None)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_ACTIONS: dict[str, Callable[[Pickle, Any], None]] = {
    "PROTO": Pickle._protocol,
    "MARK": Pickle._mark,
    "GLOBAL": Pickle._global,
    "REDUCE": Pickle._reduce,
    "BUILD": Pickle._set_state,
    "BINPERSID": Pickle._persistent_id,
    "BINGET": Pickle._get,
    "LONG_BINGET": Pickle._get,
    "BINPUT": Pickle._put,
    "LONG_BINPUT": Pickle._put,
    "BININT": Pickle._number,
    "BININT1": Pickle._number,
    "BININT2": Pickle._number,
    "LONG1": Pickle._whole,
    "BINFLOAT": Pickle._number,
    "BINUNICODE": Pickle._text,
    "SHORT_BINSTRING": Pickle._old_text,
    "TUPLE": lambda pickle, _: pickle._tuple(None),
    "TUPLE1": lambda pickle, _: pickle._tuple(1),
    "TUPLE2": lambda pickle, _: pickle._tuple(2),
    "TUPLE3": lambda pickle, _: pickle._tuple(3),
    "EMPTY_LIST": lambda pickle, _: pickle._stack.append([]),
    "APPEND": lambda pickle, _: pickle._extend([pickle._pop()]),
    "APPENDS": lambda pickle, _: pickle._extend(pickle._since_mark()),
    "EMPTY_DICT": lambda pickle, _: pickle._stack.append({}),
    "SETITEM": lambda pickle, _: pickle._update([pickle._pop(), pickle._pop()][::-1]),
    "SETITEMS": lambda pickle, _: pickle._update(pickle._since_mark()),
}


_OPCODES = {
    code.code.encode("latin-1"): code
    for code in pickletools.opcodes
    if code.name in _ACTIONS or code.name in _CONSTANTS or code.name == "STOP"
}


def _cost(argument: Any) -> int:
    if isinstance(argument, str | bytes):
        return len(argument)
    return 64 * len(argument) if isinstance(argument, list | dict | tuple) else 8


def _unknown(code: bytes) -> str:
    if not code:
        return "its pickle ends in the middle"
    return f"its pickle uses {_NAMES.get(code, 'an unknown instruction')}, which torch.save does not write"
