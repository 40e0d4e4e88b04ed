"""A kernel pack: a folder of machine code that a device loads through the CUDA driver, with no compiler and no torch.

`pack.json` names every kernel, how to launch it, and the SHA-256 of its files. `read_pack` checks all of it before any
byte reaches the driver. This file needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from masksam_kernels.errors import KernelError

SCHEMA = 1
INDEX = "pack.json"
MAX_INDEX_BYTES = 4 * 2**20
MAX_CODE_BYTES = 16 * 2**20
OPERATION = "depth_adapter_middle"


@dataclass(frozen=True)
class PackedKernel:
    """One kernel of a pack.

    Attributes:
        name: unique in the pack.
        operation: what it computes; `depth_adapter.reference` has the definition.
        architecture: 87 for sm_87.
        dtype: of all tensors: fp16, bf16 or fp32.
        channels: of the hidden tensor.
        activate: whether it adds the bias and applies the first GELU.
        symbol: entry point in the module.
        cubin: file with machine code for exactly this architecture.
        ptx: file with the same as PTX, for the driver to compile.
        cubin_sha256: of that file.
        ptx_sha256: of that file.
        ptx_version: "8.5".
        pixels: positions per program; programs = rows / frames * ceil(h * w / pixels).
        threads: per program.
        shared_bytes: dynamic shared memory per program.
        registers: per thread.
        stack_bytes: per thread; above 0, registers were spilled.
    """

    name: str
    operation: str
    architecture: int
    dtype: str
    channels: int
    activate: bool
    symbol: str
    cubin: str
    ptx: str
    cubin_sha256: str
    ptx_sha256: str
    ptx_version: str
    pixels: int
    threads: int
    shared_bytes: int
    registers: int
    stack_bytes: int

    def programs(self, rows: int, frames: int, height: int, width: int) -> int:
        """Grid size along x for a hidden tensor `[rows, height, width, channels]`."""
        return rows // frames * -(-height * width // self.pixels)


@dataclass(frozen=True)
class KernelPack:
    """A verified pack.

    Attributes:
        folder: where it is.
        compiler: what built it, such as "triton 3.8.0".
        arguments: `(name, kind)` in launch order; kind is pointer, int32 or float32.
        kernels: all kernels.
    """

    folder: Path
    compiler: str
    arguments: tuple[tuple[str, str], ...]
    kernels: tuple[PackedKernel, ...]

    def find(self, architecture: int, channels: int, dtype: str, *, activate: bool = True) -> PackedKernel:
        """The kernel for one device and tensor.

        Raises:
            KernelError: the pack has none; the message lists what it has.
        """
        wanted = (architecture, channels, dtype, activate)
        for kernel in self.kernels:
            if (kernel.architecture, kernel.channels, kernel.dtype, kernel.activate) == wanted:
                return kernel
        held = ", ".join(kernel.name for kernel in self.kernels)
        raise KernelError(
            f"{self.folder} has no kernel for sm_{architecture}, {channels} channels, {dtype}; it holds {held}: "
            f"build one with 'masksam-kernels build --arch sm_{architecture} --channels {channels}'"
        )

    def code(self, kernel: PackedKernel) -> bytes:
        """The machine code, checked once more against its hash.

        Raises:
            KernelError: the file changed since the pack was read.
        """
        return _checked(self.folder, kernel.cubin, kernel.cubin_sha256)


def write_pack(
    folder: Path,
    kernels: Iterable[tuple[PackedKernel, bytes, str]],
    *,
    compiler: str,
    arguments: Iterable[tuple[str, str]],
    force: bool = False,
) -> KernelPack:
    """Writes kernels with their machine code and PTX; the folder appears whole or not at all.

    Raises:
        KernelError: the folder exists and is not a pack to be replaced.
    """
    if folder.exists() and not (force and (folder / INDEX).is_file()):
        raise KernelError(f"{folder} exists: name another folder" + ("" if force else ", or --force to replace a pack"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        working.chmod(0o755)
        entries = []
        for kernel, cubin, ptx in kernels:
            (working / kernel.cubin).write_bytes(cubin)
            (working / kernel.ptx).write_bytes(ptx.encode())
            entries.append(asdict(kernel))
        index = {"schema": SCHEMA, "compiler": compiler, "arguments": [list(a) for a in arguments], "kernels": entries}
        (working / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        working.rename(folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return read_pack(folder)


def read_pack(folder: str | Path) -> KernelPack:
    """Reads a pack and checks every file against its hash.

    Raises:
        KernelError: no pack, of another schema, damaged, or naming files outside its folder.
    """
    root = Path(folder)
    index = _index(root)
    try:
        arguments = tuple((str(name), str(kind)) for name, kind in index["arguments"])
        kernels = tuple(_kernel(entry) for entry in index["kernels"])
        compiler = str(index["compiler"])
    except (KeyError, TypeError, ValueError) as error:
        raise KernelError(f"{root / INDEX} is not a kernel pack's index: {error!r}") from error
    for kernel in kernels:
        _checked(root, kernel.cubin, kernel.cubin_sha256)
        _checked(root, kernel.ptx, kernel.ptx_sha256)
    return KernelPack(root, compiler, arguments, kernels)


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    try:
        with path.open("rb") as file:
            data = file.read(MAX_INDEX_BYTES + 1)
        index = json.loads(data) if len(data) <= MAX_INDEX_BYTES else None
    except FileNotFoundError:
        raise KernelError(f"{root} is no kernel pack: it has no {INDEX}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise KernelError(f"{path} cannot be read: {error}") from error
    if not isinstance(index, dict):
        raise KernelError(f"{path} is not a kernel pack's index")
    if index.get("schema") != SCHEMA:
        raise KernelError(
            f"{path} has schema {index.get('schema')!r}, this version reads {SCHEMA}: build the pack again"
        )
    return index


def _kernel(entry: dict[str, Any]) -> PackedKernel:
    """Exactly the known fields, each of its type."""
    kinds = {"str": str, "int": int, "bool": bool}
    expected = {field.name: kinds[str(field.type)] for field in fields(PackedKernel)}
    if set(entry) != set(expected):
        raise ValueError(f"fields {sorted(set(entry) ^ set(expected))} missing or unknown")
    for name, kind in expected.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{name} must be {kind.__name__}, found {entry[name]!r}")
    return PackedKernel(**entry)


def _checked(root: Path, name: str, expected: str) -> bytes:
    """The bytes of a file of the pack."""
    if len(PurePosixPath(name).parts) != 1 or name in {".", ".."} or os.sep in name or (root / name).is_symlink():
        raise KernelError(f"{root / INDEX} names {name!r}, which is not a plain file of the pack")
    try:
        with (root / name).open("rb") as file:
            data = file.read(MAX_CODE_BYTES + 1)
    except OSError as error:
        raise KernelError(f"{root / name} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_CODE_BYTES:
        raise KernelError(f"{root / name} is larger than {MAX_CODE_BYTES} bytes: not a kernel")
    if sha256(data) != expected:
        raise KernelError(f"{root / name} is not the file that the pack was made with: build the pack again")
    return data
