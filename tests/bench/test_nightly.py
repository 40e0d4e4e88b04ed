"""The standard benchmarks, on a network small enough to export here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")

import torch

from benchmarks import nightly
from benchmarks.nightly import CASES, MR, Standard, measure, random_network, regressions
from masksam_deploy.bench.run import Settings
from masksam_export.official import ACDC, AMOS, SYNAPSE
from tests.export.golden import Golden

QUICK = Settings(repeats=2, scan_repeats=0, windows=1, threads=1, cold=False, roofline=False)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """PyTorch's threads are the whole process's: other tests get them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_random_network_is_exported_once_and_measured_beside_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Golden.read("tiny_acdc").model().config
    monkeypatch.setitem(CASES, "tiny", Standard(partial(random_network, config, (5.0, 1.5, 1.5), MR), (), QUICK))
    result = measure("tiny", tmp_path, QUICK, int8=False, baseline=True)
    assert [(run.name, run.check.passed) for run in result.runs] == [
        ("onnxruntime fp32", True),
        ("pytorch eager", True),
    ]
    assert result.input["origin"] == "synthetic"
    monkeypatch.setattr(nightly, "export_bundle", None)  # not needed any more
    again = measure("tiny", tmp_path, QUICK, int8=False, baseline=False)
    assert again.bundle == result.bundle
    assert regressions(result, result) == []


@pytest.mark.parametrize(("name", "config"), [("acdc", ACDC), ("amos", AMOS), ("synapse", SYNAPSE)])
def test_the_full_size_cases_are_the_published_networks(name: str, config: object) -> None:
    with torch.device("meta"):  # shapes without values: the weights would take gigabytes
        trained = CASES[name].trained()
    assert trained.config == config
    assert len(trained.labels.classes) == trained.config.classes
    assert CASES[name].settings.windows == 1
