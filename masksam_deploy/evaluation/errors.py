"""What can go wrong in an evaluation, besides unreadable files (`ScanError`)."""

from __future__ import annotations

from masksam_deploy.base.errors import MaskSamError


class EvaluationError(MaskSamError):
    """Predictions and references cannot be compared: they do not pair up, or their grids or labels differ."""


class DiceTooLowError(MaskSamError):
    """The comparison worked, and its result is worse than demanded."""

    exit_code = 3
