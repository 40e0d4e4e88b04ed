"""Fused kernels for MaskSAM's depth adapters will live here; there are none yet, and nothing depends on them."""
