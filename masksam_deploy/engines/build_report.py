"""What the record of an engine says of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from masksam_deploy.engines.calibration import CalibrationWindows
from masksam_deploy.engines.gate import Gate, Verdict
from masksam_deploy.runtimes.builder import BuildOptions, BuiltEngine

if TYPE_CHECKING:
    from masksam_deploy.engines.build import Attempt, BuildRequest


def gate_report(
    gate: Gate | None,
    windows: CalibrationWindows | None,
    request: BuildRequest,
    attempts: Sequence[Attempt],
    on_device: Verdict | None,
) -> dict[str, Any]:
    """How the engine was judged, and on what."""
    if request.validation is None:
        return {"judged": False, "why": "switched off with --no-gate"}
    return {
        "judged": True,
        "scans": gate.hashes if gate else {},
        "judged_on_calibration_scans": bool(
            gate and windows and request.calibration and set(gate.hashes.values()) & set(windows.scans.values())
        ),
        "in": "ONNX Runtime on a CPU" + (", half precision rounded as stored" if request.spec.on_gpu else ""),
        "attempts": [{"precisions": dict(attempt.precisions), **attempt.verdict.to_dict()} for attempt in attempts],
        "on_device": on_device.to_dict() if on_device else None,
    }


def calibration_report(windows: CalibrationWindows | None, request: BuildRequest) -> dict[str, Any]:
    """What its ranges were measured on."""
    if windows is None:
        return {"windows": 0}
    return {
        "windows": len(windows.windows),
        "scans": windows.scans,
        "sha256": windows.sha256,
        "calibrator": request.calibrator,
    }


def built_report(engine: BuiltEngine) -> dict[str, Any]:
    """What building one graph gave."""
    return {
        "seconds": round(engine.seconds, 2),
        "bytes": engine.bytes,
        "precision_in_graph": dict(engine.precision_in_graph),
        "precision_found": dict(engine.precision_found) if engine.precision_found is not None else None,
        "not_read_back": engine.not_read_back,
        "notes": list(engine.notes),
    }


def options_report(options: BuildOptions) -> dict[str, Any]:
    """All that changes the engine; where a timing cache lies does not."""
    return {
        "batches": list(options.batches),
        "workspace_bytes": options.workspace_bytes,
        "hardware_compatible": options.hardware_compatible,
        "version_compatible": options.version_compatible,
        "strip_weights": options.strip_weights,
        "optimization_level": options.optimization_level,
        "gpus": list(options.gpus),
    }
