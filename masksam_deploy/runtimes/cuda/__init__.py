"""NVIDIA GPUs through `cuda-core`: memory, streams and captured runs."""
