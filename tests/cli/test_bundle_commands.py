from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from masksam_deploy.base.errors import BundleError, OutputError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.rules import MANIFEST_NAME
from masksam_deploy.cli import app
from masksam_deploy.cli.pack import default_target as packed_target
from masksam_deploy.cli.unpack import default_target as unpacked_target
from tests.example_bundle import make_bundle


@pytest.fixture
def heart(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "heart.masksam")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_inspect_shows_what_a_person_needs_to_know(heart: Bundle) -> None:
    result = call("inspect", heart.path)
    assert result.exit_code == 0
    for expected in [
        "every file matches its hash",
        heart.sha256,
        "embed_dim",
        "image_encoder",
        "B × 2 × 4 × 16 × 32",  # noqa: RUF001
        "spacing 1 mm, spacing 2.5 mm, spacing 1 mm",
        "clip (lower -100, upper 300), scale (subtract 80.5, divide 40)",
        "left ventricle",
        "mirror axes",
        "checkpoint_final.pth",
        "semseg 1.5e-05, argmax_agreement 1",
    ]:
        assert expected in result.stdout


def test_inspect_writes_no_colour_codes_into_a_pipe(heart: Bundle) -> None:
    result = call("inspect", heart.path)
    assert "\x1b" not in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


def test_inspect_shows_names_without_their_control_codes_and_markup(heart: Bundle) -> None:
    path = heart.path / MANIFEST_NAME
    path.write_text(path.read_text().replace("myocardium", "\\u001b[31m[red]myo"))
    shown = call("inspect", heart.path).stdout
    assert "[31m[red]myo" in shown and "\x1b" not in shown


def test_inspect_survives_an_output_that_knows_only_ascii(heart: Bundle) -> None:
    code = f"from masksam_deploy.cli import main; main(['inspect', {str(heart.path)!r}])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.returncode == 0, result.stderr
    assert b"left ventricle" in result.stdout and result.stdout.isascii()


def test_inspect_json_is_the_manifest_and_a_summary_and_nothing_else(heart: Bundle) -> None:
    result = call("inspect", heart.path, "--json")
    content = json.loads(result.stdout)
    assert content["manifest"] == heart.manifest.model_dump(mode="json")
    assert content["summary"] == {
        "path": str(heart.path),
        "verified": True,
        "manifest_sha256": heart.sha256,
        "total_bytes": 229,
        "patch_size": [4, 16, 32],
        "channels": 2,
        "classes": 3,
        "kernels": None,
        "graph_bytes": {"image_encoder": 180, "prompt_generator": 49, "mask_decoder": 0},
    }


def test_inspect_names_the_kernel_pack_that_a_bundle_carries(tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain.masksam")
    assert "none" in line_of("GPU kernels", call("inspect", plain.path).stdout)
    carrying = make_bundle(tmp_path / "carrying.masksam", {"kernels/pack.json": b"{}", "kernels/k.cubin": b"code"})
    shown = call("inspect", carrying.path).stdout
    assert "a pack in kernels/" in line_of("GPU kernels", shown)
    assert "kernels/k.cubin" in shown
    summary = json.loads(call("inspect", carrying.path, "--json").stdout)["summary"]
    assert summary["kernels"] == str(carrying.path / "kernels")


def line_of(title: str, text: str) -> str:
    (line,) = (line for line in text.splitlines() if title in line)
    return line


def test_inspect_verifies_unless_told_not_to_and_then_says_so(heart: Bundle) -> None:
    (heart.path / "image_encoder.onnx").write_bytes(b"NOT really a graph" * 10)
    with pytest.raises(BundleError, match="changed after export"):
        call("inspect", heart.path)
    assert "NOT verified" in call("inspect", heart.path, "--no-verify").stdout
    summary = json.loads(call("inspect", heart.path, "--no-verify", "--json").stdout)["summary"]
    assert summary["verified"] is False


def test_pack_and_unpack_find_their_names_and_give_the_bundle_back(heart: Bundle) -> None:
    packed = heart.path.with_name("heart.masksam.zip")
    assert str(packed) in call("pack", heart.path).stdout
    shutil.rmtree(heart.path)
    assert heart.sha256 in call("unpack", packed).stdout
    assert Bundle.load(heart.path) == heart


def test_pack_and_unpack_write_where_told_and_replace_only_by_force(heart: Bundle, tmp_path: Path) -> None:
    packed, target = tmp_path / "p.zip", tmp_path / "u"
    call("pack", heart.path, "-o", packed)
    call("unpack", packed, "-o", target)
    assert Bundle.load(target).sha256 == heart.sha256
    for again in (("pack", heart.path, "-o", packed), ("unpack", packed, "-o", target)):
        with pytest.raises(OutputError, match="--force"):
            call(*again)
        assert call(*again, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("bundle", "packed"),
    [
        ("heart.masksam", "heart.masksam.zip"),
        ("a/heart", "a/heart.masksam.zip"),
        ("v1.2/", "v1.2.masksam.zip"),
    ],
)
def test_a_packed_bundle_is_named_after_its_directory(bundle: str, packed: str) -> None:
    assert packed_target(Path(bundle)) == Path(packed)


def test_a_bundle_named_by_a_dot_is_packed_beside_its_directory(heart: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(heart.path)
    assert packed_target(Path()) == heart.path.with_name("heart.masksam.zip")


@pytest.mark.parametrize(
    ("packed", "bundle"),
    [("heart.masksam.zip", "heart.masksam"), ("a/b.zip", "a/b.masksam"), ("download", "download.masksam")],
)
def test_an_unpacked_bundle_is_named_after_its_file(packed: str, bundle: str) -> None:
    assert unpacked_target(Path(packed)) == Path(bundle)
