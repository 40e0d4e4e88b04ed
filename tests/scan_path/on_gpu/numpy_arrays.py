"""NumPy in CuPy's place: the same interface, on this machine."""

from __future__ import annotations

import numpy as np

from masksam_deploy.scan_path.gpu_arrays import Arrays


def numpy_arrays() -> Arrays:
    return Arrays(np, to_host=np.asarray, finish=lambda: None, release=lambda: None)
