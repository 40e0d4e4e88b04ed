from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.base.paths import open_regular
from masksam_deploy.bundle import archive as archive_module
from masksam_deploy.bundle.archive import pack, unpack
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.rules import MANIFEST_LIMIT, MANIFEST_NAME
from tests.example_bundle import GRAPH_BYTES, make_bundle


class Packed(NamedTuple):
    bundle: Bundle
    path: Path


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    bundle = make_bundle(tmp_path / "heart.masksam")
    return Packed(bundle, pack(bundle.path, tmp_path / "heart.masksam.zip"))


def names_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def refusal(path: Path) -> str:
    """The message of a refused unpacking that left nothing behind."""
    before = names_under(path.parent)
    with pytest.raises(BundleError) as caught:
        unpack(path, path.parent / "target.masksam")
    assert names_under(path.parent) == before
    message = str(caught.value)
    assert message.isprintable() and "found" in message and "expected" in message, message
    assert ".staging-" not in message
    return message


Entries = list[tuple[zipfile.ZipInfo, bytes]]


def entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def rezip(path: Path, change: Callable[[Entries], object]) -> None:
    """Write the archive anew with changed entries."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in entries:
            archive.writestr(info, data)


def patch_headers(path: Path, local_offset: int, central_offset: int, value: bytes, *, entry_index: int) -> None:
    """Overwrite one header field of one entry, in its local and its central header."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", local_offset), (b"PK\x01\x02", central_offset)):
        start = -1
        for _ in range(entry_index + 1):
            start = data.index(signature, start + 1)
        data[start + offset : start + offset + len(value)] = value
    path.write_bytes(data)


def test_packing_and_unpacking_gives_the_same_bundle(packed: Packed) -> None:
    target = packed.path.with_name("again.masksam")
    unpacked = unpack(packed.path, target)
    assert unpacked == Bundle.load(target)
    assert (unpacked.sha256, unpacked.manifest) == (packed.bundle.sha256, packed.bundle.manifest)
    assert {name: (target / name).read_bytes() for name in GRAPH_BYTES} == GRAPH_BYTES


def test_the_packed_file_is_a_stored_zip_with_the_manifest_first(packed: Packed) -> None:
    with zipfile.ZipFile(packed.path) as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
    assert [info.filename for info in infos] == [MANIFEST_NAME, *sorted(GRAPH_BYTES)]
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_the_same_bundle_packs_to_the_same_bytes(packed: Packed) -> None:
    copy = packed.path.parent / "copy"
    shutil.copytree(packed.bundle.path, copy)
    (copy / "mask_decoder.onnx").touch()
    (copy / "mask_decoder.onnx").chmod(0o600)
    assert pack(copy, packed.path.with_name("copy.zip")).read_bytes() == packed.path.read_bytes()


def test_archives_beyond_the_limits_of_the_old_zip_format_work(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for 4 GB, so that sizes and offsets are written in their long form.
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    long_form = pack(packed.bundle.path, packed.path.with_name("long.zip"))
    monkeypatch.undo()
    assert b"PK\x06\x06" in long_form.read_bytes()
    assert unpack(long_form, packed.path.with_name("again")).sha256 == packed.bundle.sha256


def test_engines_stay_behind(packed: Packed) -> None:
    (packed.bundle.path / "engines").mkdir()
    (packed.bundle.path / "engines" / "plan").write_bytes(b"x")
    again = pack(packed.bundle.path, packed.path.with_name("again.zip"))
    assert again.read_bytes() == packed.path.read_bytes()


def test_a_tampered_bundle_is_not_packed_and_leaves_no_file(packed: Packed) -> None:
    (packed.bundle.path / "image_encoder.onnx").write_bytes(b"NOT really a graph" * 10)
    before = names_under(packed.path.parent)
    with pytest.raises(BundleError, match="changed after export"):
        pack(packed.bundle.path, packed.path.with_name("new.zip"))
    assert names_under(packed.path.parent) == before


def test_packing_replaces_a_file_only_by_force(packed: Packed) -> None:
    data = packed.path.read_bytes()
    packed.path.write_text("something else")
    with pytest.raises(OutputError, match="--force"):
        pack(packed.bundle.path, packed.path)
    assert packed.path.read_text() == "something else"
    assert pack(packed.bundle.path, packed.path, force=True).read_bytes() == data


def test_packing_into_the_bundle_itself_is_refused(packed: Packed) -> None:
    with pytest.raises(OutputError, match="inside the bundle"):
        pack(packed.bundle.path, packed.bundle.path / "prompts" / "heart.zip")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "unsafe name"),
        ("/etc/evil", "unsafe name"),
        ("a\\..\\evil", "unsafe name"),
        ("C:evil", "unsafe name"),
        ("folder/", "unsafe name"),
        ("extra.onnx", "manifest.json does not list"),
        ("engines/plan", "manifest.json does not list"),
    ],
)
def test_an_entry_with_an_unsafe_or_unlisted_name_is_refused(packed: Packed, name: str, message: str) -> None:
    rezip(packed.path, lambda entries: entries.append((entry(name), b"")))
    assert message in refusal(packed.path)


def test_a_name_that_hides_behind_a_null_byte_is_refused(packed: Packed) -> None:
    patch_headers(packed.path, 30 + 4, 46 + 4, b"\0", entry_index=1)
    assert "unsafe name" in refusal(packed.path)


def test_an_entry_that_comes_twice_is_refused(packed: Packed) -> None:
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(packed.path, "a") as archive,
    ):
        archive.writestr(entry("mask_decoder.onnx"), b"")
    assert "found twice" in refusal(packed.path)


def test_a_symbolic_link_entry_is_refused(packed: Packed) -> None:
    def link(entries: Entries) -> None:
        entries[1][0].external_attr = (stat.S_IFLNK | 0o777) << 16

    rezip(packed.path, link)
    assert "found a symbolic link" in refusal(packed.path)


def test_an_encrypted_entry_is_refused(packed: Packed) -> None:
    patch_headers(packed.path, 6, 8, b"\x01", entry_index=2)
    assert "encrypted" in refusal(packed.path)


def test_a_compressed_entry_is_refused(packed: Packed) -> None:
    def compress(entries: Entries) -> None:
        entries[1][0].compress_type = zipfile.ZIP_DEFLATED

    rezip(packed.path, compress)
    assert "found a compressed file" in refusal(packed.path)


def test_a_zip_bomb_is_refused_without_being_inflated(packed: Packed) -> None:
    bomb = entry("image_encoder.onnx")
    bomb.compress_type = zipfile.ZIP_DEFLATED
    rezip(packed.path, lambda entries: entries.__setitem__(1, (bomb, bytes(50 * 2**20))))
    assert packed.path.stat().st_size < 2**20
    assert "found a compressed file" in refusal(packed.path)


def test_a_stored_entry_that_claims_more_than_the_archive_holds_is_refused(packed: Packed) -> None:
    def claim(entries: Entries) -> None:
        content = json.loads(entries[0][1])
        content["files"]["image_encoder.onnx"]["bytes"] = 2**31
        entries[0] = (entries[0][0], json.dumps(content).encode())

    rezip(packed.path, claim)
    patch_headers(packed.path, 18, 20, struct.pack("<II", 2**31, 2**31), entry_index=1)
    assert "claims to hold" in refusal(packed.path)


def test_a_huge_manifest_is_refused_before_it_is_read(packed: Packed) -> None:
    size = struct.pack("<II", MANIFEST_LIMIT + 1, MANIFEST_LIMIT + 1)
    patch_headers(packed.path, 18, 20, size, entry_index=0)
    assert f"found {MANIFEST_LIMIT + 1} bytes" in refusal(packed.path)


def test_a_huge_archive_directory_is_refused_before_it_is_read(packed: Packed) -> None:
    size = 40 * 2**20
    with packed.path.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 60_000, 60_000, size, 0, 0))
    assert "directory takes" in refusal(packed.path)


def test_an_entry_of_another_size_than_declared_is_refused(packed: Packed) -> None:
    rezip(packed.path, lambda entries: entries.__setitem__(1, (entries[1][0], b"longer" * 100)))
    assert "found 600 bytes, expected 180" in refusal(packed.path)


def test_an_entry_with_other_bytes_of_the_same_size_is_refused(packed: Packed) -> None:
    rezip(packed.path, lambda entries: entries.__setitem__(1, (entries[1][0], b"NOT really a graph" * 10)))
    assert "'image_encoder.onnx': found SHA-256" in refusal(packed.path)


def test_a_missing_entry_is_refused(packed: Packed) -> None:
    rezip(packed.path, lambda entries: entries.pop())
    assert "found no entry 'prompts/prompt_generator.onnx'" in refusal(packed.path)


def test_an_archive_that_does_not_start_with_the_manifest_is_refused(packed: Packed) -> None:
    rezip(packed.path, lambda entries: entries.reverse())
    assert "as first entry, expected manifest.json" in refusal(packed.path)
    rezip(packed.path, lambda entries: entries.clear())
    assert "found nothing as first entry" in refusal(packed.path)


def test_an_inconsistent_manifest_is_refused_from_the_archive(packed: Packed) -> None:
    def change(entries: Entries) -> None:
        entries[0] = (entries[0][0], entries[0][1].replace(b'"2.0"', b'"9.0"'))

    rezip(packed.path, change)
    assert "'schema_version': found '9.0'" in refusal(packed.path)


def test_no_archive_a_directory_or_nothing_is_refused(packed: Packed) -> None:
    assert "it needs no unpacking" in refusal(packed.bundle.path)
    assert "found nothing there" in refusal(packed.path.with_name("none.zip"))
    packed.path.write_bytes(b"PK\x03\x04 and then nonsense")
    assert "cannot be read" in refusal(packed.path)


@pytest.mark.parametrize(("kind", "message"), [("pipe", "it is a named pipe, not a file"), ("socket", "a socket")])
def test_what_would_make_reading_wait_is_refused_at_once(packed: Packed, kind: str, message: str) -> None:
    packed.path.unlink()
    if kind == "pipe":
        os.mkfifo(packed.path)
        assert message in refusal(packed.path)
        return
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(packed.path))
        assert message in refusal(packed.path)


def test_a_device_is_not_read(packed: Packed) -> None:
    link = packed.path.with_name("zero.zip")
    link.symlink_to("/dev/zero")
    assert "it is a device, not a file" in refusal(link)


def test_a_pipe_in_a_bundle_is_not_packed(packed: Packed) -> None:
    path = packed.bundle.path / "mask_decoder.onnx"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="something that is no file"):
        pack(packed.bundle.path, packed.path.with_name("again.zip"))


def test_a_file_that_becomes_a_pipe_after_it_was_looked_at_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    regular = Path(__file__).stat()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="named pipe"):
        patch.setattr(os, "stat", lambda *_, **__: regular)
        open_regular(path)


def test_links_that_lead_to_themselves_are_refused(packed: Packed) -> None:
    loop = packed.path.with_name("loop")
    loop.symlink_to(loop)
    assert "Too many levels" in refusal(loop)
    for target in (loop, loop / "inside.zip"):
        with pytest.raises(OutputError) as caught:
            pack(packed.bundle.path, target)
        assert str(caught.value).isprintable() and "found" in str(caught.value)
    with pytest.raises(OutputError, match="--force"):
        unpack(packed.path, loop)
    with pytest.raises(OutputError, match="Too many levels"):
        unpack(packed.path, loop / "inside")
    assert loop.is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "half\ud800"])
def test_names_that_no_system_takes_are_refused(packed: Packed, name: str) -> None:
    bad = packed.path.with_name(name)
    with pytest.raises(OutputError, match="found a name with"):
        pack(packed.bundle.path, bad)
    with pytest.raises(OutputError, match="found a name with"):
        unpack(packed.path, bad)
    with pytest.raises(BundleError, match="found a name with"):
        unpack(bad, packed.path.with_name("new"))


def test_overlong_names_are_refused(packed: Packed) -> None:
    bad = packed.path.with_name("a" * 5000)
    with pytest.raises(OutputError, match="too long"):
        pack(packed.bundle.path, bad)
    with pytest.raises(OutputError, match="too long"):
        unpack(packed.path, bad)
    with pytest.raises(BundleError, match="too long"):
        unpack(bad, packed.path.with_name("new"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_gives_the_same_bundle(packed: Packed, data: st.DataObject) -> None:
    good = packed.path.read_bytes()
    damaged = bytearray(good)
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(good) - 1))]
    else:
        start = good.index(b"PK\x01\x02") if data.draw(st.booleans()) else 0
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(start, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = packed.path.with_name("damaged.zip")
    path.write_bytes(damaged)
    target = packed.path.with_name("target.masksam")
    before = names_under(packed.path.parent)
    try:
        unpacked = unpack(path, target)
    except BundleError:
        assert names_under(packed.path.parent) == before
    else:
        # Damage to what does not count, such as a date, changes nothing.
        assert unpacked.sha256 == packed.bundle.sha256
        shutil.rmtree(target)


def test_an_existing_target_is_replaced_only_by_force(packed: Packed) -> None:
    (packed.bundle.path / "mask_decoder.onnx").write_bytes(b"tampered")
    before = names_under(packed.path.parent)
    with pytest.raises(OutputError, match="--force"):
        unpack(packed.path, packed.bundle.path)
    assert unpack(packed.path, packed.bundle.path, force=True) == packed.bundle
    assert names_under(packed.path.parent) == before
    assert Bundle.load(packed.bundle.path) == packed.bundle


def test_a_full_disk_is_noticed_before_anything_is_written(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))(1000, 900, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = names_under(packed.path.parent)
    with pytest.raises(OutputError, match="found 100 bytes free"):
        unpack(packed.path, packed.path.with_name("new.masksam"))
    assert names_under(packed.path.parent) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_an_interrupted_unpacking_leaves_nothing(
    packed: Packed, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def failing(path: Path) -> Bundle:
        assert (path / MANIFEST_NAME).exists()
        raise error

    monkeypatch.setattr(Bundle, "load", failing)
    before = names_under(packed.path.parent)
    with pytest.raises((KeyboardInterrupt, SystemExit, OSError)):
        unpack(packed.path, packed.path.with_name("new.masksam"))
    assert names_under(packed.path.parent) == before


def test_an_interrupted_packing_leaves_nothing(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(archive_module, "_add_file", failing)
    before = names_under(packed.path.parent)
    with pytest.raises(KeyboardInterrupt):
        pack(packed.bundle.path, packed.path.with_name("new.zip"))
    assert names_under(packed.path.parent) == before


def test_a_target_in_a_missing_folder_is_refused(packed: Packed) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        unpack(packed.path, packed.path.parent / "missing" / "new.masksam")


def test_the_hash_of_the_packed_manifest_names_the_bundle(packed: Packed) -> None:
    with zipfile.ZipFile(packed.path) as archive:
        assert hashlib.sha256(archive.read(MANIFEST_NAME)).hexdigest() == packed.bundle.sha256
