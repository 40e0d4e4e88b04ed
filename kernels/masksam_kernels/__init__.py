"""Fused kernels for MaskSAM's depth adapters: reference, Triton kernel, torch operator, ahead-of-time builds."""
