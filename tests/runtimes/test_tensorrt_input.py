"""Images that lie on the GPU: what can be checked of them without one, on real views of host memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksam_deploy.base.errors import BackendError, MemoryLimitError
from masksam_deploy.base.nvidia import find_gpus
from masksam_deploy.runtimes import cuda
from masksam_deploy.runtimes.cuda.buffers import Gpu, as_array, reported
from masksam_deploy.runtimes.cuda.device_input import check_view, device_image

core: Any = pytest.importorskip("cuda.core", reason="needs the 'gpu' extra")
utils: Any = pytest.importorskip("cuda.core.utils")

no_gpu = pytest.mark.skipif(bool(find_gpus().devices), reason="this machine has a GPU")
SHAPE = (2, 4, 8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 2, 4, 9), np.float32), r"found an image of shape \(1, 2, 4, 9\), expected \(B, 2, 4, 8\)"),
        (np.zeros(SHAPE, np.float32), r"found an image of shape \(2, 4, 8\), expected \(B, 2, 4, 8\)"),
        (np.zeros((0, *SHAPE), np.float32), r"found an image of shape \(0, 2, 4, 8\)"),
        (np.zeros((1, *SHAPE), np.float64), "found an image of type float64, expected float32"),
        (np.zeros((1, 8, 4, 2), np.float32).T.reshape(2, 4, 8, 1).transpose(3, 0, 1, 2)[..., ::-1], "strides"),
        (np.zeros((1, 2, 4, 16), np.float32)[..., ::2], r"strides \(128, 64, 16, 2\), expected a contiguous one"),
        (np.zeros((1, *SHAPE), np.float32), "found an image on the host, expected one on GPU 0, or a numpy array"),
    ],
)
def test_what_is_no_image_on_the_gpu_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        device_image(array, SHAPE, device=0, stream=1)


def test_strides_of_an_axis_of_length_one_do_not_matter() -> None:
    """One window cut out of many has the others' stride."""
    array = np.zeros((6, *SHAPE), np.float32)[::3][:1]
    with pytest.raises(BackendError, match="on the host"):  # all else is right
        check_view(utils.StridedMemoryView.from_any_interface(array, -1), SHAPE, device=0)


def test_a_tensor_of_torch_on_the_host_is_told_from_one_on_the_gpu() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(BackendError, match="on the host"):
        device_image(torch.zeros(1, *SHAPE), SHAPE, device=0, stream=1)


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(BackendError, match=r"image of type list that cannot be read where it lies .*DLPack or __cuda"):
        device_image([1.0], SHAPE, device=0, stream=1)


def test_host_memory_of_a_buffer_lives_as_long_as_the_array_on_it() -> None:
    owner = np.zeros(24, np.float32)
    before = sys.getrefcount(owner)
    array = as_array(core.Buffer.from_handle(owner.ctypes.data, owner.nbytes, owner=owner), (2, 3, 4))
    array[1, 2, 3] = 7
    assert owner[-1] == 7
    assert array.flags.c_contiguous
    assert sys.getrefcount(owner) > before
    del array
    assert sys.getrefcount(owner) == before


@no_gpu
def test_without_a_driver_the_gpu_does_not_open() -> None:
    with pytest.raises(BackendError, match=r"the GPU failed \(opening the GPU: .*driver.*'masksam-deploy doctor'"):
        Gpu()


def test_without_cuda_core_the_extra_is_named() -> None:
    code = (
        "import sys\n"
        "sys.modules['cuda'] = None\n"
        "from masksam_deploy.runtimes.cuda.buffers import Gpu\n"
        "from masksam_deploy.base.errors import MissingDependencyError\n"
        "try:\n"
        "    Gpu()\n"
        "except MissingDependencyError as error:\n"
        "    sys.exit(0 if \"pip install 'masksam-deploy[gpu]'\" in str(error) else str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_that_is_used_up_is_told_with_the_budget() -> None:
    with (
        pytest.raises(
            BackendError, match=r"memory is used up \(allocating: CUDA_ERROR_OUT_OF_MEMORY.*needs 3 GiB; end"
        ),
        reported("allocating", "3 GiB"),
    ):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: unable to allocate")


def test_errors_of_ours_go_through_as_they_are() -> None:
    with pytest.raises(MemoryLimitError, match=r"^allowed"), reported("allocating"):
        raise MemoryLimitError("allowed")


# What these variables and attributes hold wherever cuda-core is used.
CLASSES = {
    "_device": "Device",
    "_compute": "Stream",
    "_copies": "Stream",
    "stream": "Stream",
    "buffer": "Buffer",
    "scratch": "Buffer",
    "target": "Buffer",
    "part": "Buffer",
    "builder": "graph.GraphBuilder",
    "graph": "graph.Graph",
    "_core": "",
    "view": "utils.StridedMemoryView",
}


def test_every_name_of_cuda_core_that_is_used_exists() -> None:
    folder = Path(str(cuda.__file__)).parent
    used: dict[str, set[str]] = {}
    for file in ("buffers.py", "runs.py", "device_input.py"):
        for node in ast.walk(ast.parse((folder / file).read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr=attribute):
                    if name in CLASSES:
                        used.setdefault(CLASSES[name], set()).add(attribute)
    assert used["graph.GraphBuilder"] == {"begin_building", "close", "complete", "end_building", "stream"}
    assert {"wait", "record", "sync", "handle", "close"} <= used["Stream"]
    assert {"copy_from", "fill", "handle", "close"} <= used["Buffer"]
    missing = []
    for owner, names in used.items():
        kind = core
        for part in filter(None, owner.split(".")):
            kind = getattr(kind, part)
        missing += [f"{owner}.{name}" for name in names if not hasattr(kind, name)]
    assert missing == []
