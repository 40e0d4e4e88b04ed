"""A look at an ONNX file before any runtime sees it: what may run for ever, or grow without end, is refused.

A bundle's hashes show that nothing was changed, not that its maker meant well. A graph with a loop, or whose functions
call each other 2^39 times, holds a runtime up for ever, most of them where nothing can stop it. MaskSAM's graphs are
straight lines of standard operators, so everything else is refused. Only the structure is read: weights are skipped.

What is not seen here, because only running shows it, is how large the tensors become and how long operators take.
Limits of memory (`memory.bounded`) and of time (`runtimes.onnxruntime`) are for these.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.paths import open_regular
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.integer_division import Integers, Node
from masksam_deploy.bundle.protobuf import LENGTH, VARINT, Field, WireError, WireReader

LARGEST_FILE = 2**31 - 1
"""Bytes: where protobuf ends. Larger graphs keep their weights in a file beside them."""
MOST_NODES = 200_000
"""With functions put in place. The largest encoder that is exported (ViT-H) has some thousands, an int8 engine of it
some ten thousand."""
MOST_WEIGHTS = 200_000
MOST_FUNCTIONS = 1_000
DEEPEST_CALLS = 10
"""Of functions in functions; exports have one level."""
MOST_FIELDS = 5_000_000
"""Of the protobuf messages that are looked into: some seconds at most."""
_LONGEST_NAME = 1_000
_ELEMENTS_PER_BYTE = 4
"""At most: two bits are the smallest element there is."""

CONTROL_FLOW = frozenset(["If", "Loop", "Scan", "SequenceMap"])
ALLOWED = frozenset(
    [
        *("Add", "AveragePool", "Cast", "Concat", "Constant", "Conv", "ConvTranspose", "Cos", "DequantizeLinear"),
        *("Div", "Erf", "Exp", "Floor", "Gather", "Gelu", "Gemm", "Greater", "Identity", "InstanceNormalization"),
        *("LayerNormalization", "LeakyRelu", "MatMul", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "ReduceMax"),
        *("ReduceMean", "Relu", "Reshape", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt"),
        *("Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    ]
)
"""Standard operators that a graph may have: those of exports and engines, and a few functions of one number.

Others are not needed. Some end the process on odd attributes or empty tensors (`GatherND`, `Max`, `Unique`), or make
tensors of any size out of nothing (`ConstantOfShape`, `Expand`).
"""
_TYPED_BY_ATTRIBUTE = frozenset(["Cast", "Constant"])
_INT64 = 7
_STANDARD = ""
_DATA_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,250}\.data\Z")
_AGAIN = "use a bundle that masksam-deploy exported"


class _Graph:
    NODE, WEIGHT, SPARSE_WEIGHT = 1, 5, 15


class _Model:
    GRAPH, TRAINING, FUNCTION = 7, 20, 25


class _Node:
    INPUT, OUTPUT, OP_TYPE, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7


class _Attribute:
    NAME, INTEGER, TENSOR, GRAPH, TENSORS, GRAPHS, SPARSE, SPARSES = 1, 3, 5, 6, 10, 11, 22, 23
    TARGET_TYPE = "to"


class _Tensor:
    DIMS, TYPE, NAME, EXTERNAL, LOCATION = 1, 2, 8, 13, 14


class _Function:
    NAME, NODE, DOMAIN, DEFAULT = 1, 7, 10, 11


class _Call(NamedTuple):
    """An operator, or a function of the file."""

    domain: str
    name: str


@dataclass
class _Found:
    """What was counted so far.

    Attributes:
        nodes: of the graph.
        functions: the nodes of each.
        weights: how many there are.
        external: data file -> bytes of weights that are said to lie in it.
    """

    nodes: Counter[_Call] = field(default_factory=Counter)
    functions: dict[_Call, Counter[_Call]] = field(default_factory=dict)
    weights: int = 0
    external: Counter[str] = field(default_factory=Counter)


class _Refusal(Exception):  # noqa: N818  becomes a BundleError, which names the file
    """What was found and what was expected."""


def check_graph(path: Path) -> None:
    """Refuse an ONNX file that is none, or that a runtime must not be given.

    Allowed are nodes of the standard operators without subgraphs, and functions that the file itself defines from
    them. Weights lie in the file, or in one named `*.data` in the same folder.

    Raises:
        BundleError: says what was found.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= LARGEST_FILE:
                raise _Refusal(f"found {size} bytes, expected an ONNX graph of 1 to {LARGEST_FILE}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = _Walk(WireReader(data, MOST_FIELDS), path.parent).model(size)
        if not found.nodes:
            raise _Refusal("found no ONNX graph, or one without nodes, expected a network")
        _check_calls(found)
    except (_Refusal, WireError) as refusal:
        found_instead = refusal if isinstance(refusal, _Refusal) else f"found no ONNX graph ({refusal}), expected one"
        raise BundleError(f"{shown(path)}: {found_instead}; {_AGAIN}") from refusal
    except OSError as error:
        raise BundleError(
            f"{shown(path)}: found a graph that cannot be read ({error.strerror}), expected a readable file; check "
            "its permissions and the disk"
        ) from error


class _Walk:
    """Goes through the messages of one file.

    Args:
        reader: of the whole file.
        folder: where files of weights lie.
    """

    def __init__(self, reader: WireReader, folder: Path) -> None:
        self._reader = reader
        self._folder = folder
        self._found = _Found()
        self._sizes: dict[str, int] = {}

    def model(self, size: int) -> _Found:
        """The whole file. Parts that come twice are looked at twice, as protobuf merges them."""
        for part in self._messages(0, size):
            if part.number == _Model.GRAPH:
                self._graph(part)
            elif part.number == _Model.FUNCTION:
                self._function(part)
            elif part.number == _Model.TRAINING:
                raise _Refusal("found steps of training, expected a network")
        return self._found

    def _messages(self, start: int, end: int) -> Iterator[Field]:
        return (part for part in self._reader.fields(start, end) if part.kind == LENGTH)

    def _graph(self, graph: Field) -> None:
        integers = Integers()
        for part in self._messages(graph.start, graph.end):
            if part.number == _Graph.NODE:
                self._add(self._found.nodes, integers, part)
            elif part.number == _Graph.WEIGHT:
                self._found.weights += 1
                if self._found.weights > MOST_WEIGHTS:
                    raise _Refusal(f"found more than {MOST_WEIGHTS} weights, expected some thousands")
                integers.add_weight(*self._tensor(part))
            elif part.number == _Graph.SPARSE_WEIGHT:
                raise _Refusal("found a sparse weight, expected dense ones")
        _refuse_division(integers)

    def _function(self, function: Field) -> None:
        name = domain = ""
        nodes: Counter[_Call] = Counter()
        integers = Integers()
        for part in self._messages(function.start, function.end):
            if part.number == _Function.NAME:
                name = self._reader.text(part, _LONGEST_NAME)
            elif part.number == _Function.DOMAIN:
                domain = self._reader.text(part, _LONGEST_NAME)
            elif part.number == _Function.NODE:
                self._add(nodes, integers, part)
            elif part.number == _Function.DEFAULT:
                self._attribute(part)
        _refuse_division(integers)
        call = _call(domain, name)
        if call.domain == _STANDARD:
            raise _Refusal(f"found a function '{one_line(name, 40)}' among the standard operators, expected none there")
        if call in self._found.functions:
            raise _Refusal(f"found function '{one_line(name, 40)}' twice, expected it once")
        if len(self._found.functions) >= MOST_FUNCTIONS:
            raise _Refusal(f"found more than {MOST_FUNCTIONS} functions, expected a few")
        self._found.functions[call] = nodes

    def _add(self, nodes: Counter[_Call], integers: Integers, node: Field) -> None:
        kind = domain = ""
        inputs: list[str] = []
        outputs: list[str] = []
        makes: int | None = None
        for part in self._messages(node.start, node.end):
            if part.number == _Node.INPUT:
                inputs.append(self._reader.text(part, _LONGEST_NAME))
            elif part.number == _Node.OUTPUT:
                outputs.append(self._reader.text(part, _LONGEST_NAME))
            elif part.number == _Node.OP_TYPE:
                kind = self._reader.text(part, _LONGEST_NAME)
            elif part.number == _Node.DOMAIN:
                domain = self._reader.text(part, _LONGEST_NAME)
            elif part.number == _Node.ATTRIBUTE:
                makes = self._attribute(part) or makes
        call = _call(domain, kind)
        if call.domain == _STANDARD and kind in CONTROL_FLOW:
            raise _Refusal(f"found the operator {kind}, expected no loops and branches")
        if call.domain == _STANDARD and kind not in ALLOWED:
            raise _Refusal(
                f"found the operator {one_line(kind, 40)}, expected those that exported networks are made of"
            )
        nodes[call] += 1
        makes = makes if kind in _TYPED_BY_ATTRIBUTE else None
        integers.add_node(Node(kind, call.domain != _STANDARD, inputs, outputs, makes))

    def _attribute(self, attribute: Field) -> int | None:
        """The element type that an attribute gives to what its node makes, if it does."""
        name, number, held = "", None, None
        for part in self._reader.fields(attribute.start, attribute.end):
            if part.number == _Attribute.INTEGER and part.kind == VARINT:
                number = part.value
            if part.kind != LENGTH:
                continue
            if part.number == _Attribute.NAME:
                name = self._reader.text(part, _LONGEST_NAME)
            if part.number in (_Attribute.GRAPH, _Attribute.GRAPHS):
                raise _Refusal("found a graph within an operator, expected no loops and branches")
            if part.number in (_Attribute.SPARSE, _Attribute.SPARSES):
                raise _Refusal("found a sparse constant, expected dense ones")
            if part.number in (_Attribute.TENSOR, _Attribute.TENSORS):
                held = self._tensor(part)[1]
        # Whole numbers among a constant's attributes (`value_int`) make integers, too.
        if name.startswith("value_int"):
            return _INT64
        return number if name == _Attribute.TARGET_TYPE else held

    def _tensor(self, tensor: Field) -> tuple[str, int]:
        """That a weight has the bytes that its shape needs: shapes alone make runtimes take memory.

        Returns:
            Its name and element type.
        """
        dims: list[int] = []
        outside = False
        name, element_type = "", 0
        entries: dict[str, str] = {}
        for part in self._reader.fields(tensor.start, tensor.end):
            if part.number == _Tensor.DIMS:
                dims += self._reader.varints(part)
            elif part.number == _Tensor.TYPE and part.kind == VARINT:
                element_type = part.value
            elif part.number == _Tensor.NAME and part.kind == LENGTH:
                name = self._reader.text(part, _LONGEST_NAME)
            elif part.number == _Tensor.LOCATION and part.kind == VARINT:
                outside = part.value != 0
            elif part.number == _Tensor.EXTERNAL and part.kind == LENGTH:
                key, value = self._entry(part)
                entries[key] = value
            if len(dims) > 64:
                raise _Refusal("found a weight of more than 64 dimensions, expected at most 64")
        held = self._held_outside(entries) if outside or entries else tensor.end - tensor.start
        if prod(dims) > _ELEMENTS_PER_BYTE * held:
            raise _Refusal(
                f"found a weight of shape {one_line(str(dims), 60)} in {held} bytes, expected as many as it takes"
            )
        return name, element_type

    def _entry(self, entry: Field) -> tuple[str, str]:
        parts = {part.number: self._reader.text(part, _LONGEST_NAME) for part in self._messages(entry.start, entry.end)}
        return parts.get(1, ""), parts.get(2, "")

    def _held_outside(self, entries: Mapping[str, str]) -> int:
        """Bytes of a weight that lies in another file; that file holds them, and holds none twice."""
        name = entries.get("location", "")
        if not _DATA_FILE.match(name):
            raise _Refusal(
                f"found weights in the file '{one_line(name, 80)}', expected them here, or in a file NAME.data in the "
                "same folder"
            )
        if name not in self._sizes:
            self._sizes[name] = self._size_of(name)
        size = self._sizes[name]
        offset, length = _whole(entries.get("offset", "0")), entries.get("length")
        held = max(0, size - offset) if length is None else _whole(length)
        self._found.external[name] += held
        if offset + held > size or self._found.external[name] > size:
            raise _Refusal(f"found more weights than '{name}' holds, expected every one of them there once")
        return held

    def _size_of(self, name: str) -> int:
        try:
            status = (self._folder / name).lstat()
        except OSError as error:
            raise _Refusal(f"found no file '{name}' beside it, expected the graph's weights there") from error
        if not stat.S_ISREG(status.st_mode):
            raise _Refusal(f"found that '{name}' is no regular file, expected the graph's weights there")
        return status.st_size


def _refuse_division(integers: Integers) -> None:
    found = integers.divided()
    if found:
        raise _Refusal(
            f"found that {one_line(found, 40)} divides whole numbers, or may, expected it to divide none: by zero, "
            "that ends the process"
        )


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _Refusal(f"found '{one_line(text, 40)}' as the place of a weight, expected a whole number")
    return int(text)


def _call(domain: str, name: str) -> _Call:
    return _Call(_STANDARD if domain == "ai.onnx" else domain, name)


def _check_calls(found: _Found) -> None:
    """That every operator is a standard one or a function, and how many there are once functions are put in place."""
    sizes: dict[_Call, int] = {}
    open_calls: list[_Call] = []

    def size_of(call: _Call) -> int:
        if call.domain == _STANDARD:
            return 1
        if call in sizes:
            return sizes[call]
        name = f"{one_line(call.domain, 40)}::{one_line(call.name, 40)}"
        if call not in found.functions:
            raise _Refusal(f"found the operator {name}, expected standard operators of ONNX")
        if call in open_calls:
            raise _Refusal(f"found that the function {name} calls itself, expected no loops")
        if len(open_calls) == DEEPEST_CALLS:
            raise _Refusal(f"found functions that call others more than {DEEPEST_CALLS} deep, expected one level")
        open_calls.append(call)
        sizes[call] = total(found.functions[call])
        open_calls.pop()
        return sizes[call]

    def total(nodes: Counter[_Call]) -> int:
        whole = sum(count * size_of(call) for call, count in nodes.items())
        if whole > MOST_NODES:
            raise _Refusal(f"found more than {MOST_NODES} operators, expected at most some ten thousand")
        return whole

    total(found.nodes)
    for call in found.functions:  # those that nothing calls are loaded too
        size_of(call)
