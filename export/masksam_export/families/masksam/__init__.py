"""MaskSAM: reading its checkpoints, the network in torch, its parts for tracing, and its training."""
