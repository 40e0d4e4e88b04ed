"""What a script finds, on disk at every moment: a script that is stopped leaves what it had."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAILED = 3
"""The exit code of a script of which something failed."""
REPOSITORY = Path(__file__).parents[2]


def out_folder() -> Path:
    """The folder that OUT names, else `runs/gpu`, which git ignores."""
    folder = Path(os.environ.get("OUT") or REPOSITORY / "runs" / "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A file's content; empty if there is none or it was cut off."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


class Results:
    """A JSON file in the output folder, written anew after every entry; entries of earlier runs stay.

    Args:
        name: of the file, without its ending.
    """

    def __init__(self, name: str) -> None:
        self.path = out_folder() / f"{name}.json"
        self.content = read_json(self.path)
        self.failures: list[str] = []

    def put(self, section: str, value: Any, *, name: str | None = None) -> None:
        """Write one entry, of a section if it has a name."""
        if name is None:
            self.content[section] = value
        else:
            self.content.setdefault(section, {})[name] = value
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1, default=str) + "\n", encoding="utf-8")
        temporary.replace(self.path)
        label = section if name is None else f"{section}/{name}"
        print(f"[{self.path.stem}] {label}: {json.dumps(value, default=str)[:600]}", flush=True)

    def attempt(self, section: str, name: str, run: Callable[[], Any]) -> None:
        """Write one measurement; if it fails, its reason stands in its place, and the next one goes on.

        What a measurement returns with `passed` false is a failure, too.

        Raises:
            SystemExit: the CUDA context is broken, and nothing further can run in this process.
        """
        broken = False
        try:
            value = run()
        except Exception as error:  # noqa: BLE001  whatever it is, it is written down
            traceback.print_exc(limit=4)
            value = {"passed": False, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            broken = "CUDA error" in str(error)
        self.put(section, value, name=name)
        if isinstance(value, dict) and value.get("passed") is False:
            self.failures.append(f"{section}/{name}")
        if broken:
            self.finish()

    def finish(self) -> None:
        """End the script, with exit code 3 if something failed."""
        if self.failures:
            print(f"failed: {', '.join(self.failures)}", flush=True)
        sys.exit(FAILED if self.failures else 0)
