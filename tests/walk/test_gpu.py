"""The same label map on a GPU as on the CPU. Needs a machine with an NVIDIA GPU and onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksam_deploy import Segmenter, read_volume


@pytest.mark.gpu
def test_cuda_gives_the_label_map_of_the_cpu(cardiac_bundle: Path, cardiac_case: Path) -> None:
    scan = read_volume(cardiac_case / "c_cardiac_0000.nii.gz")
    with Segmenter(cardiac_bundle, device="cuda", tta=False) as on_gpu, Segmenter(cardiac_bundle, tta=False) as on_cpu:
        found, expected = on_gpu(scan), on_cpu(scan)
    assert set(found.report.settings["providers"].values()) == {"CUDAExecutionProvider"}
    # Sums in another order move scores by some 1e-5: near-ties change, nothing else does.
    assert (found.labels.array == expected.labels.array).mean() > 0.999
