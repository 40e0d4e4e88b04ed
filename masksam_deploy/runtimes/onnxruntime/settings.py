"""How ONNX Runtime loads a graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from masksam_deploy.base.threads import usable_cores
from masksam_deploy.runtimes.base import Device

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def provider_options(device: Device) -> dict[str, str]:
    """What ONNX Runtime is told besides the device."""
    # TF32 keeps 10 bits of the mantissa: not float32, so never silently.
    return {"use_tf32": "0"} if device == "cuda" else {}


def thread_count(threads: int | None) -> int:
    """As ONNX Runtime takes it: 0 leaves the number to it, which then also binds one thread to each core.

    By default one for each core that this process may use. ONNX Runtime's own default is all cores of the machine: too
    many where a process is bound to some of them.
    """
    bound = usable_cores() < (os.cpu_count() or 1)
    return threads or (usable_cores() if bound else 0)


@dataclass(frozen=True)
class SessionSettings:
    """See ONNX Runtime's `SessionOptions`.

    Attributes:
        threads: as `thread_count` gives them.
        arena: keep freed memory for the next operator.
        config: entries of its configuration.
        optimised: whether it may rewrite the graph; False runs it as it is stored.
        by_priority: run operators in the order that frees memory soonest.
        profile: prefix of the file into which it writes what each operator did; None writes none.
    """

    threads: int = 0
    arena: bool = True
    config: Mapping[str, str] = field(default_factory=dict)
    optimised: bool = True
    by_priority: bool = False
    profile: str | None = None

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> SessionSettings:
        """From what `dataclasses.asdict` made."""
        return cls(**message)
