"""Packs what a machine with PyTorch and a GPU, but without network, lacks into `.gpu`, which git ignores.

    python -m benchmarks.gpu.prepare

Wheels are the ones that constraints.txt pins, for another Python and platform than this one if need be. SimpleITK's
wheel (50 MiB) is packed anew with xz (29 MiB). The repository's own files and `.gpu` together must stay below a limit,
so that they can be copied in one go; the script says how large they are, and fails if they are larger.
"""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

from benchmarks.gpu.install import PACKED, REPOSITORY

PACKAGES = (
    "annotated-types",
    "pydantic",
    "pydantic_core",
    "pydicom",
    "simpleitk",
    "typing-inspection",
    "typing_extensions",
)
"""The run time's dependencies that do not come with PyTorch, Triton and pytest."""
REPACKED = "simpleitk"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MIB = 2**20
TOO_LARGE = 3


def main() -> None:
    """Download, pack, say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="the other machine's Python. Default: 3.12")
    parser.add_argument("--limit-mib", type=int, default=64)
    arguments = parser.parse_args()
    shutil.rmtree(PACKED, ignore_errors=True)
    download(PACKED, arguments.python)
    (wheel,) = (path for path in PACKED.glob("*.whl") if path.name.lower().startswith(REPACKED))
    pack(wheel, PACKED / f"{REPACKED}.tar.xz")
    wheel.unlink()
    tree, packed = tree_bytes(), sum(path.stat().st_size for path in PACKED.iterdir())
    print(f"repository {tree / MIB:.0f} MiB + .gpu {packed / MIB:.0f} MiB, expected at most {arguments.limit_mib} MiB")
    if tree + packed > arguments.limit_mib * MIB:
        print("too large: ignore or remove something")
        sys.exit(TOO_LARGE)


def pinned(constraints: str, package: str) -> str:
    """A package's line of constraints.txt, without its marker.

    Raises:
        SystemExit: the package is not pinned.
    """
    found = re.search(rf"^{re.escape(package)}==[^\s;]+", constraints, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise SystemExit(f"constraints.txt does not pin {package}: add it there")
    return found[0]


def download(folder: Path, python: str) -> None:
    """The wheels of `PACKAGES` for Linux on x86-64."""
    constraints = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    wheels = [pinned(constraints, package) for package in PACKAGES]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *wheels]
    subprocess.run(command, check=True)


def pack(wheel: Path, target: Path) -> None:
    """A wheel's files as a tar archive, compressed with a filter for machine code; half a minute."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 64 * MIB}]
    with (
        zipfile.ZipFile(wheel) as source,
        lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=filters) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        for name in (name for name in source.namelist() if not name.endswith("/")):
            data = source.read(name)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, BytesIO(data))


def tree_bytes() -> int:
    """Of all files that git tracks, or would."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    paths = (REPOSITORY / name for name in names if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    main()
