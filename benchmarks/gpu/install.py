"""Makes the project run on a machine without network: unpacks what `prepare` packed and registers the entry points.

    python -m benchmarks.gpu.install SITE

SITE is a folder for PYTHONPATH. Nothing else on the machine changes. Needs Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKED = REPOSITORY / ".gpu"


def main() -> None:
    """Install into one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    site: Path = parser.parse_args().site
    site.mkdir(parents=True, exist_ok=True)
    if os.environ.get("DRY") == "1":
        print("dry run: what .gpu holds is for another machine, and stays there")
    else:
        install_wheels(PACKED, site)
        unpack(PACKED, site)
    print(register(site))


def install_wheels(packed: Path, site: Path) -> None:
    """Wheels as they are, without their dependencies: a bare machine has those or got them as wheels."""
    wheels = sorted(packed.glob("*.whl"))
    if wheels:
        options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *options, *map(str, wheels)]
        subprocess.run(command, check=True)


def unpack(packed: Path, site: Path) -> None:
    """Wheels that were packed anew because they were too large."""
    for archive in sorted(packed.glob("*.tar.xz")):
        with tarfile.open(archive) as content:
            content.extractall(site, filter="data")
        print(f"unpacked {archive.name}")


def register(site: Path) -> str:
    """Write the metadata that tells Python of the project's commands; says what was registered."""
    tomllib = importlib.import_module("tomllib")  # not imported above: types are checked for Python 3.10
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    sections = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items())
    (folder / "entry_points.txt").write_text("\n".join(sections), encoding="utf-8")
    (folder / "RECORD").write_text("", encoding="utf-8")
    return f"registered {name} {version}: {', '.join(groups)}"


if __name__ == "__main__":
    main()
