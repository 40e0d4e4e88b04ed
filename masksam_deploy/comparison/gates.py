"""Demands on a comparison, to be checked before one bundle, device or precision replaces another."""

from __future__ import annotations

from masksam_deploy.base.errors import DisagreementError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.comparison.comparison import Comparison


def check_agreement(comparison: Comparison, least: float) -> None:
    """Demand that in every scan a share of the voxels has the same label on both sides.

    Args:
        comparison: finished.
        least: the smallest share that is accepted, from 0 to 1.

    Raises:
        DisagreementError: a scan has a smaller share; the message names the worst scan.
    """
    worst = comparison.lowest_agreement
    if worst.overlap.agreement < least:
        raise DisagreementError(
            f"{shown(worst.scan)}: found the same label on {share(worst.overlap.agreement)} of the voxels, expected at "
            f"least {share(least)}; look at the scans with the lowest agreement before one side replaces the other"
        )


def check_dice(comparison: Comparison, least: float) -> None:
    """Demand a Dice for every class in every scan.

    A class that is empty on both sides of a scan is not counted there. If no class counts in any scan, the demand is
    not met, because nothing was shown.

    Args:
        comparison: finished.
        least: the lowest Dice that is accepted, from 0 to 1.

    Raises:
        DisagreementError: a Dice is lower; the message names the classes, their lowest Dice and the scans.
    """
    judged = [(row, row.lowest_dice) for row in comparison.classes if row.lowest_dice is not None]
    if not judged:
        raise DisagreementError(
            f"found no class in any scan, expected some with a Dice of at least {least:g}; compare scans that show "
            "what the bundles segment"
        )
    low = [
        f"'{one_line(row.name)}' {dice!r} in {shown(row.lowest_dice_scan or '')}"
        for row, dice in judged
        if dice < least
    ]
    if low:
        raise DisagreementError(
            f"found a Dice of {'; '.join(low)}, expected at least {least:g} for every class in every scan; look at "
            "these scans before one side replaces the other"
        )


def share(value: float) -> str:
    """A share from 0 to 1 as a percentage; only 1 itself is shown as 100 %."""
    return "100 %" if value == 1 else f"{min(value, 0.999999) * 100:.4f} %"
