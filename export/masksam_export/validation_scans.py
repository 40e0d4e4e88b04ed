"""Scans that travel with a bundle, so that engines can be judged where they are built."""

from __future__ import annotations

from pathlib import Path

from masksam_deploy.base.errors import ExportError
from masksam_deploy.base.text import shown
from masksam_deploy.bundle.manifest import Labels, ValidationCase
from masksam_deploy.engines.gate import Case
from masksam_deploy.io import read_volume, write_labels
from masksam_deploy.io.write_scan import write_scan
from masksam_deploy.metrics.label_maps import check_same_grid, read_label_map
from masksam_deploy.scan_path.report import label_names

FOLDER = "validation"
LIMIT = 256 * 2**20
"""Bytes of all validation files together: a bundle is copied to every machine that it runs on."""


def add_validation(staging: Path, cases: list[Case], labels: Labels, channels: int) -> tuple[ValidationCase, ...]:
    """Write cases into a bundle that is being made: voxels and geometry, nothing else of the patient.

    Args:
        staging: the bundle's files.
        cases: scans, with references where there are any.
        labels: of the bundle; references may hold no others.
        channels: input channels of the network.

    Raises:
        ExportError: a scan has another number of channels, or all are too large.
        ScanError, EvaluationError: a file cannot be read, or a reference does not fit its scan.
    """
    written = []
    for number, case in enumerate(cases, 1):
        volume = read_volume(case.scan.paths)
        if len(volume.channels_czyx) != channels:
            raise ExportError(
                f"{shown(case.scan.name)}: found {len(volume.channels_czyx)} channels, expected {channels}; name every "
                "channel's file CASE_0000, CASE_0001 …"
            )
        name = f"case_{number}"  # a file's own name may be a patient's
        folder = staging / FOLDER
        folder.mkdir(exist_ok=True)
        scans = tuple(f"{FOLDER}/{name}_{channel:04d}.nii.gz" for channel in range(channels))
        for channel, file in enumerate(scans):
            write_scan(volume, channel, staging / file)
        reference = None
        if case.reference is not None:
            reference = f"{FOLDER}/{name}_reference.nii.gz"
            label_map = read_label_map(case.reference, label_names(labels))
            check_same_grid(label_map.geometry, volume.geometry, shown(case.reference), "its scan")
            write_labels(label_map, staging / reference)
        written.append(ValidationCase(name=name, scans=scans, reference=reference))
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > LIMIT:
            raise ExportError(
                f"found {size / 2**20:.0f} MiB of validation scans, expected at most {LIMIT / 2**20:.0f}: they travel "
                "with the bundle; choose fewer or smaller ones"
            )
    return tuple(written)
