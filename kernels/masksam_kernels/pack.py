"""A kernel pack: a folder of machine code that a device loads through the CUDA driver, with no compiler and no torch.

`pack.json` names every kernel, how to launch it, and the SHA-256 of its files. `read_pack` checks all of it before any
byte reaches the driver. The hashes find damage, not malice: a pack is code and must come from whom one trusts.
This file needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from masksam_kernels.arguments import ARGUMENTS
from masksam_kernels.errors import KernelError

SCHEMA = 2
INDEX = "pack.json"
MAX_INDEX_BYTES = 4 * 2**20
MAX_CODE_BYTES = 16 * 2**20
OPERATION = "depth_adapter_middle"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
COMPILER = re.compile(r"[A-Za-z0-9_. +-]{1,128}")
SHA256 = re.compile(r"[0-9a-f]{64}")

DTYPES = ("fp16", "bf16", "fp32")
RANGES = {
    "architecture": (50, 999),
    "channels": (1, 512),
    "pixels": (1, 1024),
    "threads": (32, 1024),
    "shared_bytes": (0, 227 * 1024),
    "registers": (1, 255),
    "stack_bytes": (0, 512 * 1024),
}


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
        stack_bytes: of stack and local memory per thread; where none is asked for, above 0 means spilled registers.
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
        kernels: all kernels.
    """

    folder: Path
    compiler: str
    kernels: tuple[PackedKernel, ...]

    def find(self, architecture: int, channels: int, dtype: str, *, activate: bool = True) -> PackedKernel:
        """The kernel for one device and tensor.

        Raises:
            KernelError: the pack has none; the message says what it has and how to build one.
        """
        wanted = (architecture, channels, dtype, activate)
        for kernel in self.kernels:
            if (kernel.architecture, kernel.channels, kernel.dtype, kernel.activate) == wanted:
                return kernel
        held = ", ".join(sorted({f"sm_{kernel.architecture}" for kernel in self.kernels}))
        raise KernelError(
            f"{self.folder} has no kernel for sm_{architecture}, {channels} channels, {dtype}; it was built for "
            f"{held or 'nothing'}. Where sm_{architecture} can be built: masksam-kernels build -o OTHER.kernels "
            f"--arch sm_{architecture} --channels {channels} --dtype {dtype}"
        )

    def code(self, kernel: PackedKernel) -> bytes:
        """The machine code, checked once more against its hash.

        Raises:
            KernelError: the file changed since the pack was read.
        """
        return _checked(self.folder, kernel.cubin, kernel.cubin_sha256)

    def ptx(self, kernel: PackedKernel) -> str:
        """The same as PTX, checked once more against its hash.

        Raises:
            KernelError: the file changed since the pack was read.
        """
        return _checked(self.folder, kernel.ptx, kernel.ptx_sha256).decode()


def check_target(folder: Path, *, force: bool) -> None:
    """Whether a pack may be written there, before the work is done.

    Raises:
        KernelError: the folder exists, unless it is a whole pack, holds nothing else, and `force` is given.
    """
    if not os.path.lexists(folder):
        return
    if not force:
        raise KernelError(f"{folder} exists: name another folder, or --force to replace a pack")
    place = folder.absolute()
    if folder.is_symlink() or place == Path.cwd() or place in Path.cwd().parents:
        raise KernelError(f"{folder} is a link or holds the current folder: name another folder")
    pack = read_pack(folder)
    files = {INDEX, *(name for kernel in pack.kernels for name in (kernel.cubin, kernel.ptx))}
    others = sorted(path.name for path in folder.iterdir() if path.name not in files)
    if others:
        raise KernelError(f"{folder} holds '{others[0]}', which is not of the pack: it is not replaced")


def write_pack(
    folder: Path, kernels: Iterable[tuple[PackedKernel, bytes, str]], *, compiler: str, force: bool = False
) -> KernelPack:
    """Writes kernels with their machine code and PTX; the folder appears whole or not at all.

    Raises:
        KernelError: the folder exists and is not a pack to be replaced, or cannot be written.
    """
    check_target(folder, force=force)
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise KernelError(f"{folder} cannot be written: {error.strerror or error}") from error
    new, old = working / "new", working / "old"
    try:
        new.mkdir()
        _write(new, kernels, compiler)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise KernelError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return read_pack(folder)


def _write(folder: Path, kernels: Iterable[tuple[PackedKernel, bytes, str]], compiler: str) -> None:
    entries = []
    for kernel, cubin, ptx in kernels:
        (folder / kernel.cubin).write_bytes(cubin)
        (folder / kernel.ptx).write_bytes(ptx.encode())
        entries.append(asdict(kernel))
    index = {"schema": SCHEMA, "compiler": compiler, "arguments": [list(a) for a in ARGUMENTS], "kernels": entries}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_pack(folder: str | Path) -> KernelPack:
    """Reads a pack and checks its index and every file.

    Raises:
        KernelError: no pack, of another schema, damaged, or naming what it must not.
    """
    root = Path(folder)
    index = _index(root)
    try:
        kernels = tuple(_kernel(entry) for entry in index["kernels"])
        compiler = _matching("compiler", index["compiler"], COMPILER)
        if [tuple(argument) for argument in index["arguments"]] != list(ARGUMENTS):
            raise ValueError("the kernels take other arguments than this version passes")
        if len({kernel.name for kernel in kernels}) != len(kernels):
            raise ValueError("two kernels have one name")
    except (KeyError, TypeError, ValueError) as error:
        raise KernelError(f"{root / INDEX} is not a kernel pack's index: {error!r}") from error
    for kernel in kernels:
        _checked(root, kernel.cubin, kernel.cubin_sha256)
        _checked(root, kernel.ptx, kernel.ptx_sha256)
    return KernelPack(root, compiler, kernels)


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _index(root: Path) -> dict[str, Any]:
    path = root / INDEX
    if not os.path.lexists(path):
        raise KernelError(f"{root} is no kernel pack: it has no {INDEX}")
    try:
        index = json.loads(_plain_file(path, MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise KernelError(f"{path} is not a kernel pack's index: {type(error).__name__}") from error
    if not isinstance(index, dict):
        raise KernelError(f"{path} is not a kernel pack's index")
    if index.get("schema") != SCHEMA:
        raise KernelError(
            f"{path} has schema {index.get('schema')!r}, this version reads {SCHEMA}: build the pack again"
        )
    return index


def _kernel(entry: dict[str, Any]) -> PackedKernel:
    """Exactly the known fields, each of its type and in its range."""
    kinds = {"str": str, "int": int, "bool": bool}
    expected = {field.name: kinds[str(field.type)] for field in fields(PackedKernel)}
    if set(entry) != set(expected):
        raise ValueError(f"fields {sorted(set(entry) ^ set(expected))} missing or unknown")
    for name, kind in expected.items():
        if type(entry[name]) is not kind:
            raise ValueError(f"{name} must be {kind.__name__}, found {entry[name]!r}")
    for name in ("name", "symbol", "cubin", "ptx", "ptx_version"):
        _matching(name, entry[name], NAME)
    for name in ("cubin_sha256", "ptx_sha256"):
        _matching(name, entry[name], SHA256)
    for name, (low, high) in RANGES.items():
        if not low <= entry[name] <= high:
            raise ValueError(f"{name} must be {low} to {high}, found {entry[name]}")
    if entry["operation"] != OPERATION or entry["dtype"] not in DTYPES:
        raise ValueError(f"operation {entry['operation']!r} on {entry['dtype']!r} is not known")
    return PackedKernel(**entry)


def _matching(name: str, value: Any, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{name} {value!r} has characters that it must not have")
    return value


def _checked(root: Path, name: str, expected: str) -> bytes:
    """The bytes of a file of the pack."""
    data = _plain_file(root / name, MAX_CODE_BYTES)
    if sha256(data) != expected:
        raise KernelError(f"{root / name} is not the file that the pack was made with: build the pack again")
    return data


def _plain_file(path: Path, limit: int) -> bytes:
    """The content of a regular file, no link and no pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise KernelError(f"{path} is not a plain file")
            data = file.read(limit + 1)
    except OSError as error:
        raise KernelError(f"{path} cannot be read as a plain file: {error.strerror or error}") from error
    if len(data) > limit:
        raise KernelError(f"{path} is larger than {limit} bytes")
    return data
