"""What the machine holds, whether the project's packages import, and two ceilings: a copy and a matrix product."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
from functools import partial

import torch

from benchmarks.gpu.place import device, dry, on_gpu, set_up
from benchmarks.gpu.project import MODULES, gpu_memory, provenance
from benchmarks.gpu.results import Results
from benchmarks.gpu.timing import graphed, median_ms

PACKAGES = (
    "torch",
    "triton",
    "cuda-core",
    "cuda-bindings",
    "cupy-cuda13x",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "scipy",
    "SimpleITK",
    "pydantic",
    "pydantic-core",
    "pydicom",
    "click",
    "rich",
    "pillow",
    "matplotlib",
    "pytest",
    "hypothesis",
    "masksam-deploy",
)
GPU_MODULES = ("cuda.core", "cuda.core.utils", "cupy")
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "nvidia-smi", "gcc")
QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,memory.total"
COPIES = {"large": (2048, 1), "cached": (10, 50)}
"""MiB that are copied, and how often in one CUDA graph: far beyond the cache, and within it."""


def main() -> None:
    """Write everything down."""
    set_up()
    results = Results("environment")
    results.put("device", torch.cuda.get_device_name() if on_gpu() else "dry run")
    results.put("gpu", gpu_facts())
    results.put("python", sys.version)
    results.put("platform", platform.platform())
    results.put("versions", {name: version(name) for name in PACKAGES})
    results.put("tools", {name: shutil.which(name) for name in TOOLS})
    groups = importlib.metadata.entry_points(group="masksam_deploy.commands")
    results.put("commands", sorted(point.name for point in groups))
    for name in (*MODULES, *(GPU_MODULES if on_gpu() else ())):
        results.attempt("imports", name, partial(imported, name))
    results.attempt("provenance", "torch and triton", lambda: provenance("torch", "triton"))
    for name, (mib, calls) in COPIES.items():
        results.attempt("ceilings", f"copy, {name}", partial(copy_ceiling, 1 if dry() else mib, calls))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        results.attempt("ceilings", f"product, {str(dtype).removeprefix('torch.')}", partial(product_ceiling, dtype))
    if on_gpu():
        results.attempt("cuda_core", "memory pool", pool_facts)
    results.finish()


def version(name: str) -> str | None:
    """Of an installed package; None if it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def imported(name: str) -> str:
    """Import a module of the project or of what it needs."""
    importlib.import_module(name)
    return "imports"


def gpu_facts() -> dict[str, object]:
    """What the driver tells of the GPU; empty in a dry run."""
    if not on_gpu():
        return {}
    properties = torch.cuda.get_device_properties(0)
    facts: dict[str, object] = {
        "sm": f"{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        facts["nvidia_smi"] = told.stdout.strip() or told.stderr.strip()
    return facts


def copy_ceiling(mib: int, calls: int) -> dict[str, float]:
    """TB/s of a copy, bytes read and bytes written."""
    size = mib * 2**20
    source = torch.empty(size, dtype=torch.uint8, device=device()).random_()
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(calls):
            target.copy_(source)

    ms = median_ms(graphed(copies)[0])["median_ms"]
    return {"tb_s": round(2 * size * calls / ms / 1e9, 3)}


def product_ceiling(dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of a square matrix product; for float32 with TF32, too."""
    side = 256 if dry() else 8192
    a, b = (torch.randn(side, side, device=device()).to(dtype) for _ in range(2))

    def rate() -> float:
        return round(2e-9 * side**3 / median_ms(lambda: a @ b, 10)["median_ms"], 1)

    found = {"tflop_s": rate()}
    if dtype == torch.float32 and on_gpu():
        torch.backends.cuda.matmul.allow_tf32 = True
        found["tf32_tflop_s"] = rate()
        torch.backends.cuda.matmul.allow_tf32 = False
    return found


def pool_facts() -> dict[str, object]:
    """Whether memory that cuda-core gives back counts as free; if not (`returned`), the product counts it as used."""
    from cuda.core import Device

    gpu, gpu_device = gpu_memory(), Device(0)
    stream = gpu_device.create_stream()
    before = gpu.free_bytes()
    buffer = gpu_device.allocate(4 * 2**30, stream=stream)
    stream.sync()
    held = gpu.free_bytes()
    buffer.close()
    stream.sync()
    after = gpu.free_bytes()
    attributes = getattr(gpu_device.memory_resource, "attributes", None)
    names = ("release_threshold", "reserved_mem_current", "used_mem_current")
    told = {name: getattr(attributes, name, None) for name in names}
    return {
        "free_before": before,
        "free_held": held,
        "free_after": after,
        "returned": (after or 0) > (held or 0),
        **told,
    }


if __name__ == "__main__":
    main()
