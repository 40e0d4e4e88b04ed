"""Training a MaskSAM, from scratch or from SAM's weights."""
