"""Plans and dataset.json as files: whatever they hold, one line says what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.text import one_line
from masksam_export.plans import Plan
from masksam_export.torch_files import json_file
from masksam_export.torch_files.json_file import read_json

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("x" * 5000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
    assert one_line(path.name)[:20] in message
    return message


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 1_000_000, "cannot be read as JSON"),
        (b'{"a":' * 1_000 + b"1" + b"}" * 1_000, "cannot be read as JSON"),
        (b"[" * 70 + b"]" * 70, "64 deep"),
        (b"1" * 5000, "cannot be read as JSON"),
        (b"1" * 300, "bits"),
        (b'{"a": "\\ud800"}', "not UTF-8"),
        (b'{"\\udc00": 1}', "not UTF-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b'{"' + b"x" * 600 + b'": 1}', "600 characters"),
        (b'{"a": "' + b"x" * 2**21 + b'"}', "2,097,152 characters"),
        (b"[" + b"1," * 1_100_000 + b"1]", "1,000,000 values"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_files_that_are_no_plain_json_are_refused(tmp_path: Path, data: bytes, part: str) -> None:
    path = tmp_path / "plans.json"
    path.write_bytes(data)
    assert part in refusal(path)


def test_files_beyond_the_limit_are_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "MAX_JSON_BYTES", 2**20)
    path = tmp_path / "plans.json"
    path.write_bytes(b" " * (2**20 + 1))
    assert "larger than 1 MiB" in refusal(path)


def test_pipes_devices_loops_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe.json", tmp_path / "loop.json"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, tmp_path, Path("/dev/zero"), tmp_path / "none.json", Path("n" * 300), Path("nul\0l")):
        refusal(path)


def test_surrogates_in_pairs_and_other_languages_are_text(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    path.write_text('{"\\ud83d\\ude00": "Hüftgelenk 髋", "a": [1.5, null, true]}', encoding="utf-8")
    assert read_json(path) == {"😀": "Hüftgelenk 髋", "a": [1.5, None, True]}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_plans_with_anything_anywhere_are_refused_in_one_line_or_understood(
    cardiac_case: Path, data: st.DataObject
) -> None:
    content = {name: json.loads((cardiac_case / f"{name}.json").read_text()) for name in ("plans", "dataset")}
    place = data.draw(st.sampled_from([place for place in places(content) if len(place) > 1]))
    target: Any = content
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = data.draw(anything)
    try:
        plan = Plan(content["plans"], content["dataset"], "3d_fullres")
        plan.preprocessing(), plan.labels(), plan.norm_eps, plan.leaky_slope
    except CheckpointError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2000


def test_a_million_wrong_values_are_one_error(cardiac_case: Path) -> None:
    plans = json.loads((cardiac_case / "plans.json").read_text())
    for labels in ({f"label {index}": "wrong" for index in range(500_000)}, {"a": ["x"] * 500_000}):
        with pytest.raises(CheckpointError, match="'labels' has more than 10,000 values"):
            Plan(plans, {"labels": labels, "channel_names": {"0": "MRI"}}, "3d_fullres")


@pytest.mark.parametrize("length", [33, 4000])
def test_long_chains_of_inheritance_are_refused(cardiac_case: Path, length: int) -> None:
    plans = json.loads((cardiac_case / "plans.json").read_text())
    dataset = json.loads((cardiac_case / "dataset.json").read_text())
    chain = {f"c{index}": {"inherits_from": f"c{index + 1}"} for index in range(length)}
    plans["configurations"] = chain | {f"c{length}": plans["configurations"]["3d_fullres"]}
    with pytest.raises(CheckpointError, match="more than 32 others"):
        Plan(plans, dataset, "c0")
    assert Plan(plans, dataset, f"c{length - 31}").patch_size == (4, 128, 128)
