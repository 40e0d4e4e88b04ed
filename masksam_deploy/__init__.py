"""From a verified MaskSAM bundle to label maps, without torch.

from masksam_deploy import Segmenter, read_volume, write_labels

with Segmenter("lv.masksam") as segmenter:
    labels, report = segmenter(read_volume("scan.nii.gz"))
write_labels(labels, "seg.nii.gz")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from masksam_deploy.base.version import __version__

if TYPE_CHECKING:
    from masksam_deploy.base.errors import MaskSamError
    from masksam_deploy.base.volume import Geometry, Volume
    from masksam_deploy.bundle.directory import Bundle
    from masksam_deploy.io import read_volume, write_labels
    from masksam_deploy.scan_path.segmenter import Segmentation, Segmenter

# Looked up on first use, so that the command line's --help does not wait for numpy and SimpleITK.
_HOMES = {
    "Bundle": "bundle.directory",
    "Geometry": "base.volume",
    "MaskSamError": "base.errors",
    "Segmentation": "scan_path.segmenter",
    "Segmenter": "scan_path.segmenter",
    "Volume": "base.volume",
    "read_volume": "io",
    "write_labels": "io",
}

__all__ = [
    "Bundle",
    "Geometry",
    "MaskSamError",
    "Segmentation",
    "Segmenter",
    "Volume",
    "__version__",
    "read_volume",
    "write_labels",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
