"""The NVIDIA GPUs of this machine, asked of the driver's own libraries: no CUDA toolkit, no package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

CUDA_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
NVML_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
JETSON_RELEASE = Path("/etc/nv_tegra_release")
_MODULE_VERSION = Path("/sys/module/nvidia/version")

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NAME_BYTES = 256
_NVML_CLOCK_SM, _NVML_CLOCK_MEMORY = 1, 2  # nvmlClockType_t
_NVML_TEMPERATURE_GPU = 0  # nvmlTemperatureSensors_t


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs of this process see."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    @property
    def sm(self) -> str:
        """The compute capability as compilers write it, e.g. `sm89`."""
        major, minor = self.compute_capability
        return f"sm{major}{minor}"


@dataclass(frozen=True)
class Gpus:
    """What the driver says. Without a driver, or with a broken one: no devices, and `problem` says why."""

    devices: tuple[Gpu, ...]
    cuda: str | None = None
    """The newest CUDA that the driver supports, e.g. `13.0`."""
    driver: str | None = None
    """The driver's version, e.g. `580.65.06`."""
    problem: str | None = None


def find_gpus(cuda_library: str = CUDA_LIBRARY, nvml_library: str = NVML_LIBRARY) -> Gpus:
    """Ask the driver; makes no CUDA context and takes no GPU memory."""
    try:
        cuda = ctypes.CDLL(cuda_library)
    except OSError:
        return Gpus((), problem=f"no NVIDIA driver ({cuda_library} is not found)")
    driver = _driver_version(nvml_library)
    status = int(cuda.cuInit(0))
    if status != 0:
        return Gpus((), driver=driver, problem=f"the NVIDIA driver does not start (cuInit: error {status})")
    version = _integer(cuda.cuDriverGetVersion)
    count = _integer(cuda.cuDeviceGetCount)
    devices = tuple(_gpu(cuda, index) for index in range(count))
    return Gpus(devices, f"{version // 1000}.{version % 1000 // 10}", driver, None if devices else "no NVIDIA GPU")


@dataclass(frozen=True)
class GpuReading:
    """The first GPU at this moment; None for what it does not tell (a Jetson or a virtual GPU tells little)."""

    memory_used_bytes: int
    """By all programs together."""
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None


def read_gpu(nvml_library: str = NVML_LIBRARY) -> GpuReading | None:
    """Ask NVML for clocks, power, temperature and memory of the first GPU; None without a driver or a GPU.

    NVML counts GPUs its own way: on a machine with several, this may be another one than CUDA's first.
    """
    try:
        nvml = ctypes.CDLL(nvml_library)
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        device = ctypes.c_void_p()
        memory = _NvmlMemory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) != 0:
            return None
        if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
            return None
        milliwatts = _nvml_number(nvml.nvmlDeviceGetPowerUsage, device)
        return GpuReading(
            memory_used_bytes=int(memory.used),
            sm_clock_mhz=_nvml_number(nvml.nvmlDeviceGetClockInfo, device, _NVML_CLOCK_SM),
            memory_clock_mhz=_nvml_number(nvml.nvmlDeviceGetClockInfo, device, _NVML_CLOCK_MEMORY),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=_nvml_number(nvml.nvmlDeviceGetTemperature, device, _NVML_TEMPERATURE_GPU),
        )
    finally:
        nvml.nvmlShutdown()


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvml_number(function: ctypes._NamedFuncPointer, device: ctypes.c_void_p, *which: int) -> int | None:
    value = ctypes.c_uint()
    return value.value if function(device, *which, ctypes.byref(value)) == 0 else None


def jetson_release() -> str | None:
    """The first line of NVIDIA's release file if this is a Jetson, else None."""
    try:
        return JETSON_RELEASE.read_text(encoding="utf-8").splitlines()[0].strip("# ")
    except (OSError, IndexError, UnicodeDecodeError):
        return None


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, _NAME_BYTES, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    major, minor = (
        _integer(cuda.cuDeviceGetAttribute, attribute, handle) for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode("utf-8", "replace"), (major, minor), memory.value)


def _integer(function: ctypes._NamedFuncPointer, *arguments: object) -> int:
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value


def _driver_version(nvml_library: str) -> str | None:
    """From NVML; from the kernel module where there is no NVML (older Jetsons)."""
    try:
        nvml = ctypes.CDLL(nvml_library)
    except OSError:
        return _kernel_module_version()
    text = ctypes.create_string_buffer(80)
    if nvml.nvmlInit_v2() != 0:
        return _kernel_module_version()
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return text.value.decode("utf-8", "replace") if status == 0 else _kernel_module_version()


def _kernel_module_version() -> str | None:
    try:
        return _MODULE_VERSION.read_text(encoding="utf-8").strip()
    except OSError:
        return None
