"""Every form in which torch.save writes values comes back the same, without torch's loader."""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from masksam_deploy.base.errors import CheckpointError
from masksam_export.torch_files.safe_load import load_mapping, load_with_digest
from masksam_export.torch_files.torch_pickle import UnusualTensor

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def loaded(content: Any, folder: Path, **options: Any) -> dict[Any, Any]:
    path = folder / "values.pth"
    torch.save(content, path, **options)
    return load_mapping(path)


def same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape or first.stride() != second.stride():
        return False
    return (
        first.numpy(force=True).tobytes() == second.numpy(force=True).tobytes()
        if _in_numpy(first)
        else torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
    )


def _in_numpy(tensor: Tensor) -> bool:
    return "float8" not in str(tensor.dtype) and tensor.dtype != torch.bfloat16


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_keep_their_bits(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    values = torch.randint(0, 255, (3, 4, dtype.itemsize), dtype=torch.uint8)
    tensor = values.gt(127)[..., 0] if dtype == torch.bool else values.view(dtype)[..., 0]
    found = loaded({"a": tensor, "b": tensor.T}, tmp_path, _use_new_zipfile_serialization=not legacy)
    assert same_bits(found["a"], tensor)
    assert same_bits(found["b"], tensor.T)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_shape_of_a_tensor_comes_back(tmp_path: Path, legacy: bool) -> None:
    whole = torch.randn(4, 6)
    content = {
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "part": whole[1:3, ::2],
        "whole": whole,
        "parameter": nn.Parameter(torch.randn(2)),
        "frozen": nn.Parameter(torch.randn(2), requires_grad=False),
        "one of many": torch.randn(1).expand(1),
    }
    found = loaded(content, tmp_path, _use_new_zipfile_serialization=not legacy)
    assert all(same_bits(found[name], tensor.detach()) for name, tensor in content.items())
    assert not any(tensor.requires_grad for tensor in found.values())


def test_tensors_that_share_memory_still_do_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    weight = torch.zeros(8)
    found = loaded({"a": weight, "b": weight, "c": weight[2:]}, tmp_path)
    before = (tmp_path / "values.pth").read_bytes()
    found["a"].fill_(3)
    assert found["b"] is found["a"]
    assert found["c"].tolist() == [3] * 6
    assert (tmp_path / "values.pth").read_bytes() == before


def test_state_dicts_of_modules_come_back(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"model": module.state_dict(), "kept": module.state_dict(keep_vars=True), "optim": optimizer.state_dict()}
    found = loaded(content, tmp_path)
    assert type(found["model"]) is dict
    assert all(same_bits(found["model"][name], value) for name, value in content["model"].items())
    assert all(same_bits(found["kept"][name], value.detach()) for name, value in content["kept"].items())
    assert found["optim"]["param_groups"] == content["optim"]["param_groups"]
    assert same_bits(found["optim"]["state"][0]["exp_avg"], content["optim"]["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(-3), -3),
        (np.uint8(200), 200),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(1e300), 1e300),
        (np.float16(0.5), 0.5),
        (np.bool_(True), True),
        (np.dtype(">i4").type(7), 7),
        (2**64 - 1, 2**64 - 1),
        (-(2**127), -(2**127)),
        (1.5 + 2j, 1.5 + 2j),
        (b"\x00\xffbytes", b"\x00\xffbytes"),
        (bytearray(b"more"), b"more"),
        (bytearray(), b""),
        ({1}, {1}),
        (Counter({3: 4}), {3: 4}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (torch.Size([2, 3]), (2, 3)),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.device("cpu"), "cpu"),
        (torch.bfloat16, torch.bfloat16),
        ((None, True, False, (), [], {}), (None, True, False, (), [], {})),
        ("ümlaut \N{GRINNING FACE}", "ümlaut \N{GRINNING FACE}"),
    ],
    ids=str,
)
def test_plain_values_come_back(tmp_path: Path, value: Any, expected: Any) -> None:
    found = loaded({"value": value, "again": [value]}, tmp_path)
    assert found == {"value": expected, "again": [expected]}
    assert type(found["value"]) is type(expected)


UTF8 = st.characters(codec="utf-8")
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(UTF8, max_size=30)
    | st.binary(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(UTF8, max_size=10) | st.integers(0, 99), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=plain, legacy=st.booleans())
def test_any_plain_values_come_back(tmp_path: Path, value: Any, legacy: bool) -> None:
    assert loaded({"value": value}, tmp_path, _use_new_zipfile_serialization=not legacy) == {"value": value}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor")
def test_tensors_that_are_not_dense_are_named_by_their_kind(tmp_path: Path) -> None:
    content = {
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.zeros(3, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
        "lazy": torch.zeros(3, dtype=torch.complex64).conj(),
    }
    found = loaded(content, tmp_path)
    assert {name: value for name, value in found.items() if not isinstance(value, UnusualTensor)} == {}


def test_archives_written_by_other_tools_are_read(tmp_path: Path) -> None:
    """Entries that are not aligned, without torch's own extra fields, in another order."""
    path, other = tmp_path / "values.pth", tmp_path / "other.pth"
    torch.save({"a": torch.arange(7), "b": torch.arange(5.0)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in reversed(source.namelist()):
            target.writestr(name, source.read(name))
    assert load_mapping(other)["a"].tolist() == list(range(7))
    assert load_mapping(other)["b"].tolist() == list(range(5))


def test_hash_is_that_of_the_file(tmp_path: Path) -> None:
    for legacy in (False, True):
        path = tmp_path / "values.pth"
        torch.save({"a": torch.arange(700)}, path, _use_new_zipfile_serialization=not legacy)
        assert load_with_digest(path)[1] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("position", range(0, 1200, 7))
def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path, position: int) -> None:
    path = tmp_path / "values.pth"
    torch.save({"a": torch.arange(30.0), "b": [1, "two"]}, path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << position % 8
    path.write_bytes(data)
    try:
        found = load_mapping(path)
    except CheckpointError:
        return
    assert found["a"].tolist() == list(range(30))
    assert found["b"] == [1, "two"]


@pytest.mark.parametrize("replaced", [b"J\xff\xff\xff\xffJ\x10\0\0\0K\0", b"J\x10\0\0\0J\xff\xff\xff\xffK\0", b"N" * 3])
def test_a_numpy_type_that_contradicts_itself_is_refused(tmp_path: Path, replaced: bytes) -> None:
    path = tmp_path / "values.pth"
    torch.save({"a": np.int64(2)}, path, _use_new_zipfile_serialization=False)
    data, plain = path.read_bytes(), b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0"
    assert data.count(plain) == 1
    path.write_bytes(data.replace(plain, replaced))
    with pytest.raises(CheckpointError, match="NumPy type that cannot be"):
        load_mapping(path)
