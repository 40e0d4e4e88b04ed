from __future__ import annotations

import os
import re
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.bundle import directory as bundle_module
from masksam_deploy.bundle.directory import Bundle, staging_directory, write_bundle
from masksam_deploy.bundle.manifest import FileDigest
from masksam_deploy.bundle.rules import MANIFEST_LIMIT, MANIFEST_NAME
from tests.example_bundle import GRAPH_BYTES, make_bundle


@pytest.fixture
def heart(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "heart.masksam")


def refusal(path: Path, *, verify: bool = True) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.load(path, verify=verify)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 500, message
    assert message.isprintable()
    assert "found" in message and "expected" in message and "; " in message, message
    return message


def names_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_written_bundle_loads_with_sizes_derived_from_its_ports(heart: Bundle) -> None:
    loaded = Bundle.load(str(heart.path))
    assert loaded == heart
    assert (loaded.patch_size, loaded.channels, loaded.classes) == ((4, 16, 32), 2, 3)
    assert set(loaded.manifest.files) == set(GRAPH_BYTES)
    with pytest.raises(FrozenInstanceError):
        loaded.path = Path()  # type: ignore[misc]


def test_an_unknown_graph_is_refused_by_name(heart: Bundle) -> None:
    with pytest.raises(BundleError, match=r"found graphs \['image_encoder', .*expected one named 'decoder'"):
        heart.graph_path("decoder")


def test_a_graph_that_no_runtime_must_be_given_has_no_path(heart: Bundle) -> None:
    with pytest.raises(BundleError, match=r"image_encoder.onnx: found no ONNX graph"):
        heart.graph_path("image_encoder")


def test_something_else_under_the_bundles_name_is_said_to_be_that(tmp_path: Path) -> None:
    loop = tmp_path / "loop.masksam"
    loop.symlink_to(loop)
    assert "found a symbolic link that leads nowhere, expected a bundle directory" in refusal(loop)
    pipe = tmp_path / "pipe.masksam"
    os.mkfifo(pipe)
    assert "found a named pipe, expected a bundle directory" in refusal(pipe)
    assert "found a device, expected a bundle directory" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["a\0b", "half\ud800", "loop/inside"])
def test_a_name_that_no_system_takes_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refusal(tmp_path / name)


def test_an_overlong_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        Bundle.load(tmp_path / ("a" * 5000))


def test_the_manifest_hash_changes_with_any_field(heart: Bundle) -> None:
    manifest = heart.path / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"heart"', '"heart2"'))
    assert Bundle.load(heart.path).sha256 != heart.sha256


def test_one_changed_byte_is_refused_and_named(heart: Bundle) -> None:
    path = heart.path / "image_encoder.onnx"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    message = refusal(heart.path)
    assert "'image_encoder.onnx': found SHA-256" in message and "changed after export" in message
    assert Bundle.load(heart.path, verify=False).manifest == heart.manifest


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_refused_even_without_hashing(heart: Bundle, verify: bool) -> None:
    (heart.path / "image_encoder.onnx").write_bytes(b"short")
    assert "found 5 bytes, expected 180" in refusal(heart.path, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_refused(heart: Bundle, verify: bool) -> None:
    (heart.path / "mask_decoder.onnx").unlink()
    assert "'mask_decoder.onnx': found no such file" in refusal(heart.path, verify=verify)


def test_a_missing_manifest_is_refused(heart: Bundle) -> None:
    (heart.path / MANIFEST_NAME).unlink()
    assert "found no manifest.json" in refusal(heart.path)


def test_a_missing_bundle_is_refused(tmp_path: Path) -> None:
    assert "found nothing there" in refusal(tmp_path / "none.masksam")


def test_an_unlisted_file_is_refused_wherever_it_lies(heart: Bundle) -> None:
    (heart.path / "prompts" / "weights.bin").write_bytes(b"x")
    assert "'prompts/weights.bin': found a file that manifest.json does not list" in refusal(heart.path)


def test_engines_are_not_the_bundles_business_but_only_at_the_top(heart: Bundle) -> None:
    engines = heart.path / "engines" / "sm90"
    engines.mkdir(parents=True)
    (engines / "plan.bin").write_bytes(b"x")
    assert Bundle.load(heart.path) == heart
    nested = heart.path / "prompts" / "engines"
    nested.mkdir()
    (nested / "plan.bin").write_bytes(b"x")
    assert "'prompts/engines/plan.bin'" in refusal(heart.path)


@pytest.mark.parametrize("name", ["mask_decoder.onnx", MANIFEST_NAME, "prompts", "engines", "extra"])
def test_a_symbolic_link_is_refused_even_if_it_leads_to_the_right_bytes(heart: Bundle, name: str) -> None:
    path = heart.path / name
    elsewhere = heart.path.parent / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    assert f"'{name}': found a symbolic link" in refusal(heart.path, verify=False)


def test_a_named_pipe_is_refused_without_waiting_for_it(heart: Bundle) -> None:
    (heart.path / "mask_decoder.onnx").unlink()
    os.mkfifo(heart.path / "mask_decoder.onnx")
    assert "found something that is no file" in refusal(heart.path)


def test_a_huge_manifest_is_refused_before_it_is_parsed(heart: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with (heart.path / MANIFEST_NAME).open("r+b") as file:
        file.truncate(MANIFEST_LIMIT + 1)
    monkeypatch.setattr(bundle_module, "parse_manifest", lambda *_: pytest.fail("it was parsed"))
    assert f"more than {MANIFEST_LIMIT} bytes" in refusal(heart.path)


def test_loading_a_packed_bundle_says_how_to_unpack_it(tmp_path: Path) -> None:
    path = tmp_path / "my heart.masksam.zip"
    path.write_bytes(b"PK\x03\x04rest")
    assert f"masksam-deploy unpack '{path}'" in refusal(path)
    path.write_bytes(b"something else")
    assert "unpack" not in refusal(path)


def test_an_unreadable_file_is_refused_with_its_reason(heart: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> FileDigest:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle_module, "file_digest", denied)
    assert "Permission denied" in refusal(heart.path)


def test_writing_refuses_a_manifest_that_contradicts_itself_and_leaves_nothing(tmp_path: Path, heart: Bundle) -> None:
    target = tmp_path / "out" / "new.masksam"
    target.parent.mkdir()
    no_graph = "found file 'image_encoder.onnx', expected one"
    with pytest.raises(BundleError, match=re.escape(no_graph)), staging_directory(target) as staging:
        (staging / "unrelated.onnx").write_bytes(b"x")
        write_bundle(staging, heart.manifest, target)
    assert names_under(target.parent) == set()


def test_writing_refuses_values_that_json_cannot_hold(tmp_path: Path, heart: Bundle) -> None:
    provenance = heart.manifest.provenance.model_copy(update={"parity": {"semseg": float("nan")}})
    manifest = heart.manifest.model_copy(update={"provenance": provenance})
    target = tmp_path / "new.masksam"
    with pytest.raises(BundleError, match="NaN"), staging_directory(target) as staging:
        for name, data in GRAPH_BYTES.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(data)
        write_bundle(staging, manifest, target)
    assert not target.exists()


def test_an_existing_bundle_is_replaced_only_by_force(tmp_path: Path, heart: Bundle) -> None:
    before = names_under(tmp_path)
    with pytest.raises(OutputError, match="--force"):
        make_bundle(heart.path)
    assert names_under(tmp_path) == before
    with staging_directory(heart.path) as staging:
        for name in GRAPH_BYTES:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(b"new")
        write_bundle(staging, heart.manifest, heart.path, force=True)
    assert names_under(tmp_path) == before
    assert Bundle.load(heart.path).manifest.files["mask_decoder.onnx"].bytes == 3


@pytest.mark.parametrize("kind", ["file", "folder", "folder with a manifest", "bundle and more", "link"])
def test_force_replaces_bundles_and_nothing_else(tmp_path: Path, heart: Bundle, kind: str) -> None:
    target = tmp_path / "precious"
    if kind == "file":
        target.write_text("thesis")
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("thesis")
    elif kind == "folder with a manifest":  # as web applications have
        target.mkdir()
        (target / "manifest.json").write_text('{"name": "app"}')
        (target / "thesis.txt").write_text("thesis")
    elif kind == "bundle and more":
        shutil.copytree(heart.path, target)
        (target / "thesis.txt").write_text("thesis")
    else:
        target.symlink_to(heart.path)
    before = names_under(tmp_path)
    with pytest.raises(OutputError, match="not a bundle"), staging_directory(target) as staging:
        bundle_module.move_into_place(staging, target, force=True)
    assert names_under(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failed_replacement_brings_the_old_bundle_back(
    tmp_path: Path, heart: Bundle, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = names_under(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".staging-" in self.name:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((KeyboardInterrupt, OutputError)), staging_directory(heart.path) as staging:
        bundle_module.move_into_place(staging, heart.path, force=True)
    assert names_under(tmp_path) == before
    assert Bundle.load(heart.path) == heart


def test_a_written_bundle_is_as_readable_as_other_files(heart: Bundle) -> None:
    (heart.path.parent / "other").mkdir()
    assert heart.path.stat().st_mode == (heart.path.parent / "other").stat().st_mode


def test_paths_that_are_not_utf8_are_refused_before_a_native_library_sees_them(heart: Bundle, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"x\xff")
    shutil.copytree(heart.path, odd)
    with pytest.raises(BundleError, match="UTF-8"):
        Bundle.load(odd)
