"""Small files that would take all memory, all time, or end in a traceback: each must be refused in one line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable
from struct import pack

from tests.fuzz import torch_files as write
from tests.fuzz.torch_files import archive, call, items, many, name, storage, tensor, text, whole

GIB = 2**30
Make = Callable[[], bytes]


def weights(pickle: bytes) -> bytes:
    """A checkpoint with these weights."""
    return archive(items(("network_weights", pickle)))


def shadowed(*attributes: str) -> bytes:
    """An OrderedDict one of whose methods is a value."""
    state = items(*((attribute, text("shadow")) for attribute in attributes))
    return call(name("collections", "OrderedDict")) + state + write.BUILD


def laughs(depth: int) -> bytes:
    """A list of two times a list of two times a list ..."""
    level = b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e" for i in range(1, depth)
    )
    return b"(]q\0" + level + b"t"


def repeated_call(function: bytes, times: int, *arguments: bytes) -> bytes:
    """The results of calling a function with the same large values, over and over."""
    return b"(" + many(arguments) + b"q\0" + function + b"q\1" + b"h\1h\0R" * times + b"t"


def shared_tensor(names: Iterable[str]) -> bytes:
    """A state dict whose tensors are one and the same."""
    first, *rest = names
    return b"}(" + text(first) + tensor() + b"q\0" + b"".join(text(other) + b"h\0" for other in rest) + b"u"


def overlapping() -> bytes:
    """A zip archive with an entry inside another one."""
    plain = archive(write.EMPTY_DICT)
    inner = plain[plain.index(b"archive/data/0") - 30 : plain.index(b"archive/version") - 30]
    data = bytearray(archive(write.EMPTY_DICT, {"byteorder": b"little" + inner}))
    entry = data.rindex(b"archive/data/0") - 46
    data[entry + 42 : entry + 46] = pack("<I", data.index(inner))
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(archive(write.EMPTY_DICT))
    directory = data.index(b"PK\1\2")
    data[6] |= 1
    data[directory + 8] |= 1
    return bytes(data)


def twice() -> bytes:
    target = io.BytesIO(archive(items(("a", tensor()))))
    with zipfile.ZipFile(target, "a") as file, file.open(zipfile.ZipInfo("archive/datA/0"), "w") as entry:
        entry.write(bytes(16))
    return target.getvalue().replace(b"archive/datA/0", b"archive/data/0")


def flipped_weight() -> bytes:
    data = bytearray(write.base())
    data[len(data) // 2] ^= 16
    return bytes(data)


def chained(length: int) -> bytes:
    configurations = ((f"c{index}", items(("inherits_from", text(f"c{index + 1}")))) for index in range(length))
    plans = items(("transpose_forward", many(map(whole, (0, 1, 2)))), ("configurations", items(*configurations)))
    dataset = items(("labels", items(("background", whole(0)))))
    arguments = items(("plans", plans), ("dataset_json", dataset), ("configuration", text("c0")))
    return archive(items(("network_weights", items(("w", tensor()))), ("init_args", arguments)))


def legacy(pickle: bytes, keys: bytes = b"]", data: bytes = b"") -> bytes:
    return write.LEGACY_HEAD + b"\x80\x02" + pickle + b"." + b"\x80\x02" + keys + b"." + data


def legacy_tensor(numel: int = 4) -> bytes:
    parts = [text("storage"), name("torch", "FloatStorage"), text("7"), text("cpu"), whole(numel), write.NONE]
    return items(("w", tensor(many(parts) + write.PERSISTENT)))


BYTES = name("__builtin__", "bytearray")
ENCODE = name("_codecs", "encode")
CAST = name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
SPARSE = name("torch._utils", "_rebuild_sparse_tensor")
ORDERED = name("collections", "OrderedDict")
SET = name("__builtin__", "set")
SCALAR = name("numpy._core.multiarray", "scalar")
DTYPE = name("numpy", "dtype")

MEMORY: dict[str, Make] = {
    "bytearray of 12 GiB": lambda: archive(items(("a", call(BYTES, whole(12 * GIB))))),
    "expanded tensor, cast": lambda: weights(
        items(("w", call(CAST, tensor(shape=(GIB,), stride=(0,)), name("torch", "float64"), text("cpu"), b"\x89")))
    ),
    "expanded tensor": lambda: weights(items(("w", tensor(shape=(2**47,), stride=(0,))))),
    "expanded in many axes": lambda: weights(items(("w", tensor(shape=(2**40,) * 9, stride=(0,) * 9)))),
    "deflated pickle": lambda: archive(text(" " * 2**27), method=zipfile.ZIP_DEFLATED),
    "compressed with bzip2": lambda: archive(text(" " * 2**20), method=zipfile.ZIP_BZIP2),
    "storage of 2**47 values": lambda: weights(items(("w", tensor(storage(numel=2**47))))),
    "storage of 2**200 values": lambda: weights(items(("w", tensor(storage(numel=2**200))))),
    "billion laughs": lambda: archive(items(("a", laughs(60)))),
    "half a million copies of text": lambda: archive(repeated_call(ENCODE, 500_000, text("x" * 2**20), text("latin1"))),
    "copies of a set": lambda: archive(
        repeated_call(SET, 10_000, b"](" + b"".join(b"M" + pack("<H", i) for i in range(60_000)) + b"e")
    ),
    "copies of a dict": lambda: archive(
        repeated_call(ORDERED, 10_000, items(*((f"k{index}", write.NONE) for index in range(60_000))))
    ),
    "numpy type of 10 MB": lambda: archive(items(("a", call(SCALAR, call(DTYPE, text("V10000000")), text(""))))),
    "pickle of 40 MB": lambda: archive(b"".join([text("x" * 2**20) + b"0"] * 40)),
    "3 million dicts": lambda: archive(b"(" + b"}" * 2_900_000 + b"t"),
    "30 texts of 4 bytes each character": lambda: archive(
        b"(" + b"".join(text("\N{GRINNING FACE}" * 2**18) for _ in range(30)) + b"t"
    ),
    "text of 2 MB": lambda: archive(items(("a", text("x" * 2**21)))),
    "legacy storage of 2**40 values": lambda: legacy(
        legacy_tensor(2**40), b"](" + text("7") + b"e", pack("<Q", 2**40) + bytes(16)
    ),
    "100,000 entries": lambda: write.zipped({f"{index:x}": b"" for index in range(100_000)}),
    "table of contents of 9 MB": lambda: write.zipped({f"archive/{'n' * 200}{index}": b"" for index in range(36_000)}),
}
TIME: dict[str, Make] = {
    "module. 200,000 times": lambda: weights(items(("module." * 200_000, tensor()))),
    "module. 100,000 times": lambda: weights(items(("module." * 100_000, tensor()))),
    "module. 70 times, 20,000 names": lambda: weights(shared_tensor(f"{'module.' * 70}{i}" for i in range(20_000))),
    "no weights, shadowed items": lambda: weights(shadowed("items")),
    "inherits_from 40,000 deep": lambda: chained(40_000),
    "inherits_from 100 deep": lambda: chained(100),
    "punycode": lambda: archive(items(("a", call(ENCODE, text("\xe9" * 200_000), text("punycode"))))),
    "4 million opcodes": lambda: archive(b"(" + b"N" * 4_000_000 + b"t"),
    "nested 100,000 deep": lambda: archive(items(("a", b")" + b"\x85" * 100_000))),
    "list within itself": lambda: archive(items(("a", b"]q\0h\0a"))),
    "dict within itself": lambda: archive(b"}q\0" + text("a") + b"h\0s"),
    "keys that collide": lambda: archive(
        b"}(" + b"".join(whole(index * (2**61 - 1)) + write.NONE for index in range(50_000)) + b"u"
    ),
    "elements that collide": lambda: archive(
        call(SET, b"](" + b"".join(whole(i * (2**61 - 1)) for i in range(50_000)) + b"e")
    ),
    "whole number as text": lambda: archive(b"I" + b"9" * 4_000_000 + b"\n"),
    "whole number of 2 MB": lambda: archive(b"\x8b" + pack("<I", 2**21) + b"\x7f" * 2**21),
    "300,000 weights": lambda: weights(shared_tensor(f"image_decoder_stages.{i}." for i in range(300_000))),
}
TRACEBACK: dict[str, Make] = {
    "shadowed get": lambda: archive(shadowed("get", "keys", "items", "values", "__len__", "__class__")),
    "shadowed detach": lambda: weights(
        items(
            (
                "w",
                call(
                    name("torch._tensor", "_rebuild_from_type_v2"),
                    name("torch._utils", "_rebuild_tensor_v2"),
                    name("torch", "Tensor"),
                    many([storage(), whole(0), many([whole(4)]), many([whole(1)]), b"\x89", write.EMPTY_DICT]),
                    items(("detach", text("shadow"))),
                ),
            )
        )
    ),
    "lone surrogate in a weight's name": lambda: weights(items(("w\ud800", tensor()))),
    "lone surrogate in a label": lambda: archive(items(("init_args", items(("labels", text("\udfff")))))),
    "lone surrogate in a storage's key": lambda: weights(items(("w", tensor(storage(key="\ud800"))))),
    "weights by number": lambda: weights(b"}K\1" + tensor() + b"s"),
    "weights by None": lambda: weights(b"}N" + tensor() + b"s"),
    "weights that are a tensor": lambda: weights(tensor()),
    "no dict": lambda: archive(tensor()),
    "only a number": lambda: archive(whole(7)),
    "function as value": lambda: archive(items(("a", ORDERED))),
    "storage as value": lambda: archive(items(("a", storage()))),
    "sparse weights": lambda: weights(items(("w", call(SPARSE, text("coo"), many([tensor()] * 3))))),
    "function that rebuilds itself": lambda: archive(
        call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("torch._tensor", "_rebuild_from_type_v2"),
            name("torch", "Tensor"),
            many([]),
            write.NONE,
        )
    ),
    "offset beyond the storage": lambda: weights(items(("w", tensor(offset=1)))),
    "offset below zero": lambda: weights(items(("w", tensor(offset=-1)))),
    "stride below zero": lambda: weights(items(("w", tensor(stride=(-1,))))),
    "stride beyond the storage": lambda: weights(items(("w", tensor(shape=(2, 2), stride=(9, 1))))),
    "shape of a tensor": lambda: weights(items(("w", tensor(shape=(4,), stride=())))),
    "storage that is not there": lambda: weights(items(("w", tensor(storage(key="9"))))),
    "storage of another length": lambda: weights(items(("w", tensor(storage(numel=5), shape=(1,))))),
    "storage of two lengths": lambda: weights(items(("w", tensor()), ("x", tensor(storage(kind="LongStorage"))))),
    "empty file of torch": lambda: archive(b""),
    "values that are not there": lambda: archive(b"h\1"),
    "end of a mark": lambda: archive(b"t"),
    "protocol 4": lambda: write.zipped({"archive/data.pkl": b"\x80\x04}."}),
    "objects by class": lambda: archive(name("collections", "OrderedDict") + b")\x81"),
    "code": lambda: archive(call(name("posix", "system"), text("true"))),
    "code, then nonsense": lambda: archive(call(name("posix", "system"), text("true")) + b"h\7"),
    "code in the legacy format": lambda: legacy(call(name("posix", "system"), text("true"))),
    "100,000 names of code": lambda: archive(
        b"".join(name("evil", f"function_{index}") + b"0" for index in range(100_000)).replace(b"0c", b"\x85c")
    ),
    "name of code of 1 MB": lambda: archive(name("evil", "x" * 2**20)),
    "name of code with escapes": lambda: archive(name("evil\x1b[31m", "\x07")),
    "big endian": lambda: archive(items(("a", tensor())), {"byteorder": b"big"}),
    "byte order of 1 MB": lambda: archive(items(("a", tensor())), {"byteorder": b"b" * 2**20}),
    "TorchScript": lambda: archive(write.EMPTY_DICT, {"constants.pkl": b"\x80\x02)."}),
    "entry twice": twice,
    "entries that overlap": overlapping,
    "encrypted entry": encrypted,
    "zip archive of nothing": lambda: write.zipped({}),
    "zip archive of something else": lambda: write.zipped({"a.txt": b"text"}),
    "flipped bit in a weight": flipped_weight,
    "legacy, cut": lambda: legacy(legacy_tensor(), b"](" + text("7") + b"e", pack("<Q", 4) + bytes(15)),
    "legacy, other length": lambda: legacy(legacy_tensor(), b"](" + text("7") + b"e", pack("<Q", 3) + bytes(16)),
    "legacy, no storage": lambda: legacy(legacy_tensor()),
    "legacy, unknown storage": lambda: legacy(legacy_tensor(), b"](" + text("8") + b"e", pack("<Q", 4) + bytes(16)),
    "legacy, keys no list": lambda: legacy(legacy_tensor(), b"}"),
    "legacy head alone": lambda: write.LEGACY_HEAD,
    "huge error": lambda: weights(items(*((f"{'long name ' * 50}{i}", whole(1)) for i in range(10_000)))),
}
BOMBS = {**MEMORY, **TIME, **TRACEBACK}
"""By name, what makes the file."""
