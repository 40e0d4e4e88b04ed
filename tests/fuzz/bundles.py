"""Endless, repeatable damage to bundles, for a runner that applies it to copies and looks at what a command does.

What is done to graphs is mostly followed by new hashes in the manifest, since only then does anybody look inside.
Packed bundles are damaged in `archives.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Mutation: TypeAlias = Callable[[Path], None]
Change: TypeAlias = Callable[[random.Random, Path], None]

MANIFEST = "manifest.json"
_CONTROL = ("Loop", "If", "Scan", "SequenceMap")
_INTEGERS = (-(2**63), -1, 0, 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)


def mutations(seed: int) -> Iterator[tuple[str, Mutation]]:
    """What is damaged, and what does it to a bundle directory that holds real graphs; the same for the same seed."""
    return endless(seed, (*_GRAPH, *_GRAPH, *_MANIFEST, *_FILES))


def rehash(bundle: Path) -> None:
    """Write the sizes and hashes that the files have now into the manifest, as a hostile maker would."""
    content = json.loads((bundle / MANIFEST).read_text("utf-8"))
    for name in content["files"]:
        data = (bundle / name).read_bytes()
        content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / MANIFEST).write_text(json.dumps(content), "utf-8")


def replace_graph(bundle: Path, file: str, graph: ModelProto | bytes) -> None:
    """Put another graph into a bundle, with its hash."""
    (bundle / file).write_bytes(graph if isinstance(graph, bytes) else graph.SerializeToString())
    rehash(bundle)


def endless(seed: int, changes: tuple[Change, ...]) -> Iterator[tuple[str, Mutation]]:
    """Some of the changes, again and again; each has its own random numbers, so that one can be repeated alone."""
    number = 0
    while True:
        change = random.Random(f"{seed}/{number}/which").choice(changes)
        yield f"{seed}/{number}: {change.__name__.lstrip('_')}", _applied(change, f"{seed}/{number}")
        number += 1


def _applied(change: Change, seed: str) -> Mutation:
    return lambda path: change(random.Random(seed), path)


def _graph_file(rng: random.Random, bundle: Path) -> Path:
    return rng.choice(sorted(bundle.glob("*.onnx")))


def _on_graph(change: Callable[[random.Random, ModelProto], None]) -> Change:
    """A change of what a graph says, with new hashes."""

    def changed(rng: random.Random, bundle: Path) -> None:
        path = _graph_file(rng, bundle)
        model = onnx.load(str(path))
        change(rng, model)
        path.write_bytes(model.SerializeToString())
        rehash(bundle)

    changed.__name__ = change.__name__
    return changed


def _some_node(rng: random.Random, model: ModelProto) -> NodeProto:
    node: NodeProto = rng.choice(model.graph.node)
    return node


def _other_operator(rng: random.Random, model: ModelProto) -> None:
    schemas = onnx.defs.get_all_schemas()
    _some_node(rng, model).op_type = rng.choice([*_CONTROL, rng.choice(schemas).name, "", "x" * 10_000])


def _other_domain(rng: random.Random, model: ModelProto) -> None:
    _some_node(rng, model).domain = rng.choice(["com.microsoft", "ai.onnx.ml", "masksam", "x\0y", "ai.onnx"])


def _other_inputs(rng: random.Random, model: ModelProto) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = _some_node(rng, model)
    for _ in range(rng.randint(1, 3)):
        where = rng.choice([node.input, node.output])
        if where:
            where[rng.randrange(len(where))] = rng.choice([*names, "", "nothing"])


def _nodes_gone_or_doubled(rng: random.Random, model: ModelProto) -> None:
    node = _some_node(rng, model)
    if rng.random() < 0.5:
        model.graph.node.remove(node)
    else:
        model.graph.node.extend([node] * rng.choice([1, 50, 1000]))


def _extreme_attributes(rng: random.Random, model: ModelProto) -> None:
    node = _some_node(rng, model)
    for attribute in node.attribute:
        for place in range(len(attribute.ints)):
            attribute.ints[place] = rng.choice(_INTEGERS)
        attribute.i = rng.choice(_INTEGERS)
    node.attribute.append(helper.make_attribute(rng.choice(["axis", "pads", "perm", "kernel_shape"]), [2**40, -1]))


def _extreme_dims(rng: random.Random, model: ModelProto) -> None:
    weight = rng.choice(model.graph.initializer)
    if not weight.dims:
        weight.dims.append(1)
    weight.dims[rng.randrange(len(weight.dims))] = rng.choice(_INTEGERS)


def _weights_elsewhere(rng: random.Random, model: ModelProto) -> None:
    weight = rng.choice(model.graph.initializer)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", rng.choice(["/dev/zero", "../x.data", "encoder.onnx", "w.data"])), ("offset", "9")):
        weight.external_data.add(key=key, value=value)


def _extreme_weights(rng: random.Random, model: ModelProto) -> None:
    weight = rng.choice(model.graph.initializer)
    array = np.array(numpy_helper.to_array(weight))
    if array.dtype == np.float32:
        array[...] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 0.0])
    else:
        array[...] = rng.choice(_INTEGERS)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def _other_ports(rng: random.Random, model: ModelProto) -> None:
    port = rng.choice([*model.graph.input, *model.graph.output])
    dims = port.type.tensor_type.shape.dim
    what = rng.randrange(4)
    if what == 0 and dims:
        rng.choice(dims).dim_value = rng.choice(_INTEGERS)
    elif what == 1:
        port.type.tensor_type.elem_type = rng.choice([0, 1, 7, 8, 10, 99])
    elif what == 2:
        port.name = "another"
    else:
        port.type.tensor_type.ClearField("shape")


def _opsets(rng: random.Random, model: ModelProto) -> None:
    model.ir_version = rng.choice([0, 3, 10, 10_000])
    for opset in model.opset_import:
        opset.version = rng.choice([0, 1, 7, 20, 10_000, 2**62])


def _bomb(rng: random.Random, model: ModelProto) -> None:
    """Makes a tensor far larger than all weights and adds it to the last result."""
    size = rng.choice([2**31, 2**34, 2**40, 2**62])
    root = round(size**0.5)
    weights = {
        "bomb_size": np.array([size]),
        "bomb_one": np.ones((1, 1), np.float32),
        "bomb_end": np.array(float(size), np.float32),
        "bomb_zero": np.array(0.0, np.float32),
        "bomb_step": np.array(1.0, np.float32),
        "bomb_square": np.array([root, root]),
        "bomb_pads": np.array([0, 0, root, root]),
    }
    makers = {
        "ConstantOfShape": ["bomb_size"],
        "Expand": ["bomb_one", "bomb_square"],
        "Tile": ["bomb_one", "bomb_square"],
        "Range": ["bomb_zero", "bomb_end", "bomb_step"],
        "Pad": ["bomb_one", "bomb_pads"],
        "Resize": ["bomb_one", "", "", "bomb_square"],
    }
    kind = rng.choice(list(makers))
    result = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["bomb_before" if name == result else name for name in node.output]
    model.graph.node.extend(
        [
            helper.make_node(kind, makers[kind], ["bomb"]),
            helper.make_node("ReduceMax", ["bomb"], ["bomb_least"], keepdims=0),
            helper.make_node("Add", ["bomb_before", "bomb_least"], [result]),
        ]
    )
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())


def _functions(rng: random.Random, model: ModelProto) -> None:
    """Functions that call each other twice, many levels deep, or in a circle."""
    depth = rng.choice([1, 3, 9, 17, 39, 200])
    opsets = [*model.opset_import, helper.make_opsetid("masksam", 1)]
    last = rng.choice([("Relu", ""), ("f0", "masksam")])
    for level in range(depth):
        kind, domain = (f"f{level + 1}", "masksam") if level + 1 < depth else last
        steps = [helper.make_node(kind, [a], [b], domain=domain) for a, b in (("a", "b"), ("b", "c"))]
        model.functions.append(helper.make_function("masksam", f"f{level}", ["a"], ["c"], steps, opsets))
    model.opset_import.add(domain="masksam", version=1)
    name = model.graph.input[0].name
    model.graph.node.insert(0, helper.make_node("f0", [name], ["unused"], domain="masksam"))


def _subgraphs(rng: random.Random, model: ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [], [])
    for _ in range(rng.choice([1, 5, 20])):
        body = helper.make_graph([helper.make_node(rng.choice(_CONTROL), ["a"], ["b"], body=body)], "body", [], [])
    _some_node(rng, model).attribute.append(helper.make_attribute("body", body))


def _bytes_of_a_graph(rng: random.Random, bundle: Path) -> None:
    scribble(rng, _graph_file(rng, bundle))
    rehash(bundle)


def _bytes_without_new_hashes(rng: random.Random, bundle: Path) -> None:
    scribble(rng, rng.choice(sorted(path for path in bundle.rglob("*") if path.is_file())))


def scribble(rng: random.Random, path: Path) -> None:
    """Cut a file, repeat or insert bytes, or overwrite some."""
    data = bytearray(path.read_bytes())
    what = rng.randrange(5)
    if what == 0:
        data = data[: rng.randrange(len(data) + 1)]
    elif what == 1:
        data += data[: rng.randrange(len(data) + 1)]
    elif what == 2:
        place = rng.randrange(len(data) + 1)
        data[place:place] = rng.randbytes(rng.randint(1, 20))
    else:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 2_000 if what == 3 else len(data)))] = rng.randrange(256)
    path.write_bytes(data)


_GRAPH: tuple[Change, ...] = (
    *map(
        _on_graph,
        (
            _other_operator,
            _other_domain,
            _other_inputs,
            _nodes_gone_or_doubled,
            _extreme_attributes,
            _extreme_dims,
            _weights_elsewhere,
            _extreme_weights,
            _other_ports,
            _opsets,
            _bomb,
            _functions,
            _subgraphs,
        ),
    ),
    _bytes_of_a_graph,
)


def _manifest_value(rng: random.Random, bundle: Path) -> None:
    """One value of the manifest becomes another one, or goes."""
    content = json.loads((bundle / MANIFEST).read_text("utf-8"))
    holder, key = rng.choice(list(_places(content)))
    strange: list[Any] = [None, True, -1, 0, 2**63, 10**400, 0.5, 1e308, "", "x" * 100_000, "\0", "../x", [], {}, [[]]]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(strange)
    (bundle / MANIFEST).write_text(json.dumps(content), "utf-8")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def _manifest_text(rng: random.Random, bundle: Path) -> None:
    """Text that only some readers of JSON take."""
    path = bundle / MANIFEST
    text = path.read_text("utf-8")
    change = rng.randrange(7)
    extra = {
        0: f'"model": {"[" * 100_000}',
        1: f'"model": {{"a": {"9" * rng.choice([400, 5_000, 1_000_000])}}}',
        2: '"model": {"a": NaN}',
        3: '"model": {"a": "\\ud800"}',
        4: '"model": {"a": 1, "a": 2}',
        5: f'"model": {{"a": "{"x" * (17 * 2**20)}"}}',
        6: f'"name": "{chr(0x202E)}\\u001b[2J"',
    }[change]
    path.write_text(text.replace("{", f"{{{extra},", 1), "utf-8")


def _manifest_bytes(rng: random.Random, bundle: Path) -> None:
    scribble(rng, bundle / MANIFEST)


_MANIFEST: tuple[Change, ...] = (_manifest_value, _manifest_value, _manifest_text, _manifest_bytes)


def _strange_file(rng: random.Random, bundle: Path) -> None:
    """A file becomes something else, or something is added."""
    path = rng.choice([bundle / MANIFEST, _graph_file(rng, bundle), bundle / "more"])
    path.unlink(missing_ok=True)
    what = rng.randrange(6)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.symlink_to(rng.choice(["/dev/zero", "/etc/passwd", path.name, "nothing"]))
    elif what == 2:
        path.mkdir()
    elif what == 3:
        path.write_bytes(b"")
    elif what == 4:
        with path.open("wb") as file:  # takes no room
            file.truncate(2**33)


def _strange_bundle(rng: random.Random, bundle: Path) -> None:
    """The directory itself becomes something else."""
    shutil.rmtree(bundle)
    what = rng.randrange(4)
    if what == 0:
        os.mkfifo(bundle)
    elif what == 1:
        bundle.symlink_to(rng.choice(["/dev/zero", "/etc", bundle.name, "nothing"]))
    elif what == 2:
        bundle.mkdir()
    else:
        bundle.write_bytes(rng.choice([b"", b"PK\x03\x04", b"\0" * 100]))


_FILES: tuple[Change, ...] = (_strange_file, _strange_file, _strange_bundle, _bytes_without_new_hashes)
