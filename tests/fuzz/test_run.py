"""The fast part of fuzzing: a few files of every kind, by seeds of their own; `make fuzz` tries ten thousand."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.judges import JUDGES, FaultError

COUNTS = {"images": 250, "dicom": 100, "batches": 2, "bundles": 4}  # of the other kinds, tests beside them take more


@pytest.mark.parametrize("kind", COUNTS)
def test_no_file_is_read_wrongly_or_harms_the_process(kind: str, tmp_path: Path) -> None:
    if kind in ("batches", "bundles"):
        pytest.importorskip("onnx", reason="builds its network with onnx")
    outcomes: Counter[str] = Counter()
    for name, case in islice(JUDGES[kind](2026, tmp_path), COUNTS[kind]):
        try:
            outcomes[case()] += 1
        except FaultError as fault:
            raise AssertionError(f"{name}: {fault}") from fault
    assert sum(outcomes.values()) == COUNTS[kind]
    if kind in ("images", "dicom"):  # the generators make good files and bad ones, and can be compared with
        assert outcomes["refused"] > COUNTS[kind] / 4
        assert outcomes["read and right"] > COUNTS[kind] / 8
        assert outcomes["read, nothing to compare with"] < COUNTS[kind] / 20


def test_a_process_that_dies_or_hangs_is_a_fault_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PATIENCE", 20)
    monkeypatch.setattr("sys.executable", str(Path(__file__).with_name("dying_interpreter")))
    found = run.run_kind("images", 1, 3)
    assert [fault["case"] for fault in found.faults] == ["first", "first", "first"]
    assert all("the process ended (-11)" in fault["fault"] for fault in found.faults)
