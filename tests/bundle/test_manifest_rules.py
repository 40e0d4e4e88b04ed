from __future__ import annotations

import json
import os
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksam_deploy.base.errors import BundleError
from masksam_deploy.bundle.manifest import Manifest
from masksam_deploy.bundle.rules import is_plain_name, parse_manifest
from tests.example_bundle import GRAPH_BYTES, ZERO_HASH, manifest_content

COMPLETE = manifest_content() | {"files": {name: {"sha256": ZERO_HASH, "bytes": 0} for name in GRAPH_BYTES}}
REMOVED = object()


def changed(place: str, value: object, content: dict[str, Any] = COMPLETE) -> dict[str, Any]:
    """A copy of the content with the value at `place` (keys and indices, `/` between) replaced or removed."""
    # Through text: a plain copy would keep objects shared that are separate in a file.
    content = json.loads(json.dumps(content))
    *parents, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    parent: Any = content
    for key in parents:
        parent = parent[key]
    if value is REMOVED:
        del parent[last]
    else:
        parent[last] = value
    return content


def parsed(content: object) -> Manifest:
    return parse_manifest(json.dumps(content).encode(), "x.masksam")


def refusal(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(data, "x.masksam")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500, message
    assert message.startswith("x.masksam: manifest.json: "), message
    assert "found" in message and "expected" in message and "; " in message, message
    return message


def test_a_consistent_manifest_is_accepted() -> None:
    assert parsed(COMPLETE).recipe.grid.transpose == (1, 0, 2)


ENCODER, GENERATOR, DECODER = "graphs/0", "graphs/1", "graphs/2"
FEATURES, TOKENS, SCORES = f"{DECODER}/inputs/1", f"{GENERATOR}/outputs/0", f"{DECODER}/outputs/0"
CT, PRE = "preprocessing/normalization/0", "preprocessing"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"{ENCODER}/file", "other.onnx", r"graph 'image_encoder': found file 'other\.onnx'.*lists"),
        (f"{GENERATOR}/name", "mask_decoder", r"found name 'mask_decoder' twice"),
        (f"{GENERATOR}/file", "mask_decoder.onnx", r"found file 'mask_decoder\.onnx' twice"),
        ("graphs", [], r"field 'graphs'"),
    ],
)
def test_graphs_have_their_own_names_and_listed_files(place: str, value: object, expected: str) -> None:
    assert re.search(expected, refusal(json.dumps(changed(place, value)).encode()))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"{FEATURES}/name", "nothing", r"found input 'nothing'"),
        (f"{FEATURES}/name", "semseg", r"found input 'semseg'"),
        (f"{FEATURES}/name", "tokens", r"input 'tokens' twice"),
        (f"{FEATURES}/dtype", "float16", r"'features' as float16.*expected float32 \[B, 8"),
        (f"{FEATURES}/shape", ["B", 8, 4, 2, 5], r"'features' as float32 \[B, 8, 4, 2, 5\], expected"),
        (f"{DECODER}/inputs/0/shape", ["B", 2, 4, 16, 16], r"input 'image' as"),
        (f"{TOKENS}/name", "features", r"output 'features' twice"),
        (f"{TOKENS}/name", "image", r"found output 'image'"),
        (f"{TOKENS}/shape", [1, 3, 8], r"'tokens'.*expected 'B' and then whole numbers"),
        (f"{TOKENS}/shape", ["B", "N", 8], r"'tokens'.*expected 'B' and then whole numbers"),
        (f"{TOKENS}/shape", [], r"'tokens'.*expected 'B' and then whole numbers"),
        (f"{TOKENS}/shape", ["B", 0], r"found 0"),
        (f"{TOKENS}/dtype", "complex64", r"dtype 'complex64'"),
        (f"{SCORES}/name", "logits", r"outputs \['logits'\], expected 'semseg'"),
        (f"{FEATURES}/name", "\x1b[2J\nhello", r"x1b"),
    ],
)
def test_ports_chain_from_the_image_to_the_scores(place: str, value: object, expected: str) -> None:
    assert re.search(expected, refusal(json.dumps(changed(place, value)).encode()))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"{SCORES}/dtype", "float16", r"'semseg': found float16"),
        (f"{SCORES}/shape", ["B", 2, 4, 16, 32], r"expected float32 \[B, 3, 4, 16, 32\]"),
        (f"{SCORES}/shape", ["B", 3, 4, 16, 16], r"port 'semseg'"),
        (f"{PRE}/channel_names", ["CT"], r"found 2 entries.*\(1\)"),
        (f"{PRE}/normalization", [{"scheme": "NoNormalization"}], r"found 1 entries.*\(2\)"),
        (f"{PRE}/normalization/1/scheme", "Magic", r"normalization\.1\.scheme': found 'Magic'"),
        (f"{CT}/std", None, r"normalization\.0'.*all four"),
        (f"{CT}/lower", REMOVED, r"normalization\.0'.*all four"),
        (f"{CT}/upper", -100, r"lower below upper"),
        (f"{CT}/std", 0, r"std above 0"),
        (f"{PRE}/transpose_forward", [0, 0, 2], r"transpose_forward.*each of 0, 1 and 2"),
        (f"{PRE}/transpose_forward", [0, 1, 2, 3], r"transpose_forward"),
        (f"{PRE}/spacing", [0, 1, 1], r"spacing\.0.*found 0"),
        ("mirror_axes", [1, 1], r"mirror_axes.*at most once"),
        ("mirror_axes", [3], r"mirror_axes\.0': found 3"),
        ("labels/classes/2/value", 1, r"found value 1 twice"),
        ("labels/classes/2/value", "2", r"labels\.classes\.2\.value': found '2'"),
        ("labels/classes/2/value", True, r"labels\.classes\.2\.value': found True"),
        ("labels/classes/2/value", 65536, r"labels\.classes\.2\.value': found 65536"),
        ("labels", REMOVED, r"field 'labels': found nothing"),
        ("files/mask_decoder.onnx/sha256", "ab", r"sha256': found 'ab'"),
    ],
)
def test_channels_classes_and_preprocessing_agree(place: str, value: object, expected: str) -> None:
    assert re.search(expected, refusal(json.dumps(changed(place, value)).encode()))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (REMOVED, r"found nothing"),
        ("one", r"found 'one'"),
        (1.0, r"found 1\.0"),
        ("1", r"found '1'"),
        ("3.0", r"found '3\.0'.*knows \(1\.x to 2\.x\).*newer masksam-deploy"),
        ("0.9", r"found '0\.9'.*knows \(1\.x to 2\.x\).*export the bundle again"),
    ],
)
def test_an_unknown_schema_version_is_refused_with_what_to_do(value: object, expected: str) -> None:
    message = refusal(json.dumps(changed("schema_version", value)).encode())
    assert re.search(f"'schema_version': {expected}", message)


def test_the_version_is_judged_before_fields_that_it_may_have_changed() -> None:
    assert "newer masksam-deploy" in refusal(b'{"schema_version": "3.0", "stages": []}')


def test_a_newer_minor_version_with_unknown_fields_is_accepted() -> None:
    content = changed("schema_version", "1.7")
    content = changed("calibration", {"table": [1, 2]}, content)
    assert parsed(changed("graphs/0/precision", "float16", content)).schema_version == "1.7"


def test_regions_may_paint_one_value_twice() -> None:
    content = changed("labels/decision", "regions")
    assert parsed(changed("labels/classes/2/value", 1, content)).labels.decision == "regions"


UNSAFE_NAMES = """
    /etc/passwd | ../heart.onnx | a/../../b | a/./b | a//b | a/ | . | .. | C:/x | C:x | a\\b | \\\\host\\x |
    .hidden | x. | nul | COM1.onnx | é.onnx | ~ | -o | a b | engines/x | Engines/x |
    manifest.json | MANIFEST.JSON
"""


@pytest.mark.parametrize(
    "name", [*(name.strip() for name in UNSAFE_NAMES.split("|")), "", "x ", "a\x00b", "a\nb", "a" * 300]
)
def test_a_file_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    content = changed(f"{ENCODER}/file", name)
    content["files"][name] = {"sha256": ZERO_HASH, "bytes": 0}
    assert "field 'files'" in refusal(json.dumps(content).encode())


@pytest.mark.parametrize("name", ["Mask_Decoder.onnx", "mask_decoder.onnx/inner"])
def test_file_names_that_collide_on_some_file_system_are_refused(name: str) -> None:
    content = json.loads(json.dumps(COMPLETE))
    content["files"][name] = {"sha256": ZERO_HASH, "bytes": 0}
    assert f"field 'files': found '{name}'" in refusal(json.dumps(content).encode())


@given(st.text(max_size=30) | st.text(alphabet="ab./\\:~ \x00", max_size=12))
def test_every_plain_name_stays_inside_its_folder(name: str) -> None:
    if is_plain_name(name):
        assert os.path.normpath(f"/bundle/{name}") == f"/bundle/{name}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"name": "a", "name": "b"}',
        b"[" * 100_000,
        b'{"a":' * 900 + b"1" + b"}" * 900,
        b"1" * 10_000,
        b'{"schema_version": "1.0", "name": "\\ud800"}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_text_that_is_no_json_object_is_refused(data: bytes) -> None:
    refusal(data)


def test_a_deeply_nested_model_description_is_refused_and_not_a_crash() -> None:
    nested: object = 1
    for _ in range(700):
        nested = [nested]
    assert "recursion limit" in refusal(json.dumps(changed("model", {"deep": nested})).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


def _places(content: object, place: str = "") -> list[str]:
    inner = [place] if place else []
    pairs: Any = content.items() if isinstance(content, dict) else ()
    pairs = enumerate(content) if isinstance(content, list) else pairs
    for key, value in pairs:
        # A path is split at slashes, so a file in a folder cannot be addressed.
        if "/" not in str(key):
            inner += _places(value, f"{place}/{key}".lstrip("/"))
    return inner


@given(place=st.sampled_from(_places(COMPLETE)), value=JSON)
def test_any_one_field_replaced_gives_a_manifest_or_a_one_line_refusal(place: str, value: object) -> None:
    data = json.dumps(changed(place, value)).encode()
    try:
        parse_manifest(data, "x.masksam")
    except BundleError:
        refusal(data)


MANY = {
    "lists": b'{"model": [' + b"[]," * 2_000_000 + b"0]}",
    "files": json.dumps(COMPLETE | {"files": {f"f{number}": 0 for number in range(200_000)}}).encode(),
    "equal keys": b"{" + b'"a":1,' * 1_000_000 + b'"a":1}',
    "classes": json.dumps(COMPLETE | {"labels": {"classes": [0] * 200_000}}).encode(),
    "nesting": b'{"a":' * 1_000_000,
}


@pytest.mark.parametrize("what", MANY)
def test_a_manifest_of_millions_of_values_is_refused_before_it_is_parsed(what: str) -> None:
    started = time.perf_counter()
    assert "values, expected at most 100000" in refusal(MANY[what])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("place", ["name", "model/embed_dim", "provenance/source_name"])
def test_a_text_that_no_name_is_as_long_as_is_refused(place: str) -> None:
    message = refusal(json.dumps(changed(place, "n" * 1_000_000)).encode())
    assert "found a text of 1000000 characters" in message
    assert "found a text of" in refusal(json.dumps(COMPLETE | {"k" * 100_000: 0}).encode())


@pytest.mark.parametrize("number", ["9" * 1_000_000, "1e999999", "-1e999999", "NaN", "Infinity"])
def test_numbers_that_no_program_holds_are_refused_at_once(number: str) -> None:
    text = json.dumps(COMPLETE)
    started = time.perf_counter()
    refusal(f'{text[:-1]}, "more": {number}}}'.encode())
    assert time.perf_counter() - started < 1


def test_half_a_character_is_refused_however_it_is_written() -> None:
    text = json.dumps(COMPLETE)
    refusal(text.replace('"heart"', '"\\ud800"').encode())
    refusal(text.replace('"heart"', '"\ud800"').encode("utf-8", "surrogatepass"))
