"""Class scores that never leave the GPU: summed over windows, resampled and decided there; only labels come down.

For networks that leave their scores on the GPU (engines of TensorRT). Written against CuPy's arrays, which have NumPy's
interface, and tested with NumPy's in their place; **not yet run on a GPU**. The host's own way is `rolling_sums` and
`postprocess`, and is what runs unless this is asked for.
"""
