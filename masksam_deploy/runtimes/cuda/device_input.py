"""Images that already lie on the GPU: anything that speaks DLPack or `__cuda_array_interface__`.

torch, CuPy and pycuda's `GPUArray` do. Checks are tested; tensors on a device are **not yet run on a GPU**.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from masksam_deploy.base.errors import BackendError
from masksam_deploy.base.text import one_line

_DLPACK_CPU = 1


@dataclass(frozen=True)
class DeviceImage:
    """An image on the GPU.

    Attributes:
        address: on the GPU.
        windows: B.
        bytes: of all windows.
        owner: what keeps it alive.
    """

    address: int
    windows: int
    bytes: int
    owner: object


def device_image(source: object, shape: tuple[int, ...], device: int, stream: int) -> DeviceImage:
    """Take a tensor as it lies on the GPU.

    Args:
        source: float32 `[B, *shape]`, contiguous, on the device, in the memory of its primary context (torch's and
            CuPy's own; for pycuda, `import pycuda.autoprimaryctx`).
        shape: of one window.
        device: number of the GPU.
        stream: handle of the stream that will read it: work that its owner has started comes first.

    Raises:
        BackendError: it is something else; says what.
    """
    from cuda.core.utils import StridedMemoryView

    try:
        view = StridedMemoryView.from_any_interface(source, _no_stream(source) or stream)
    except Exception as error:
        raise BackendError(
            f"found an image of type {type(source).__name__} that cannot be read where it lies "
            f"({one_line(str(error))}), expected a numpy array, or a tensor on the GPU that speaks DLPack or "
            "__cuda_array_interface__; copy it to the host"
        ) from error
    check_view(view, shape, device)
    windows = int(view.shape[0])
    return DeviceImage(int(view.ptr), windows, 4 * int(np.prod(view.shape)), view)


def check_view(view: Any, shape: tuple[int, ...], device: int) -> None:
    """Refuse a tensor (`cuda.core.utils.StridedMemoryView`) that is not such an image.

    Raises:
        BackendError: it is not.
    """
    found = tuple(view.shape)
    if found[1:] != shape or not found[0]:
        raise BackendError(f"found an image of shape {found}, expected (B, {', '.join(map(str, shape))}); reshape it")
    if view.dtype != np.float32:
        raise BackendError(f"found an image of type {view.dtype}, expected float32; convert it")
    if view.strides is not None and not _is_contiguous(found, tuple(view.strides)):
        raise BackendError(
            f"found an image with the strides {tuple(view.strides)}, expected a contiguous one; copy it, e.g. with "
            ".contiguous()"
        )
    if not view.is_device_accessible or view.device_id != device:
        where = f"GPU {view.device_id}" if view.is_device_accessible else "the host"
        raise BackendError(f"found an image on {where}, expected one on GPU {device}, or a numpy array; move it there")


def _no_stream(source: object) -> int | None:
    """-1 (no ordering) for what lies on the host, where streams mean nothing and DLPack refuses them."""
    where = getattr(source, "__dlpack_device__", None)
    return -1 if where is not None and where()[0] == _DLPACK_CPU else None


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements follow each other in C order; strides of axes of length 1 mean nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
