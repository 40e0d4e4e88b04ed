"""Ranking layers by what int8 does to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from masksam_deploy.base.errors import EngineError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.calibration import calibration_windows
from masksam_deploy.engines.exclusions import Exclusions, default_path, read_exclusions, write_exclusions
from masksam_deploy.engines.sensitivity import measure_sensitivity
from masksam_deploy.io.cases import find_scans


def test_the_layer_that_int8_breaks_is_ranked_first_and_left_out(
    outlier_bundle: Callable[[float], Bundle], calibration: Path
) -> None:
    broken = outlier_bundle(3000.0)
    windows = calibration_windows(broken, find_scans([calibration], 1), most=9)
    told: list[str] = []
    found = measure_sensitivity(broken, windows, threads=1, progress=lambda what, done, total: told.append(what))
    worst = found.ranking[0]
    assert (worst.graph, worst.node) == ("encoder", "make_narrowed")
    assert worst.score_error > 10 * found.ranking[1].score_error
    assert {(loss.graph, loss.node) for loss in found.ranking} == {
        ("encoder", "make_mixed"),
        ("encoder", "make_narrowed"),
        ("generator", "make_widened"),
        ("decoder", "make_projected"),
    }
    assert found.excluded == {"encoder": ["make_narrowed"]}
    assert found.dice_loss <= 0.005 < found.dice_loss_of_all
    assert any("one layer of decoder" in what for what in told)


def test_where_int8_costs_little_nothing_is_left_out(bundle: Bundle, calibration: Path) -> None:
    windows = calibration_windows(bundle, find_scans([calibration], 1), most=9)
    found = measure_sensitivity(bundle, windows, allowed=0.05, threads=1)
    assert found.excluded == {}
    assert found.dice_loss == found.dice_loss_of_all


def test_a_list_is_read_back_only_for_its_own_bundle(
    own_bundle: Bundle, outlier_bundle: Callable[[float], Bundle]
) -> None:
    assert read_exclusions(own_bundle, None) == {}
    content = Exclusions(bundle_sha256=own_bundle.sha256, excluded={"encoder": ["make_mixed"]})
    write_exclusions(content, default_path(own_bundle))
    assert read_exclusions(own_bundle, None) == {"encoder": ["make_mixed"]}
    with pytest.raises(EngineError, match="found the list of another bundle"):
        read_exclusions(outlier_bundle(2.0), default_path(own_bundle))


@pytest.mark.parametrize("text", ["", "{}", '{"bundle_sha256": "x", "excluded": {}}', "[" * 100_000])
def test_a_damaged_list_is_refused(own_bundle: Bundle, tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(EngineError, match=r"list\.json"):
        read_exclusions(own_bundle, path)
    with pytest.raises(EngineError, match="cannot be read"):
        read_exclusions(own_bundle, tmp_path / "none.json")
