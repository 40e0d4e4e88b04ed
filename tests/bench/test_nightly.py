"""The standard benchmarks, on a network small enough to export here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")

import torch

from benchmarks import nightly
from benchmarks.nightly import CASES, MR, Standard, measure, random_network
from masksam_deploy.bench.benchmark import Settings
from masksam_deploy.bench.results import read_result
from masksam_deploy.bundle.directory import Bundle
from masksam_export.families.masksam.official import ACDC, AMOS, SYNAPSE
from tests.bench.example_result import refused, result, run
from tests.export.golden import Golden

QUICK = Settings(repeats=2, scan_repeats=0, windows=1, threads=1, cold=False, roofline=False)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """PyTorch's threads are the whole process's: other tests get them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_random_network_is_exported_anew_unless_reused_and_measured_beside_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Golden.read("tiny_acdc").model().config
    monkeypatch.setitem(CASES, "tiny", Standard(partial(random_network, config, (5.0, 1.5, 1.5), MR), (), QUICK))
    result = measure("tiny", tmp_path, QUICK, int8=True, baseline=True)
    assert [(run.name, run.check.passed) for run in result.runs] == [
        ("onnxruntime fp32", True),
        ("onnxruntime int8", True),
        ("pytorch eager", True),
    ]
    assert result.input["origin"] == "synthetic"
    monkeypatch.setattr(nightly, "build_engine", None)  # the engine is still valid
    asked: list[tuple[Path, bool]] = []

    def export_again(_: object, target: Path, *, force: bool, **__: object) -> Bundle:
        asked.append((target, force))
        return Bundle.load(target)

    monkeypatch.setattr(nightly, "export_bundle", export_again)
    again = measure("tiny", tmp_path, QUICK, int8=True, baseline=False, reuse=True)
    assert again.bundle == result.bundle
    assert asked == []
    measure("tiny", tmp_path, QUICK, int8=False, baseline=False)
    assert asked == [(tmp_path / "tiny.masksam", True)]  # by today's code, in the place of the old one


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a night."""
    monkeypatch.setattr(sys, "argv", ["nightly", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        nightly.main()
    return int(caught.value.code or 0)


def test_a_night_tells_of_what_is_worse_or_wrong_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = (1.0, 1.001, 1.002, 0.999, 0.998)
    nights = iter(
        [result(run("a", quiet)), result(run("a", quiet), refused("b", "too wrong")), result(run("a", quiet))]
    )
    monkeypatch.setattr(nightly, "measure", lambda *_, **__: next(nights))
    folders = {"--work": tmp_path, "--output": tmp_path / "new", "--cases": "demo"}
    night = [part for pair in folders.items() for part in pair]
    old, new = tmp_path / "old", tmp_path / "new" / "bench_demo.json"
    old.mkdir()
    assert call(monkeypatch, *night, "acdc", "--against", old) == 2  # nothing to compare with, known before measuring
    assert "bench_demo.json" in (told := capsys.readouterr().err) and "bench_acdc.json" in told
    assert call(monkeypatch, *night) == 0
    new.rename(old / "bench_demo.json")
    assert call(monkeypatch, *night) == 3
    assert "b: too wrong" in capsys.readouterr().err
    assert read_result(new).runs[1].windows is None  # written all the same
    slow = [0.8 * sample for sample in quiet]
    (old / "bench_demo.json").write_text(result(run("a", slow)).model_dump_json(), encoding="utf-8")
    assert call(monkeypatch, *night, "--against", old) == 3
    assert "a, window: 800 ms became 1000 ms" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "config"), [("acdc", ACDC), ("amos", AMOS), ("synapse", SYNAPSE)])
def test_the_full_size_cases_are_the_published_networks(name: str, config: object) -> None:
    with torch.device("meta"):  # shapes without values: the weights would take gigabytes
        trained = CASES[name].trained()
    assert trained.config == config
    assert len(trained.labels.classes) == trained.config.classes
    assert CASES[name].settings.windows == 1
