"""Compares two bundles, or one bundle run in two ways: how far do their label maps of the same scans agree?

from masksam_deploy.comparison import Side, compare

comparison = compare(Side(bundle_a), Side(bundle_b), ["scan.nii.gz"])
print(comparison.lowest_agreement)
"""

from masksam_deploy.comparison.comparison import Comparison, ScanComparison, compare
from masksam_deploy.comparison.gates import check_agreement, check_dice
from masksam_deploy.comparison.side import Side

__all__ = [
    "Comparison",
    "ScanComparison",
    "Side",
    "check_agreement",
    "check_dice",
    "compare",
]
