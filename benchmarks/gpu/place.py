"""Where the scripts of this folder run: on the first NVIDIA GPU, or, with DRY=1 in the environment, on the CPU.

A dry run takes tiny sizes and Triton's interpreter. It shows that every script works; none of its figures means
anything.
"""

from __future__ import annotations

import os
import sys

import torch

NOT_MEASURED = 4
"""The exit code of a script that finds no GPU."""


def dry() -> bool:
    """Whether this is a dry run."""
    return os.environ.get("DRY") == "1"


def on_gpu() -> bool:
    """Whether tensors lie on a GPU."""
    return not dry()


def device() -> torch.device:
    """The device that everything is computed on.

    Raises:
        SystemExit: there is no GPU, and this is no dry run.
    """
    if dry():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("not measured: no NVIDIA GPU on this machine; DRY=1 tries the scripts on the CPU")
        sys.exit(NOT_MEASURED)
    return torch.device("cuda")


def half() -> torch.dtype:
    """The type of half-precision networks: float16; float32 in dry runs, where every form must be the same function."""
    return torch.float16 if on_gpu() else torch.float32


def autocast() -> torch.autocast:
    """Automatic mixed precision in float16; in bfloat16 on the CPU, which has no other."""
    return torch.autocast(device().type, torch.float16 if on_gpu() else torch.bfloat16)


def set_up() -> None:
    """No gradients, and float32 that is float32: TF32 would make the reference a half-precision one."""
    device()
    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
