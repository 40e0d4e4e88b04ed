"""What the kernel takes, in order: inputs, integers, output. One order serves every way to start it.

TensorRT's ahead-of-time plugins set it: inputs, then integer scalars, then outputs, and no floats. So the norm's
epsilon travels as the bits of a float32.
"""

from __future__ import annotations

import struct

INPUTS = ("hidden", "bias", "taps", "taps_bias", "norm_weight", "norm_bias")
INTEGERS = ("frames", "inner", "height", "width", "eps_bits")
OUTPUT = "out"
SCRATCH = ("global_scratch", "profile_scratch")  # Triton's own, never read here
ARGUMENTS = (
    *((name, "pointer") for name in INPUTS),
    *((name, "int32") for name in INTEGERS),
    (OUTPUT, "pointer"),
    *((name, "pointer") for name in SCRATCH),
)
"""A pack says it too, and is refused if it says something else."""


def float32_bits(value: float) -> int:
    """The bits of `value`, rounded to float32, as an int32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return int(bits)
