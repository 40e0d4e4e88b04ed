"""What can go wrong, one type per kind of failure.

Every message says what was found, what was expected and what to do, on one line. The command line prints
it and exits with `exit_code`; a library user catches `MaskSamError`.
"""

from __future__ import annotations


class MaskSamError(Exception):
    """Base of every error that masksam-deploy raises on purpose."""

    exit_code = 2


class ScanError(MaskSamError):
    """A scan cannot be read, or is not a 3D grid of finite numbers."""


class OutputError(MaskSamError):
    """A result cannot be written."""


class DiskFullError(OutputError):
    """A result cannot be written for want of room, and neither could the next one."""


class LedgerInUseError(OutputError):
    """Another run is at work in the folder."""


class ScansFailedError(MaskSamError):
    """Some of many scans gave no label map; the others did."""

    exit_code = 4


class BundleError(MaskSamError):
    """A bundle is missing, damaged, inconsistent or of an unknown version."""


class MemoryLimitError(MaskSamError):
    """The work would need more memory than allowed."""


class BackendError(MaskSamError):
    """An inference runtime is unavailable, or refuses a graph."""


class NetworkCrashError(BackendError):
    """The worker process in which a network runs has ended: the runtime crashed, was killed or was interrupted."""


class EngineError(MaskSamError):
    """An engine cannot be built as asked, is not what it should be, or is not for this machine."""


class GateError(EngineError):
    """A smaller precision loses more Dice than is allowed."""

    exit_code = 3


class EvaluationError(MaskSamError):
    """Predictions and references cannot be compared: they do not pair up, or their grids or labels differ."""


class DiceTooLowError(MaskSamError):
    """An evaluation worked, and its result is worse than demanded."""

    exit_code = 3


class DisagreementError(MaskSamError):
    """A comparison worked, and what it compares agrees less than demanded."""

    exit_code = 3


class BenchError(MaskSamError):
    """A benchmark cannot be made or compared as asked."""


class RegressionError(MaskSamError):
    """A comparison of benchmarks worked, and something became slower, larger, or is missing."""

    exit_code = 3


class MissingDependencyError(MaskSamError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str, install: str | None = None) -> None:
        """`install`: what to do instead where no extra of ours brings the package."""
        line = install or f"pip install 'masksam-deploy[{extra}]'"
        super().__init__(f"{purpose} needs '{package}', which is not installed; needs: {line}")


class CheckpointError(MaskSamError):
    """A checkpoint cannot be read safely, or does not describe a MaskSAM."""


class ExportError(MaskSamError):
    """A checkpoint cannot be turned into a bundle."""


class ParityError(ExportError):
    """Exported graphs disagree with the network they came from."""

    exit_code = 3


class DatasetError(MaskSamError):
    """A training dataset is incomplete or inconsistent, or cannot be trained on as asked."""
