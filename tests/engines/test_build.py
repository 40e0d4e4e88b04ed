"""From a bundle to an engine in its store, with the gate in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from masksam_deploy import Segmenter
from masksam_deploy.base.errors import EngineError, GateError, OutputError, ScanError
from masksam_deploy.base.temporaries import _cleaned
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import choose_engine, open_engine
from masksam_deploy.engines.gate import Case, Limits, validation_cases
from masksam_deploy.engines.store import engines_of
from masksam_deploy.io.cases import find_scans
from masksam_deploy.runtimes.registry import BuildOptions, Precision, Target, open_builder
from masksam_deploy.runtimes.spec import EngineSpec
from tests.engines.small_bundle import PATCH, ball_scan


def request(
    bundle: Bundle,
    precision: Precision,
    calibration: Path | None = None,
    *,
    target: Target = "onnxruntime",
    overrides: dict[str, Precision] | None = None,
) -> BuildRequest:
    return BuildRequest(
        spec=EngineSpec.of(bundle, target, precision, overrides),
        options=BuildOptions(gpus=("sm89",) if target == "rtx" else ()),
        calibration=find_scans([calibration], bundle.channels) if calibration else (),
        validation=validation_cases(bundle),
        threads=1,
        command="masksam-deploy build-engine …",
    )


def dice(found: Any, wanted: Any) -> float:
    a, b = np.asarray(found) > 0, np.asarray(wanted) > 0
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_segments_like_the_float32_graphs(
    own_bundle: Bundle, calibration: Path, precision: Precision
) -> None:
    result = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, precision, calibration))
    assert result.attempts[-1].verdict.passed
    engine = choose_engine(own_bundle, precision=precision).engine
    assert engine is not None
    assert engine.record == result.engine.record
    scan, reference = ball_scan(5)
    with Segmenter(own_bundle, network=open_engine(own_bundle, engine), tta=False) as segmenter:
        labels, report = segmenter(scan)
    assert report.settings["precision"] == {"fp16": "float16", "int8": "int8"}[precision]
    assert report.settings["engine"] == engine.folder.name
    assert dice(labels.array, reference.array) > 0.97


def test_the_record_says_all_that_is_needed_to_make_the_engine_again(own_bundle: Bundle, calibration: Path) -> None:
    result = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", calibration))
    content = json.loads((result.engine.folder / "engine.json").read_text())
    assert content["bundle_sha256"] == own_bundle.sha256
    assert content["gate"]["judged"] is True
    assert content["gate"]["attempts"][0]["passed"] is True
    assert set(content["files"]) == {"encoder.onnx", "generator.onnx", "decoder.onnx"}
    calibrated = content["provenance"]["calibration"]
    assert set(calibrated["scans"]) == {"scan_10.nii.gz", "scan_11.nii.gz", "scan_12.nii.gz"}
    assert calibrated["calibrator"] == "percentile"
    graphs = content["provenance"]["graphs"]
    assert graphs["encoder"]["quantised"] == ["make_mixed", "make_narrowed"]
    assert graphs["generator"]["protected"]["make_probabilities"] == "box and threshold path"
    assert content["provenance"]["command"] == "masksam-deploy build-engine …"
    assert not list(result.engine.folder.parent.glob(".*"))  # nothing half-built is left


def test_ranges_of_an_fp16_engine_are_measured_on_the_validation_scans_if_no_others_are_named(
    own_bundle: Bundle,
) -> None:
    result = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp16"))
    graphs: Any = result.engine.record.provenance["graphs"]
    ranges = graphs["encoder"]["ranges"]
    assert ranges["mixed"] > 1


def test_the_same_request_gives_the_same_graphs(own_bundle: Bundle, calibration: Path) -> None:
    first = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", calibration))
    second = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", calibration))
    assert first.engine.folder == second.engine.folder
    assert first.engine.record.files == second.engine.record.files
    assert len(engines_of(own_bundle)) == 1


def test_a_layer_that_int8_breaks_makes_its_graph_fall_back_and_the_report_says_so(
    outlier_bundle: Callable[[float], Bundle], calibration: Path
) -> None:
    """One channel 3,000 times the others takes all eight bits: the layer that reads it sees nothing else."""
    broken = outlier_bundle(3000.0)
    result = build_engine(broken, open_builder("onnxruntime"), request(broken, "int8", calibration))
    first, last = result.attempts[0], result.attempts[-1]
    assert first.precisions == {"encoder": "int8", "generator": "int8", "decoder": "int8"}
    assert not first.verdict.passed
    assert last.precisions == {"encoder": "fp32", "generator": "int8", "decoder": "int8"}
    assert last.verdict.passed
    assert result.engine.record.asked["encoder"] == "int8"
    assert result.engine.record.precisions["encoder"] == "fp32"
    attempts: Any = result.engine.record.gate["attempts"]
    assert [attempt["passed"] for attempt in attempts] == [False, True]


def test_strict_fails_instead_of_falling_back_and_leaves_nothing(
    outlier_bundle: Callable[[float], Bundle], calibration: Path
) -> None:
    broken = outlier_bundle(3000.0)
    strict = replace(request(broken, "int8", calibration), strict=True)
    with pytest.raises(GateError, match=r"with encoder int8, .* is lost, .*leave --strict out"):
        build_engine(broken, open_builder("onnxruntime"), strict)
    assert list((broken.path / "engines").iterdir()) == []


def test_excluding_the_broken_layer_saves_the_graph(
    outlier_bundle: Callable[[float], Bundle], calibration: Path
) -> None:
    broken = outlier_bundle(3000.0)
    careful = replace(request(broken, "int8", calibration), excluded={"encoder": ["make_narrowed"]})
    result = build_engine(broken, open_builder("onnxruntime"), careful)
    assert set(result.engine.record.precisions.values()) == {"int8"}
    graphs: Any = result.engine.record.provenance["graphs"]
    assert graphs["encoder"]["excluded_from_int8"] == ["make_narrowed"]


def test_a_range_beyond_fp16_is_protected_so_that_the_gate_passes(outlier_bundle: Callable[[float], Bundle]) -> None:
    wide = outlier_bundle(100_000.0)
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    result = build_engine(wide, open_builder("rtx"), request(wide, "fp16", target="rtx"))
    assert set(result.engine.record.precisions.values()) == {"fp16"}
    graphs: Any = result.engine.record.provenance["graphs"]
    reason = graphs["encoder"]["protected"]["make_scaled"]
    assert "fp16 ends at 65504" in str(reason)


def test_where_nothing_passes_no_engine_is_built(own_bundle: Bundle, calibration: Path) -> None:
    impossible = replace(request(own_bundle, "int8", calibration), max_mean_loss=-1.0)
    with pytest.raises(GateError, match="no graph passes in less than float32"):
        build_engine(own_bundle, open_builder("onnxruntime"), impossible)
    assert engines_of(own_bundle) == []


def test_what_fell_back_is_judged_by_the_limits_of_what_is_left(own_bundle: Bundle, calibration: Path) -> None:
    """int8 may lose 0.005, but an engine that is fp16 in the end may not."""
    asked = replace(request(own_bundle, "int8", calibration, target="rtx"), options=BuildOptions(gpus=("sm89",)))
    assert asked.limits({"encoder": "int8", "decoder": "fp16"}).mean == 0.005
    assert asked.limits({"encoder": "fp16", "decoder": "fp16"}).mean == 0.001
    assert replace(asked, max_mean_loss=0.5).limits({"encoder": "fp16"}) == Limits(0.5, 0.003)


def test_float32_in_onnx_runtime_is_the_bundle_itself(own_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="that is the bundle as it is"):
        build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp32"))


def test_exclusions_of_layers_that_do_not_exist_are_refused(own_bundle: Bundle, calibration: Path) -> None:
    for excluded, message in (({"encodr": ["make_mixed"]}, "encodr"), ({"encoder": ["make_mixd"]}, "make_mixd")):
        careless = replace(request(own_bundle, "int8", calibration), excluded=excluded)
        with pytest.raises(EngineError, match=message):
            build_engine(own_bundle, open_builder("onnxruntime"), careless)


def test_what_a_killed_build_left_where_locks_do_not_work_is_swept_after_a_day(own_bundle: Bundle) -> None:
    store = own_bundle.path / "engines"
    old, young = 2 * 86400, 600
    ages = {
        ".building-unlocked-00112233aabbccdd": old,
        ".building-0011aabbccdd": old,
        ".building-0011aabbccdd.replaced": old,
        ".building-unlocked-aa112233aabbccdd": young,
        ".building-of-mine": old,
    }
    for name, age in ages.items():
        (store / name).mkdir(parents=True)
        os.utime(store / name, (time.time() - age,) * 2)
    build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp16"))
    left = {path.name for path in store.glob(".building-*")}
    assert left == {".building-of-mine", ".building-unlocked-aa112233aabbccdd"}


_BUILD_AND_DIE = """
    import os, pathlib, signal, sys
    from masksam_deploy.engines import build
    from masksam_deploy.base.temporaries import Temporary
    if sys.argv[2] == "building":
        with build._staging(pathlib.Path(sys.argv[1])) as staging:
            (staging / "typed").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    engine, = pathlib.Path(sys.argv[1]).iterdir()  # as store_engine does: it makes way for a new one
    staging = Temporary(engine.parent, ".building-")
    staging.create_folder()
    engine.rename(f"{staging.path}.replaced")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["building", "replacing"])
def test_what_a_killed_build_left_is_swept_by_the_next_one(own_bundle: Bundle, moment: str) -> None:
    pytest.importorskip("fcntl", reason="locks that end with their process exist on Unix only")
    store = own_bundle.path / "engines"
    before = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp16")).engine.folder
    script = textwrap.dedent(_BUILD_AND_DIE)
    died = subprocess.run([sys.executable, "-c", script, str(store), moment], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    left = list(store.glob(".building-*"))
    assert len(left) == (1 if moment == "building" else 2)
    assert before.exists() is (moment == "building")
    for path in left:
        os.utime(path, (time.time() - 120,) * 2)
    _cleaned.clear()  # as in another process
    other = build_engine(
        own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp16", overrides={"decoder": "fp32"})
    )
    assert {path.name for path in store.iterdir()} == {before.name, other.engine.folder.name}
    assert {engine.folder for engine in engines_of(own_bundle)} == {before, other.engine.folder}


def test_judging_on_the_scans_that_were_calibrated_on_is_recorded(own_bundle: Bundle, calibration: Path) -> None:
    scans = find_scans([calibration], 1)
    again = replace(
        request(own_bundle, "int8", calibration), validation=[Case(scan) for scan in scans], max_mean_loss=1.0
    )
    gate = build_engine(own_bundle, open_builder("onnxruntime"), again).engine.record.gate
    assert gate["judged_on_calibration_scans"] is True
    other = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", calibration))
    assert other.engine.record.gate["judged_on_calibration_scans"] is False


def test_without_the_gate_the_record_says_that_nothing_was_judged(own_bundle: Bundle) -> None:
    blind = replace(request(own_bundle, "fp16"), validation=None)
    result = build_engine(own_bundle, open_builder("onnxruntime"), blind)
    assert result.attempts == ()
    assert result.engine.record.gate == {"judged": False, "why": "switched off with --no-gate"}


def test_int8_without_calibration_scans_is_refused(own_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="found no calibration scans, expected some for int8"):
        build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8"))


def test_each_graph_can_have_its_own_precision(own_bundle: Bundle, calibration: Path) -> None:
    mixed = request(own_bundle, "int8", calibration, overrides={"decoder": "fp16", "generator": "fp32"})
    result = build_engine(own_bundle, open_builder("onnxruntime"), mixed)
    assert result.engine.record.precisions == {"encoder": "int8", "generator": "fp32", "decoder": "fp16"}
    types = {tensor.data_type for tensor in onnx.load(result.engine.path("decoder")).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    with pytest.raises(EngineError, match="found graph neck, expected one of encoder, generator, decoder"):
        request(own_bundle, "fp16", overrides={"neck": "fp32"})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_engines_for_rtx_gpus_are_built_and_judged_without_one(
    own_bundle: Bundle, calibration: Path, precision: Precision
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    wanted = request(own_bundle, precision, calibration, target="rtx")
    result = build_engine(own_bundle, open_builder("rtx"), wanted)
    record = result.engine.record
    assert set(record.precisions.values()) == {precision}
    assert record.machine["gpus"] == "sm89"
    assert set(record.graphs.values()) == {"encoder.rtx", "generator.rtx", "decoder.rtx"}
    if precision == "int8":  # half precision around int8, on a GPU
        built: Any = record.provenance["built"]
        assert set(built["encoder"]["precision_in_graph"]) >= {"int8", "fp16"}


def test_a_wrong_gpu_is_refused_before_any_calibration(own_bundle: Bundle, calibration: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    wrong = replace(request(own_bundle, "int8", calibration, target="rtx"), options=BuildOptions(gpus=("sm87",)))
    told: list[str] = []
    with pytest.raises(EngineError, match="sm87"):
        build_engine(own_bundle, open_builder("rtx"), wrong, lambda what, done, total: told.append(what))
    assert told == []


def test_a_file_in_the_stores_place_is_an_error(own_bundle: Bundle) -> None:
    (own_bundle.path / "engines").write_text("a file where the store should be")
    with pytest.raises(OutputError, match="engines"):
        build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "fp16"))


def test_a_disk_without_room_is_an_error_and_leaves_nothing(own_bundle: Bundle, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits exist on Unix only")
    command = [sys.executable, "-m", "masksam_deploy", "build-engine", str(own_bundle.path), "--fp16"]
    features = 4 * 32 * prod(PATCH)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        # Enough for the features in shared memory, which the limit counts as a file; too little for a file of them.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (features + 64, features + 64)),
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "expected a writable place with enough room" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((own_bundle.path / "engines").glob("*")) == []


def test_an_engine_gives_the_same_bytes_every_time(own_bundle: Bundle, calibration: Path) -> None:
    built = build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", calibration))
    scan = ball_scan(5)[0]
    found = []
    for _ in range(2):
        with Segmenter(own_bundle, network=open_engine(own_bundle, built.engine)) as segmenter:
            found += [np.asarray(segmenter(scan).labels.array).tobytes() for _ in range(2)]
    assert len(set(found)) == 1


def test_an_unreadable_calibration_scan_stops_the_build(own_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    with pytest.raises(ScanError, match="broken"):
        build_engine(own_bundle, open_builder("onnxruntime"), request(own_bundle, "int8", tmp_path / "scans"))
    assert engines_of(own_bundle) == []


def test_progress_names_what_is_being_done(own_bundle: Bundle, calibration: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build_engine(
        own_bundle,
        open_builder("onnxruntime"),
        request(own_bundle, "int8", calibration),
        lambda *step: told.append(step),
    )
    kinds: Sequence[str] = ("running the float32 encoder", "calibrating decoder", "gate: float32 on case_0", "building")
    for kind in kinds:
        assert any(what.startswith(kind) for what, _, _ in told), kind
    assert all(done <= total for _, done, total in told if total)
