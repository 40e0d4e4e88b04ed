"""The driver's libraries are asked through ctypes; here, two small libraries of the same names answer instead."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from masksam_deploy.base.nvidia import Gpu, GpuReading, Gpus, find_gpus, jetson_release, read_gpu

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

# Signatures as in cuda.h and nvml.h.
CUDA = r"""
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags == 0 ? STATUS : 1; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 100 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 100 ? "NVIDIA RTX 4000 Ada" : "NVIDIA RTX A4000", length); return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 20ull << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? (device == 100 ? 9 : 6) : -1; return 0;
}
"""
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) { strncpy(version, "580.65.06", length); return 0; }
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)0x123456789aULL; return GPU_STATUS;
}
static int known(void *device) { return device == (void *)0x123456789aULL ? 0 : 2; }
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) { memory->used = 5ull << 30; return known(device); }
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = 123400; return POWER_STATUS | known(device);
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned *mhz) {
    *mhz = clock == 1 ? 2100 : clock == 2 ? 9000 : 0; return known(device);
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    *celsius = 61; return known(device) | sensor;
}
"""


def library(folder: Path, name: str, source: str, **macros: int) -> str:
    code = folder / f"{name}.c"
    code.write_text(source)
    path = folder / f"{name}.so"
    macros = {"GPU_STATUS": 0, "POWER_STATUS": 0} | macros
    defines = [f"-D{key}={value}" for key, value in macros.items()]
    subprocess.run(["cc", "-shared", "-fPIC", *defines, "-o", str(path), str(code)], check=True)
    return str(path)


def test_gpus_are_listed_with_what_engines_depend_on(tmp_path: Path) -> None:
    cuda = library(tmp_path, "cuda", CUDA, STATUS=0, COUNT=2)
    found = find_gpus(cuda, library(tmp_path, "nvml", NVML))
    assert found == Gpus(
        (Gpu("NVIDIA RTX 4000 Ada", (8, 9), 20 << 30), Gpu("NVIDIA RTX A4000", (8, 6), 20 << 30)),
        cuda="13.1",
        driver="580.65.06",
    )
    assert [gpu.sm for gpu in found.devices] == ["sm89", "sm86"]


def test_a_driver_that_does_not_start_is_said(tmp_path: Path) -> None:
    found = find_gpus(library(tmp_path, "cuda", CUDA, STATUS=803, COUNT=1), library(tmp_path, "nvml", NVML))
    assert found.devices == ()
    assert found.driver == "580.65.06"
    assert found.problem == "the NVIDIA driver does not start (cuInit: error 803)"


def test_a_driver_without_gpus_is_said(tmp_path: Path) -> None:
    found = find_gpus(library(tmp_path, "cuda", CUDA, STATUS=0, COUNT=0), str(tmp_path / "no.so"))
    assert (found.devices, found.problem) == ((), "no NVIDIA GPU")


def test_no_driver_is_said(tmp_path: Path) -> None:
    missing = str(tmp_path / "libcuda.so.1")
    assert find_gpus(missing) == Gpus((), problem=f"no NVIDIA driver ({missing} is not found)")


def test_a_gpu_tells_its_clocks_power_temperature_and_memory(tmp_path: Path) -> None:
    found = read_gpu(library(tmp_path, "nvml", NVML))
    assert found == GpuReading(5 << 30, sm_clock_mhz=2100, memory_clock_mhz=9000, power_w=123.4, temperature_c=61)


def test_what_a_gpu_does_not_tell_is_none(tmp_path: Path) -> None:
    found = read_gpu(library(tmp_path, "nvml", NVML, POWER_STATUS=3))
    assert found is not None and found.power_w is None and found.temperature_c == 61


def test_without_nvml_or_a_gpu_there_is_no_reading(tmp_path: Path) -> None:
    assert read_gpu(str(tmp_path / "no.so")) is None
    assert read_gpu(library(tmp_path, "nvml", NVML, GPU_STATUS=6)) is None


def test_a_jetson_is_known_by_its_release_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "nv_tegra_release"
    monkeypatch.setattr("masksam_deploy.base.nvidia.JETSON_RELEASE", release)
    assert jetson_release() is None
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n# KERNEL_VARIANT: oot\n")
    assert jetson_release() == "R36 (release), REVISION: 4.3, GCID: 38968081"


@pytest.mark.gpu
def test_this_machines_gpu_is_found() -> None:
    found = find_gpus()
    assert found.devices, found.problem
    assert found.driver is not None
    assert found.devices[0].memory_bytes > 2**30


@pytest.mark.gpu
def test_this_machines_gpu_is_read() -> None:
    found = read_gpu()
    assert found is not None
    assert found.temperature_c is None or 0 < found.temperature_c < 120
