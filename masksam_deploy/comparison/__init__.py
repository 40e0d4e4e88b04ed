"""Two bundles, or one bundle run in two ways, on the same scans: how far do the label maps agree?

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
