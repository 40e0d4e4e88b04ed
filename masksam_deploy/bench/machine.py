"""Where and with what a benchmark ran."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from masksam_deploy.base.memory import available_memory
from masksam_deploy.base.nvidia import GpuReading, find_gpus, jetson_release
from masksam_deploy.base.threads import usable_cores
from masksam_deploy.bench.results import GpuState
from masksam_deploy.scan_path.report import runtime_versions

_BUSY = 0.5
"""Load a core above which a machine is not quiet."""
_UNITS = {
    "SM clock, MHz": "sm_clock_mhz",
    "memory clock, MHz": "memory_clock_mhz",
    "power, W": "power_w",
    "temperature, °C": "temperature_c",
}


def machine_facts() -> dict[str, str]:
    """What decides how fast this machine is."""
    facts = {
        "processor": processor_name(),
        "cores": str(usable_cores()),
        "memory": f"{total / 2**30:.1f} GiB" if (total := _total_memory()) else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
    }
    gpus = find_gpus()
    if gpus.devices:
        facts["gpu"] = ", ".join(f"{gpu.name} ({gpu.sm}, {gpu.memory_bytes / 2**30:.1f} GiB)" for gpu in gpus.devices)
        facts["driver"] = gpus.driver or "unknown"
        facts["cuda"] = gpus.cuda or "unknown"
    release = jetson_release()
    return facts | ({"jetson": release} if release else {})


def software_facts() -> dict[str, str]:
    """Versions, and the commit if this runs from a git checkout."""
    commit = checkout_commit(Path(__file__).parents[1])
    return runtime_versions() | ({"commit": commit} if commit else {})


def provenance(*packages: str) -> dict[str, Any]:
    """When, where and with what a script of `benchmarks/` measured; with the versions of these packages, too."""
    software = software_facts()
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": software.pop("commit", None),
        "machine": machine_facts(),
        "state": machine_state(),
        "versions": software | {name: version(name) for name in packages},
    }


def machine_state() -> dict[str, str]:
    """What else the machine was doing."""
    free = available_memory()
    state = {"free memory": f"{free / 2**30:.1f} GiB"} if free else {}
    if hasattr(os, "getloadavg"):
        state["load (1, 5, 15 min)"] = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    return state


def busy_warning(load: float, cores: int) -> str | None:
    """What to say if others were using the machine when it began; None if it was quiet.

    Args:
        load: processes that ran or waited, averaged over the minute before.
        cores: usable ones.
    """
    if load <= _BUSY * cores:
        return None
    return (
        f"the machine was busy: found a load of {load:.1f} on {cores} cores before it began, expected at most "
        f"{_BUSY * cores:g}; times, ratios and peaks are not to be trusted, measure again on a quiet machine"
    )


def recent_load() -> float:
    """Processes that ran or waited, averaged over the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def checkout_commit(folder: Path) -> str | None:
    """The commit of the checkout that tracks a folder's files, marked if anything but results changed; None elsewhere.

    A package installed into an environment that lies in some other project's checkout is not tracked by it.
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if tracked is None or commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--", ":/", ":(exclude,top)benchmarks/results")
    return f"{commit} with changes" if changes else commit


def processor_name() -> str:
    """The processor's model as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine() or "unknown"


def gpu_state(readings: Sequence[GpuReading]) -> GpuState | None:
    """Lowest, median and highest of each quantity that the GPU told."""
    told = {
        unit: [float(value) for reading in readings if (value := getattr(reading, field)) is not None]
        for unit, field in _UNITS.items()
    }
    told["memory in use, GiB"] = [reading.memory_used_bytes / 2**30 for reading in readings]
    summary = {unit: (min(values), median(values), max(values)) for unit, values in told.items() if values}
    return GpuState(readings=summary) if summary else None


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
