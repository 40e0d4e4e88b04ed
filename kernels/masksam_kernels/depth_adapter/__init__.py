"""The middle of MaskSAM's depth-convolution adapter: `reference.py` is the truth, `fused.py` the kernel, `op.py`
torch's way to it. Importing this package needs neither torch nor Triton.
"""
