"""Loads every file of a folder in a process of little memory; prints what became of each, as JSON.

python -m tests.fuzz.load_all FOLDER
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.memory import peak_memory
from masksam_export.families.masksam.checkpoint import load_checkpoint

MEMORY = 6 * 2**30  # of addresses; torch alone takes three
SECONDS = 30


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    results = {}
    for path in sorted(folder.iterdir()):
        signal.alarm(SECONDS)  # ends the process: what follows would not be better
        sys.stderr.write(path.name + "\n")
        started = time.perf_counter()
        try:
            load_checkpoint(path)
            said = "loaded"
        except CheckpointError as error:
            said = f"refused: {error}"
        except BaseException:  # noqa: BLE001  whatever it is, it is the result
            said = traceback.format_exc()
        peak = peak_memory() or 0  # `ru_maxrss` would begin with that of the process that started this one
        results[path.name] = {"said": said, "seconds": time.perf_counter() - started, "peak": peak}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
