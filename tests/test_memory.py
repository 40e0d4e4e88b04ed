"""Memory limits as people write them."""

from __future__ import annotations

import pytest

from masksam_deploy.errors import MemoryLimitError
from masksam_deploy.memory import available_memory, parse_size, peak_memory, require


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8G", 8 * 2**30), ("512MiB", 2**29), ("1.5 gb", 3 * 2**29), ("1024", 1024), ("2k", 2048), ("1T", 2**40)],
)
def test_sizes_are_powers_of_1024(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "8X", "8GG", "lots", "1e9", "0.0001K", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_this_machine_has_memory() -> None:
    memory = available_memory()
    assert memory is None or memory > 2**24


def test_the_peak_grows_with_what_was_held_and_stays() -> None:
    before = peak_memory()
    if before is None:
        pytest.skip("this system does not tell")
    held = bytearray(b"x" * 2**28)
    after = peak_memory()
    del held
    assert after is not None and after >= 2**28
    assert (peak_memory() or 0) >= after >= before


def test_work_beyond_the_limit_is_refused_with_both_figures() -> None:
    require(100, None, "a scan")
    require(100, 100, "a scan")
    with pytest.raises(MemoryLimitError, match=r"about 3\.0 GiB .* allowed are 2\.0 GiB; .*--max-ram"):
        require(3 * 2**30, 2 * 2**30, "a scan")
