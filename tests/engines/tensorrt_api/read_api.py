"""Write down the Python API of a TensorRT bindings wheel: names of classes, their attributes, members of enums.

    pip download --no-deps --only-binary :all: --dest wheels tensorrt-cu13-bindings==11.4.0.106
    python tests/engines/tensorrt_api/read_api.py wheels/*.whl --output tests/engines/tensorrt_api

The real bindings are imported. The libraries that they are linked against (hundreds of megabytes, from NVIDIA's own
index) are replaced by empty ones of the same names, made with the C compiler, since importing calls nothing in them.
The wheel must be for the Python that runs this (Linux).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def read_api(wheel: Path) -> dict[str, Any]:
    """Import the bindings of a wheel in a process of their own and list what they offer."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        libraries = folder / "libraries"
        libraries.mkdir()
        _make_libraries(folder / "tensorrt_bindings" / "tensorrt.so", libraries)
        environment = os.environ | {"PYTHONPATH": name, "LD_LIBRARY_PATH": str(libraries)}
        listing = subprocess.check_output([sys.executable, __file__, "--list"], env=environment, text=True)
    found: dict[str, Any] = json.loads(listing)
    return {
        "version": found["version"],
        "wheel": wheel.name,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "names": found["names"],
    }


def _make_libraries(extension: Path, folder: Path) -> None:
    dynamic = subprocess.check_output(["readelf", "--dynamic", "--wide", extension], text=True)
    needed = [line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line]
    symbols = subprocess.check_output(["nm", "--dynamic", "--undefined-only", extension], text=True).split()
    source = folder / "functions.c"
    wanted = [symbol for symbol in symbols if symbol.endswith("_INTERNAL") or symbol in _FUNCTIONS]
    source.write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in wanted))
    for library in (library for library in needed if library.startswith("libnv")):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
        subprocess.run(command, check=True)


_FUNCTIONS = ("getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins")


def listing() -> dict[str, Any]:
    """What the module `tensorrt_bindings` of this process offers."""
    import tensorrt_bindings as trt

    kinds = {name: value for name, value in vars(trt).items() if isinstance(value, type) and name[0] != "_"}
    names = {name: sorted(_names(kind)) for name, kind in sorted(kinds.items())}
    return {"version": trt.__version__, "names": names}


def _names(kind: type) -> list[str]:
    members: dict[str, object] | None = getattr(kind, "__members__", None)
    return list(members) if members is not None else [name for name in dir(kind) if name[0] != "_"]


def as_text(api: dict[str, Any]) -> str:
    """JSON with one class a line, so that differences between versions can be read."""
    names = ",\n".join(f"    {json.dumps(name)}: {json.dumps(members)}" for name, members in api["names"].items())
    head = "".join(f"  {json.dumps(key)}: {json.dumps(api[key])},\n" for key in ("version", "wheel", "sha256"))
    return f'{{\n{head}  "names": {{\n{names}\n  }}\n}}\n'


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--list", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        sys.stdout.write(json.dumps(listing()))
        return
    for wheel in arguments.wheels:
        api = read_api(wheel)
        (arguments.output / f"{api['version']}.json").write_text(as_text(api))


if __name__ == "__main__":
    main()
