"""MaskSAM in torch, one stage a file.

Attribute names are the official state_dict names, so that official checkpoints load with `strict=True`.
Row orders, as everywhere in MaskSAM: `(b t)` = b*T + t and `(b t q)` = (b*T + t)*Q + q.
"""

from masksam_export.families.masksam.model.masksam import MaskSAM

__all__ = ["MaskSAM"]
