"""How much memory and time reading a scan may take."""

from __future__ import annotations

HEADER_MEMORY = 2**30
"""Bytes for reading headers: thousands of slices take a few hundred megabytes."""
DECODING_MEMORY = 2**29
"""Bytes beside the voxels: buffers of the decoders, which take one slice at a time."""
_CPU_SECONDS = 60
_WALL_SECONDS = 600
# A slow machine decodes 4 MB/s of JPEG 2000, a slow network file system delivers 1 MB/s.
_CPU_BYTES_PER_SECOND = 4e6
_WALL_BYTES_PER_SECOND = 1e6
_FILE_SECONDS = 1.0


def seconds_to_open(files: int) -> tuple[int, int]:
    """Processor time and time in all for the headers of so many files."""
    return _CPU_SECONDS + int(files * _FILE_SECONDS / 10), _WALL_SECONDS + int(files * _FILE_SECONDS)


def seconds_to_decode(size: int) -> tuple[int, int]:
    """Processor time and time in all for so many bytes of voxels."""
    return _CPU_SECONDS + int(size / _CPU_BYTES_PER_SECOND), _WALL_SECONDS + int(size / _WALL_BYTES_PER_SECOND)
