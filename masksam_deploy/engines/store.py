"""The engine store: `BUNDLE/engines/KEY/` with one file per graph and `engine.json`.

It belongs to the machine, not to the bundle. An engine is used only if it was made from exactly this bundle, none of
its bytes changed, and it was made for what this machine is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError

from masksam_deploy.base.errors import EngineError
from masksam_deploy.base.records import Record
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.directory import Bundle, file_digest, reporting_writes
from masksam_deploy.bundle.manifest import FileDigest
from masksam_deploy.bundle.rules import ENGINES_DIRECTORY, condensed, is_plain_name, shown
from masksam_deploy.runtimes.spec import Precision, Target, label

RECORD_NAME = "engine.json"
RECORD_LIMIT = 64 * 2**20


class EngineRecord(Record):
    """The whole of `engine.json`."""

    schema_version: Literal[1] = 1
    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the manifest of the bundle that it was made from."""
    target: Target
    precisions: dict[str, Precision]
    """Per graph, as built."""
    asked: dict[str, Precision]
    """Per graph, as asked for: the gate may have fallen back."""
    machine: dict[str, str]
    """What the engine depends on: GPU, compute capability, driver, versions. Compared with the machine at run time."""
    options: dict[str, JsonValue]
    graphs: dict[str, str]
    """Graph name -> file."""
    gate: dict[str, JsonValue]
    """What the gate found, or that it was switched off."""
    provenance: dict[str, JsonValue]
    """Calibration, protected nodes with their ranges, versions, time, and the command that builds it again."""
    files: dict[str, FileDigest]


FOREIGN = frozenset(["gpu", "gpus", "compute_capability", "machine", "device"])
"""Facts of a machine that differ between machines; the others change on one machine, with an update."""


@dataclass(frozen=True)
class Problem:
    """Why an engine must not be used.

    Attributes:
        reason: for people.
        stale: whether it was right for this machine once, so that building it again helps; else it is for another one.
    """

    reason: str
    stale: bool


@dataclass(frozen=True)
class Engine:
    """An engine in a bundle's store, read but not yet checked.

    Attributes:
        folder: where it lies.
        record: its `engine.json`.
    """

    folder: Path
    record: EngineRecord

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.record.target} {label(self.record.precisions)}"

    @property
    def judged(self) -> bool:
        """Whether the Dice gate looked at it."""
        return self.record.gate.get("judged") is True

    @property
    def simulated(self) -> bool:
        """Whether the gate saw its arithmetic in ONNX Runtime only, as there was no GPU where it was built."""
        return self.judged and self.record.target != "onnxruntime" and self.record.gate.get("on_device") is None

    @property
    def rebuild(self) -> str:
        """The command that makes it again, from checked values only: a record may come from anywhere."""
        record = self.record
        chosen = label(record.asked)
        words = ["build-engine", str(self.folder.parents[1]), f"--{'fp32' if chosen == 'mixed' else chosen}"]
        if chosen == "mixed":
            words += [word for graph, precision in record.asked.items() for word in ("--graph", f"{graph}={precision}")]
        if "int8" in record.asked.values():
            words += ["--calibration", "SCANS"]
        if record.target != "onnxruntime":
            words += ["--target", record.target]
        if record.target == "rtx" and re.fullmatch(r"[a-z0-9]+(,[a-z0-9]+)*", record.machine.get("gpus", "")):
            words += ["--gpu", record.machine["gpus"]]
        return one_line(command_line(words))

    def path(self, graph: str) -> Path:
        """The file of a graph."""
        return self.folder / self.record.graphs[graph]

    def problem(self, bundle: Bundle, machine: Mapping[str, str] | None) -> Problem | None:
        """Why the engine must not be used, or None.

        Args:
            bundle: that it lies in.
            machine: what this machine is to the engine's target; None if the target cannot run here.
        """
        if set(self.record.graphs) != {graph.name for graph in bundle.manifest.graphs}:
            return Problem("it has other graphs than the bundle", stale=True)
        if self.record.bundle_sha256 != bundle.sha256:
            return Problem("it was made from another version of this bundle", stale=True)
        if machine is None:
            return Problem(f"{self.record.target} cannot run on this machine", stale=False)
        if self.record.options.get("strip_weights"):
            return Problem("it was built without weights, which this version cannot put back", stale=False)
        if set(self.record.machine) != set(machine):
            return Problem("its record does not say for which machine it was built", stale=True)
        return machine_problem(self.record.machine, machine)

    def check_files(self) -> None:
        """Compare every file with its hash, before anything reads it.

        Raises:
            EngineError: a file is missing, changed, or no regular file.
        """
        for name, expected in self.record.files.items():
            path = self.folder / name
            if path.is_symlink() or not path.is_file() or file_digest(path) != expected:
                raise EngineError(
                    f"{self.folder}: {shown(name)}: found another file than was built, expected its recorded SHA-256; "
                    f"build it again: {self.rebuild}"
                )


def machine_problem(built: Mapping[str, str], machine: Mapping[str, str]) -> Problem | None:
    """Why an engine that depends on `built` must not be used on `machine`, or None; see `Builder.facts`."""
    for name, expected in built.items():
        here = machine.get(name, "")
        fits = here in expected.split(",") if name == "gpus" else here == expected
        if not fits:
            return Problem(
                f"it was built for {name} {shown(expected)}, here is {shown(here) if here else 'none'}",
                stale=name not in FOREIGN,
            )
    return None


def engines_of(bundle: Bundle) -> list[Engine]:
    """All engines in a bundle's store whose records can be read, by name; see `broken_engines` for the others."""
    return [engine for engine in (_readable(folder) for folder in _folders(bundle)) if engine]


def broken_engines(bundle: Bundle) -> dict[Path, str]:
    """Folders in the store that are no engines, and why."""
    broken = {}
    for folder in _folders(bundle):
        try:
            read_engine(folder)
        except EngineError as error:
            broken[folder] = str(error)
    return broken


def read_engine(folder: Path) -> Engine:
    """Read an engine's record.

    Raises:
        EngineError: it is missing, too large, damaged, or names what it must not.
    """
    path = folder / RECORD_NAME
    try:
        if path.is_symlink() or not path.is_file():
            raise EngineError(f"{folder}: found no {RECORD_NAME}, expected an engine; remove the folder")
        if path.stat().st_size > RECORD_LIMIT:
            raise EngineError(f"{path}: found more than {RECORD_LIMIT} bytes, expected a record; remove the folder")
        record = EngineRecord.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise EngineError(f"{path}: {condensed(error)}; remove the folder and build the engine again") from error
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror}); check the permissions") from error
    for name in (*record.files, *record.graphs.values()):
        if not is_plain_name(name) or "/" in name or name not in record.files:
            raise EngineError(f"{path}: found file {shown(name)}, expected a listed plain name; build the engine again")
    if not set(record.graphs) == set(record.precisions) == set(record.asked):
        raise EngineError(f"{path}: found other graphs than precisions, expected one each; build the engine again")
    return Engine(folder, record)


def store_engine(staging: Path, bundle: Bundle, record: EngineRecord) -> Engine:
    """Move a folder with an engine's files into the store; an older engine of the same key makes way.

    Args:
        staging: inside the store, with all files; `engine.json` is written here.
        bundle: that the engine is for.
        record: all but `files`.

    Raises:
        OutputError: the disk refuses.
    """
    target = bundle.path / ENGINES_DIRECTORY / key_of(record)
    with reporting_writes(target):
        complete = record.model_copy(update={"files": digests(staging)})
        (staging / RECORD_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
        aside = staging.with_name(f"{staging.name}.replaced")
        if target.exists():
            target.rename(aside)
        staging.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    return read_engine(target)


def digests(folder: Path) -> dict[str, FileDigest]:
    """Size and hash of every file in a folder."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def key_of(record: EngineRecord) -> str:
    """The folder's name: target and precision to read, and a hash over all that makes engines different."""
    parts: dict[str, Any] = {
        "machine": record.machine,
        "asked": record.asked,
        "precisions": record.precisions,
        "options": record.options,
    }
    text = json.dumps(parts, sort_keys=True)
    return f"{record.target}-{label(record.asked)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def command_line(arguments: list[str]) -> str:
    """A command for people to copy."""
    return shlex.join(["masksam-deploy", *arguments])


def _folders(bundle: Bundle) -> list[Path]:
    store = bundle.path / ENGINES_DIRECTORY
    if store.is_symlink() or not store.is_dir():
        return []
    with os.scandir(store) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        )


def _readable(folder: Path) -> Engine | None:
    try:
        return read_engine(folder)
    except EngineError:
        return None
