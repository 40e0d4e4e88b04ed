"""Real runs on a small network. No test looks at how long anything took."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from masksam_deploy.base.errors import BackendError, BenchError, EngineError, MissingDependencyError
from masksam_deploy.bench import measure
from masksam_deploy.bench.benchmark import Settings, run_bench
from masksam_deploy.bench.check import WINDOW_LIMITS, Expected, Scores, check_windows
from masksam_deploy.bench.contenders import (
    Contender,
    baseline_contender,
    bundle_contender,
    open_fresh,
    parse_run,
    valid_contenders,
)
from masksam_deploy.bench.inputs import bench_scan, synthetic_scan, windows_of
from masksam_deploy.bench.measure import _stages
from masksam_deploy.bench.results import BenchResult, Check, Run, read_result
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Decision, Graph
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.gate import LIMITS
from masksam_deploy.engines.store import RECORD_NAME
from masksam_deploy.io.write_scan import write_scan
from masksam_deploy.runtimes import GraphChain, Session, open_chain
from masksam_deploy.runtimes.base import Tensors
from masksam_deploy.runtimes.registry import open_builder
from masksam_deploy.runtimes.spec import EngineSpec, Precision
from masksam_deploy.scan_path.segmenter import Segmenter
from tests.bench.example_result import run as example
from tests.engines.small_bundle import WIDTH

QUICK = Settings(repeats=3, scan_repeats=2, windows=2, threads=1, cold=False, roofline=False)
STAGES = ["read", "preprocess", "encoder", "generator", "decoder", "accumulate", "resample_back", "measure", "write"]


class Altered:
    """A session whose class scores are changed on their way out."""

    def __init__(self, session: Session, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self._session, self._change = session, change
        self.device = session.device
        self.provider = session.provider
        self.close = session.close

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        outputs = self._session.run(feeds)
        if "semseg" in outputs:
            outputs["semseg"] = self._change(outputs["semseg"])
        return outputs


def altered(bundle: Bundle, name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Contender:
    def opened() -> GraphChain:
        return open_chain(bundle, threads=1).wrapped(lambda _, session: Altered(session, change))

    return Contender(name, "int8", "cpu", opened)


def judged(bundle: Bundle, found: Scores, wanted: Scores, decision: Decision) -> Check:
    """What is said of a network that gives these scores for every window."""
    window = np.zeros((1, 1, *bundle.patch_size), np.float32)
    network = altered(bundle, "made up", lambda _: found).open()
    return check_windows(network, [window], Expected([wanted]), "fp32", decision)


def bench(bundle: Bundle, *contenders: Contender, settings: Settings = QUICK) -> BenchResult:
    with bench_scan(bundle) as scan:
        return run_bench(bundle, contenders, scan, settings)


def float32(bundle: Bundle) -> Contender:
    return bundle_contender(bundle, "onnxruntime", "fp32", threads=1)


def test_every_stage_and_graph_of_a_right_contender_is_timed(bundle: Bundle, tmp_path: Path) -> None:
    result = bench(bundle, float32(bundle))
    run = result.runs[0]
    assert run.check == Check(passed=True, decided_agreement=1.0, window_dice=1.0, score_error=0.0, scan=run.check.scan)
    assert run.check.scan is not None and run.check.scan["passed"] is True
    assert run.windows is not None and run.scan is not None
    assert list(run.windows.graphs) == ["encoder", "generator", "decoder"]
    assert all(len(timing.samples) == 3 for timing in (run.windows.whole, *run.windows.graphs.values()))
    assert list(run.scan.stages) == [*STAGES, "other"]
    for sample, whole in enumerate(run.scan.whole.samples):
        parts = sum(timing.samples[sample] for timing in run.scan.stages.values())
        assert parts == pytest.approx(whole, abs=0.01)  # stages of the report are rounded to the millisecond
    path = tmp_path / "result.json"
    path.write_text(result.model_dump_json())
    assert read_result(path) == result


def test_a_contender_that_disagrees_gets_no_time_and_the_others_do(bundle: Bundle) -> None:
    rolled = altered(bundle, "rolled", lambda scores: np.roll(scores, 1, axis=1))
    result = bench(bundle, rolled, float32(bundle))
    wrong, right = result.runs
    assert (wrong.windows, wrong.scan, wrong.cold) == (None, None, None)
    assert wrong.check.problem is not None and "have the class of the float32 graphs" in wrong.check.problem
    assert right.windows is not None and right.scan is not None


def test_a_shift_that_few_voxels_show_is_found_by_dice(bundle: Bundle) -> None:
    """One voxel along x: most voxels keep their class."""
    shifted = altered(bundle, "shifted", lambda scores: np.roll(scores, 1, axis=-1))
    check = bench(bundle, shifted).runs[0].check
    assert not check.passed and check.problem is not None


def test_overlapping_regions_are_judged_each_by_itself(bundle: Bundle) -> None:
    """Two regions with almost the same scores: which is higher differs, and the label maps do not."""
    outer = np.random.default_rng(0).uniform(-3, 3, (1, 1, *bundle.patch_size)).astype(np.float32)
    wanted = np.concatenate([outer, outer + np.float32(1e-3)], axis=1)
    found = np.where(np.abs(wanted) < 5e-3, wanted, wanted[:, ::-1])
    check = judged(bundle, found, wanted, "regions")
    assert (check.passed, check.decided_agreement, check.window_dice) == (True, 1.0, 1.0)
    assert not judged(bundle, found, wanted, "argmax").passed


def test_a_region_that_a_later_one_hides_is_judged_by_dice(bundle: Bundle) -> None:
    wanted = np.ones((1, 2, *bundle.patch_size), np.float32)
    found = wanted.copy()
    found[:, 0, :2] = -1
    check = judged(bundle, found, wanted, "regions")
    assert check.decided_agreement == 1.0
    assert not check.passed
    assert check.problem is not None and "mean Dice" in check.problem


def test_an_untrained_networks_scores_are_judged_in_dices_place(bundle: Bundle) -> None:
    untrained = replace(QUICK, trained=False, scan_repeats=0)
    near = altered(bundle, "near", lambda scores: scores * np.float32(1 + 1e-5))
    far = altered(bundle, "far", lambda scores: scores * np.float32(1.5))
    shifted = altered(bundle, "shifted", lambda scores: np.roll(scores, 1, axis=-1))
    for contender, passes in [(near, True), (far, False), (shifted, False)]:
        check = bench(bundle, contender, settings=untrained).runs[0].check
        assert (check.passed, check.window_dice) == (passes, None)
    assert check.problem is not None


def test_windows_that_agree_do_not_excuse_a_scan_that_does_not(bundle: Bundle) -> None:
    calls = 0

    def after_the_windows(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        return scores if calls <= QUICK.windows else np.roll(scores, 1, axis=-1)

    check = bench(bundle, altered(bundle, "late", after_the_windows)).runs[0].check
    assert check.decided_agreement == 1.0
    assert not check.passed
    assert check.problem is not None and "on the scan, Dice with the reference label map falls by" in check.problem


def test_a_contender_that_fails_is_one_that_disagrees(bundle: Bundle) -> None:
    def failing(_: NDArray[np.float32]) -> NDArray[np.float32]:
        raise BackendError("found no memory, expected some")

    broken = altered(bundle, "broken", failing)
    infinite = altered(bundle, "infinite", lambda scores: scores * np.inf)
    broken_run, infinite_run = bench(bundle, broken, infinite).runs
    assert broken_run.check.problem == "it failed: found no memory, expected some"
    assert broken_run.windows is None and infinite_run.windows is None


def test_an_engine_whose_graph_was_altered_gets_no_time(bundle: Bundle, tmp_path: Path) -> None:
    """Altered before it was stored, so that its hashes are right: only its label maps tell."""
    own = Bundle.load(shutil.copytree(bundle.path, tmp_path / "balls.masksam"))
    spec = EngineSpec.of(own, "onnxruntime", "fp16")
    builder = open_builder("onnxruntime")
    original = builder.build
    altered: list[str] = []

    def altering(graph: Path, output: Path, *rest: Any) -> Any:
        model = onnx.load(str(graph))
        for weight in model.graph.initializer:
            if weight.name.startswith("class_weight"):
                altered.append(weight.name)
                data = onnx.numpy_helper.to_array(weight)[:, ::-1].copy()
                weight.CopyFrom(onnx.numpy_helper.from_array(data, weight.name))
        onnx.save(model, str(graph))
        return original(graph, output, *rest)

    builder.build = altering  # type: ignore[method-assign, assignment]
    build_engine(own, builder, BuildRequest(spec, validation=None, threads=1))
    assert len(altered) == 1
    result = bench(own, *valid_contenders(own, threads=1))
    assert [(run.name, run.check.passed) for run in result.runs] == [
        ("onnxruntime fp32", True),
        ("onnxruntime fp16", False),
    ]
    assert result.runs[1].engine is not None and result.runs[1].engine.startswith("onnxruntime-fp16-")
    assert result.runs[1].windows is None


@pytest.mark.parametrize(
    ("built", "name", "precision"),
    [
        ({"decoder": "fp16"}, "onnxruntime fp32, decoder fp16", "fp16"),
        ({"generator": "int8", "decoder": "int8"}, "onnxruntime int8, encoder fp32", "int8"),
        ({"encoder": "int8", "decoder": "fp16"}, "onnxruntime int8, generator fp32, decoder fp16", "int8"),
    ],
)
def test_an_engine_is_called_and_judged_by_what_was_built_graph_by_graph(
    bundle: Bundle, tmp_path: Path, built: dict[str, Precision], name: str, precision: Precision
) -> None:
    own = Bundle.load(shutil.copytree(bundle.path, tmp_path / "balls.masksam"))
    spec = EngineSpec.of(own, "onnxruntime", "fp16")
    engine = build_engine(own, open_builder("onnxruntime"), BuildRequest(spec, validation=None, threads=1)).engine
    precisions = {graph.name: "fp32" for graph in own.manifest.graphs} | built
    record = engine.record.model_copy(update={"precisions": precisions})
    (engine.folder / RECORD_NAME).write_text(record.model_dump_json())
    _, contender = valid_contenders(own, threads=1)
    assert (contender.name, contender.precision) == (name, precision)
    assert contender.fresh == {"kind": "engine", "folder": engine.folder.name}
    network = open_fresh(own, contender.fresh, threads=1)
    assert network.precisions == precisions
    network.close()


@pytest.mark.parametrize(("in_turns", "most"), [(True, 2), (False, 1)])
def test_contenders_are_in_memory_together_only_where_they_take_turns(
    bundle: Bundle, in_turns: bool, most: int
) -> None:
    loaded: set[str] = set()
    found: list[int] = []

    class Counted(Altered):
        def __init__(self, name: str, session: Session) -> None:
            super().__init__(session, lambda scores: scores)
            self._closed, self._name = session.close, name
            self.close = self._close
            loaded.add(name)
            found.append(len(loaded))

        def _close(self) -> None:
            self._closed()
            loaded.discard(self._name)

    def counted(name: str) -> Contender:
        def opened() -> GraphChain:
            return open_chain(bundle, threads=1).wrapped(lambda _, session: Counted(name, session))

        return Contender(name, "fp32", "cpu", opened)

    result = bench(bundle, counted("one"), counted("other"), settings=replace(QUICK, in_turns=in_turns))
    assert max(found) == most
    assert all(run.windows and run.scan for run in result.runs)
    assert any("one after the other" in warning for warning in result.warnings) is not in_turns


def test_windows_alone_are_checked_and_timed_without_a_scan(bundle: Bundle) -> None:
    run = bench(bundle, float32(bundle), settings=replace(QUICK, scan_repeats=0)).runs[0]
    assert run.windows is not None
    assert run.scan is None and run.check.scan is None


def test_a_fresh_process_and_the_roofline_are_measured(bundle: Bundle) -> None:
    result = bench(bundle, float32(bundle), settings=replace(QUICK, cold=True, roofline=True))
    cold = result.runs[0].cold
    assert cold is not None
    assert list(cold.stages) == ["start_python", "import", "verify_bundle", "load_network", "first_window"]
    assert cold.peak_rss_bytes is not None and cold.scan_peak_rss_bytes is not None
    assert 2**24 < cold.peak_rss_bytes <= cold.scan_peak_rss_bytes
    assert result.roofline is not None
    assert list(result.roofline.graphs) == ["encoder", "generator", "decoder"]
    # Two 1x1x1 convolutions over 4 x 16 x 16 voxels: to all channels, then to one.
    assert result.roofline.graphs["generator"].flops == 2 * 4 * 16 * 16 * (WIDTH * WIDTH + WIDTH)


def test_a_fresh_process_that_fails_is_a_warning_and_the_other_times_are_kept(bundle: Bundle) -> None:
    missing = {"kind": "engine", "folder": "onnxruntime-int8-gone"}
    contender = replace(float32(bundle), fresh=missing)
    found = bench(bundle, contender, settings=replace(QUICK, cold=True, scan_repeats=0))
    assert found.runs[0].cold is None and found.runs[0].windows is not None
    assert any("found no engine onnxruntime-int8-gone" in warning for warning in found.warnings)


def test_a_network_that_runs_as_a_whole_is_a_stage_of_its_own() -> None:
    reported = {"preprocess": 1.0, "network": 5.0, "accumulate": 0.5}
    whole = _stages({"read": 0.1, "write": 0.1}, reported, {}, 7.0)
    assert list(whole) == ["read", "preprocess", "network", "accumulate", "write", "other"]
    assert whole["other"] == pytest.approx(0.3)
    parts = _stages({"read": 0.1, "write": 0.1}, reported, {"encoder": 4.0, "decoder": 0.8}, 7.0)
    assert "network" not in parts and parts["encoder"] == 4.0


def test_the_scan_path_gets_the_threads_that_were_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    segmenter = Segmenter

    def noting(*arguments: Any, **named: Any) -> Any:
        given.append(named["threads"])
        return segmenter(*arguments, **named)

    monkeypatch.setattr(measure, "Segmenter", noting)
    bench(bundle, float32(bundle), settings=replace(QUICK, threads=2))
    assert set(given) == {2}


def test_label_maps_of_an_untrained_network_are_not_judged(bundle: Bundle) -> None:
    untrained = replace(QUICK, trained=False)
    found = bench(bundle, float32(bundle), settings=untrained).runs[0]
    assert found.scan is not None and found.check.scan is None


def test_a_bundle_without_validation_scans_is_measured_on_a_synthetic_one(bare_bundle: Bundle) -> None:
    result = bench(bare_bundle, float32(bare_bundle))
    assert result.input["origin"] == "synthetic"
    assert result.runs[0].check.passed
    assert bench(bare_bundle, float32(bare_bundle)).input["sha256"] == result.input["sha256"]


def test_a_given_scan_wins_over_the_bundles_own(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "mine.nii.gz"
    write_scan(synthetic_scan(bundle), 0, path)
    with bench_scan(bundle, (path,)) as scan:
        assert (scan.name, scan.origin, scan.reference) == ("mine.nii.gz", "given", None)


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_as_many_windows_as_wanted_or_there_are(bundle: Bundle, count: int) -> None:
    with bench_scan(bundle) as scan:
        windows = windows_of(bundle, scan, count, 0.5)
        everything = windows_of(bundle, scan, 10_000, 0.5)
    assert len(windows) == min(count, len(everything))
    assert all(window.shape == (1, 1, *bundle.patch_size) for window in windows)
    assert len({window.tobytes() for window in windows}) == len(windows)


def test_contenders_that_cannot_be_are_refused_before_anything_runs(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="found no onnxruntime int8 engine"):
        bundle_contender(bundle, "onnxruntime", "int8")
    with pytest.raises(BenchError, match="found onnxruntime fp32 twice"):
        bench(bundle, float32(bundle), float32(bundle))
    with pytest.raises(BenchError, match="found nothing to measure"):
        bench(bundle)


@pytest.mark.parametrize("text", ["int8", "onnxruntime", "onnxruntime:int4", "tvm:fp32", ":", "onnxruntime:fp32:x"])
def test_a_run_is_a_backend_and_a_precision(text: str) -> None:
    assert parse_run("rtx:fp16") == ("rtx", "fp16")
    with pytest.raises(BenchError, match="expected BACKEND:PRECISION"):
        parse_run(text)


def test_a_smaller_precision_is_never_judged_more_strictly() -> None:
    order = ["fp32", "fp16", "bf16", "int8"]
    assert set(WINDOW_LIMITS) == set(LIMITS) == set(order)
    limits = [WINDOW_LIMITS[name] for name in ("fp32", "fp16", "bf16", "int8")]
    for stricter, looser in pairwise(limits):
        assert stricter.tie <= looser.tie
        assert stricter.agreement >= looser.agreement and stricter.dice >= looser.dice


def test_a_result_with_times_of_a_contender_that_disagrees_is_no_result(bundle: Bundle) -> None:
    run = bench(bundle, float32(bundle), settings=replace(QUICK, scan_repeats=0)).runs[0]
    content = run.model_dump() | {"check": {"passed": False, "problem": "wrong"}}
    with pytest.raises(ValueError, match="must not have times"):
        Run.model_validate(content)


def test_a_window_that_took_no_time_is_no_result() -> None:
    content = example("a", [1.0]).model_dump()
    for part in ("windows", "scan"):
        nothing = content | {part: content[part] | {"whole": {"samples": (0.0,)}}}
        with pytest.raises(ValueError, match="took no time"):
            Run.model_validate(nothing)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 2}', "not json"])
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(BenchError, match="measure again with bench --json") as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BenchError, match="cannot be read"):
        read_result(tmp_path / "missing.json")
    with pytest.raises(BenchError, match="found no file of at most"):
        read_result(Path(os.devnull))


def test_stages_are_wrapped_without_changing_what_the_network_is(bundle: Bundle) -> None:
    seen: list[str] = []

    def note(graph: Graph, session: Session) -> Session:
        seen.append(graph.name)
        return session

    with open_chain(bundle, threads=1) as chain:
        wrapped = chain.wrapped(note)
        assert seen == ["encoder", "generator", "decoder"]
        assert (wrapped.providers, wrapped.precisions, wrapped.engine) == (
            chain.providers,
            chain.precisions,
            chain.engine,
        )


def test_a_baseline_without_the_torch_side_says_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("masksam_deploy.bench.contenders.entry_points", lambda **_: ())
    with pytest.raises(MissingDependencyError, match=r"measuring PyTorch needs .*masksam-deploy\[export\]"):
        baseline_contender(tmp_path / "checkpoint.pth", bundle, "eager")
