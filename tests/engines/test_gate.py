"""The Dice gate: what counts as lost, and who is let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy import write_labels
from masksam_deploy.base.errors import EngineError, MaskSamError
from masksam_deploy.base.volume import Volume
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.gate import (
    LIMITS,
    Case,
    CaseResult,
    Gate,
    Limits,
    Verdict,
    limits_of,
    validation_cases,
    with_references,
)
from masksam_deploy.io.cases import ScanFiles, find_scans
from masksam_deploy.io.write_scan import write_scan
from masksam_deploy.runtimes import open_chain
from tests.engines.small_bundle import ball_scan, write_ball_scans

LOOSE = Limits(1.0, 1.0)


def result(
    case: str, between: dict[str, float | None], float32: Any = None, engine: Any = None, agreement: float = 1.0
) -> CaseResult:
    return CaseResult(case, agreement, between, float32, engine)


def test_the_defaults_are_those_that_the_readme_promises() -> None:
    assert (LIMITS["fp16"], LIMITS["int8"]) == (Limits(0.001, 0.003), Limits(0.005, 0.010))
    assert limits_of({"a": "fp16", "b": "fp32"}) == LIMITS["fp16"]
    assert limits_of({"a": "fp16", "b": "int8"}) == LIMITS["int8"]


def test_without_a_reference_what_differs_from_float32_is_lost() -> None:
    verdict = Verdict(LOOSE, (result("one", {"a": 0.99, "b": None}), result("two", {"a": 0.97, "b": 0.9})))
    assert verdict.class_losses == pytest.approx({"a": 0.02, "b": 0.1})
    assert verdict.mean_loss == pytest.approx((0.01 + 0.03 + 0.1) / 3)
    assert (verdict.worst_class[0], verdict.worst_case[:2]) == ("b", ("two", "b"))
    assert (verdict.worst_class[1], verdict.worst_case[2]) == pytest.approx((0.1, 0.1))


def test_with_a_reference_what_counts_is_the_dice_against_it_and_gains_do_not_pay_for_losses() -> None:
    lost = result("one", {"a": 0.96}, float32={"a": 0.95}, engine={"a": 0.92})
    gained = result("two", {"a": 0.97}, float32={"a": 0.90}, engine={"a": 0.99})
    assert Verdict(LOOSE, (lost, gained)).mean_loss == pytest.approx(0.015)


def test_a_class_that_the_engine_no_longer_finds_is_wholly_lost() -> None:
    vanished = result("one", {"a": 0.0}, float32={"a": 0.8}, engine={"a": None})
    assert vanished.losses() == {"a": 0.95}


@pytest.mark.parametrize("reference", ["true", "empty", "shifted", "none"])
@pytest.mark.parametrize("wrong", ["nothing", "everything"])
def test_an_engine_that_finds_nothing_or_everything_fails_whatever_the_reference_is(
    bundle: Bundle, tmp_path: Path, reference: str, wrong: str
) -> None:
    scan, labels = ball_scan(0)
    write_scan(scan, 0, tmp_path / "scan.nii.gz")
    array = np.asarray(labels.array)
    array = {"empty": array * 0, "shifted": np.roll(array, 15, axis=1)}.get(reference, array)
    write_labels(Volume(array, labels.geometry), tmp_path / "reference.nii.gz")
    case = Case(
        ScanFiles("scan", (tmp_path / "scan.nii.gz",)), tmp_path / "reference.nii.gz" if reference != "none" else None
    )
    network = open_chain(bundle)

    class Wrong(type(network)):  # type: ignore[misc]
        def __call__(self, image: np.ndarray) -> np.ndarray:
            scores: np.ndarray = super().__call__(image)
            scores[:, 1] = 0 if wrong == "nothing" else 2
            return scores

        def predict_all(self, images: Any) -> Any:
            return map(self, images)

    network.__class__ = Wrong
    verdict = Gate(bundle, [case]).judge(network, LIMITS["int8"], wrong)
    assert not verdict.passed
    assert verdict.mean_loss > 0.5


@given(
    losses=st.lists(st.floats(0, 0.02), min_size=1, max_size=6),
    mean=st.floats(0, 0.02),
    worst=st.floats(0, 0.02),
)
def test_a_verdict_passes_exactly_if_both_limits_hold(losses: list[float], mean: float, worst: float) -> None:
    cases = tuple(result(str(number), {"a": 1.0 - loss}) for number, loss in enumerate(losses))
    verdict = Verdict(Limits(mean, worst), cases)
    lost = float(np.mean([1.0 - (1.0 - loss) for loss in losses]))
    if abs(lost - min(mean, worst)) > 1e-12:
        assert verdict.passed == (lost <= mean and lost <= worst)


def test_float32_against_itself_loses_nothing(bundle: Bundle) -> None:
    gate = Gate(bundle, validation_cases(bundle))
    verdict = gate.judge(open_chain(bundle), Limits(0.0, 0.0), "float32")
    assert verdict.passed
    assert verdict.mean_loss == 0
    assert {case.agreement for case in verdict.cases} == {1.0}
    assert [case.float32 for case in verdict.cases] == [case.engine for case in verdict.cases]
    assert all((case.float32 or {})["ball"] > 0.97 for case in verdict.cases)  # type: ignore[operator]
    assert set(gate.hashes) == {"case_0", "case_1"}


def test_a_network_whose_labels_lie_elsewhere_is_refused(bundle: Bundle) -> None:
    gate = Gate(bundle, validation_cases(bundle))
    shifted = open_chain(bundle)

    class Wrong(type(shifted)):  # type: ignore[misc]
        def __call__(self, image: np.ndarray) -> np.ndarray:
            return np.roll(super().__call__(image), 2, axis=-1)

        def predict_all(self, images: Any) -> Any:
            return map(self, images)

    shifted.__class__ = Wrong
    verdict = gate.judge(shifted, LIMITS["int8"], "shifted")
    assert not verdict.passed
    assert verdict.mean_loss > 0.1


def test_classes_that_no_case_shows_are_named_and_nothing_at_all_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    volume = ball_scan(0)[0]
    noise = np.random.default_rng(0).uniform(90, 110, volume.array.shape).astype(np.float32)
    write_scan(Volume(noise, volume.geometry), 0, tmp_path / "noise.nii.gz")
    gate = Gate(bundle, [Case(ScanFiles("noise", (tmp_path / "noise.nii.gz",)))])
    with pytest.raises(EngineError, match="found none of the bundle's classes in any validation scan"):
        gate.judge(open_chain(bundle), LOOSE, "float32")
    verdict = Verdict(LOOSE, (result("one", {"a": 1.0}),), unjudged=("b",))
    assert verdict.to_dict()["classes_in_no_case"] == ["b"]


def test_no_scans_are_refused_with_what_to_do(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"--validation .* or type --no-gate"):
        Gate(bundle, [])


def test_references_are_found_by_name_and_must_lie_on_the_scans_grid(bundle: Bundle, tmp_path: Path) -> None:
    scans = find_scans([write_ball_scans(tmp_path / "scans", range(2))], 1)
    references = tmp_path / "references"
    references.mkdir()
    write_labels(ball_scan(0)[1], references / "scan_0.nii.gz")
    with pytest.raises(EngineError, match=r"found no reference\(s\) for scan_1\.nii\.gz, expected one, scan_1\.nii"):
        with_references(scans, references)
    labels = ball_scan(1)[1]
    write_labels(Volume(labels.array[:-1].copy(), _shorter(labels)), references / "scan_1.nii.gz")
    cases = with_references(scans, references)
    assert [case.reference for case in cases] == [references / "scan_0.nii.gz", references / "scan_1.nii.gz"]
    with pytest.raises(MaskSamError, match="scan_1"):
        Gate(bundle, cases).judge(open_chain(bundle), LOOSE, "float32")
    assert with_references(scans, None) == [Case(scan) for scan in scans]
    assert with_references(scans[:1], references / "scan_0.nii.gz")[0].reference == references / "scan_0.nii.gz"


@pytest.mark.parametrize("name", ["1.2.840.2", "case[1]", "a.b_0000"])
def test_a_reference_belongs_to_exactly_its_scan_however_it_is_called(tmp_path: Path, name: str) -> None:
    references = tmp_path / "references"
    references.mkdir()
    stem = name.removesuffix("_0000")
    for other in (stem, "1.2.840.1", "case1", "a"):
        (references / f"{other}.nii.gz").touch()
    (references / f"{stem}.json").touch()
    scan = ScanFiles(f"{name}.nii.gz", (tmp_path / f"{name}.nii.gz",))
    assert with_references([scan], references)[0].reference == references / f"{stem}.nii.gz"
    (references / f"{stem}.nrrd").touch()
    with pytest.raises(EngineError, match="found 2 reference"):
        with_references([scan], references)


def _shorter(labels: Volume) -> Any:
    from dataclasses import replace

    x, y, z = labels.geometry.size_xyz
    return replace(labels.geometry, size_xyz=(x, y, z - 1))
