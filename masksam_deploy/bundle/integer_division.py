"""Integers that an ONNX graph divides by one another: a runtime's processor trap ends the whole process.

Dividing an integer by zero, or the least one by -1, is no error that a runtime reports; the system kills it. No graph
that is exported divides integers, so a graph that may do so is refused. Types are followed from weights and from the
operators that make integers, in whatever order nodes lie in the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

DIVISIONS = frozenset(["Div", "Mod"])
_MAKE_INTEGERS = frozenset(["Greater", "QuantizeLinear"])
"""Of what `graph_check` allows; truth values count as integers."""
_MAKE_FLOATS = frozenset(["DequantizeLinear"])
_ALL_ALIKE = frozenset(["Add", "Concat", "MatMul", "Mul", "Pow", "Sub"])
_INTEGER_TYPES = frozenset([2, 3, 4, 5, 6, 7, 9, 12, 13])
"""Of ONNX's `TensorProto.DataType`: all integers, and truth values."""


class Node(NamedTuple):
    """What matters of a node.

    Attributes:
        kind: its operator; of a function, its name.
        is_function: whether the file itself defines it.
        inputs, outputs: names of tensors.
        makes: the element type of what it makes, where an attribute says so.
    """

    kind: str
    is_function: bool
    inputs: Sequence[str]
    outputs: Sequence[str]
    makes: int | None


@dataclass
class Integers:
    """The integer tensors of one graph or function.

    Attributes:
        names: of tensors that are, or may be, integers.
        readers: tensor -> the nodes that read it.
    """

    names: set[str] = field(default_factory=set)
    readers: defaultdict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def add_weight(self, name: str, element_type: int) -> None:
        """A tensor that the file holds."""
        if element_type in _INTEGER_TYPES:
            self.names.add(name)

    def add_node(self, node: Node) -> None:
        """A node, in any order."""
        if node.makes in _INTEGER_TYPES or node.kind in _MAKE_INTEGERS:
            self.names.update(node.outputs)
        for name in node.inputs:
            self.readers[name].append(node)

    def divided(self) -> str | None:
        """The operator that divides integers, or that may; None if none does."""
        left = list(self.names)
        while left:
            name = left.pop()
            for node in self.readers.get(name, ()):
                if node.kind in DIVISIONS or node.is_function:
                    return node.kind
                if node.makes is not None or node.kind in _MAKE_FLOATS or name not in _typed_by(node):
                    continue
                new = set(node.outputs) - self.names
                self.names |= new
                left += new
        return None


def _typed_by(node: Node) -> Sequence[str]:
    """The inputs whose type is that of what the node makes; the others are indices and shapes."""
    return node.inputs if node.kind in _ALL_ALIKE else node.inputs[:1]
