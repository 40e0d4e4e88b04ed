"""Memory limits as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from masksam_deploy.base.errors import MemoryLimitError
from masksam_deploy.base.memory import available_memory, parse_size, peak_memory, require


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


def write_group(folder: Path, limit: str, used: int, cache: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\nactive_file 7\n{names[2]} {cache}\nfile 9\n")


def write_system(root: Path, groups: str, free_kb: int) -> None:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {free_kb} kB\n")


V2, V1 = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@pytest.mark.parametrize(
    ("groups", "inner", "names"),
    [
        ("0::/\n", "", V2),
        ("0::/box/one\n", "box/one", V2),
        ("0::/gone\n", "", V2),  # the path outside of the container
        ("2:cpu:/\n1:memory:/box\n0::/\n", "memory/box", V1),
    ],
)
def test_a_containers_limit_counts_but_not_its_cache_of_files(
    tmp_path: Path, groups: str, inner: str, names: tuple[str, str, str]
) -> None:
    write_system(tmp_path, groups, 10**6)
    write_group(tmp_path / "sys/fs/cgroup" / inner, "8000", 5000, 1000, names)
    assert available_memory(tmp_path) == 4000


def test_the_tightest_of_all_limits_counts(tmp_path: Path) -> None:
    write_system(tmp_path, "0::/box/one\n", 3)
    cgroup = tmp_path / "sys/fs/cgroup"
    write_group(cgroup / "box" / "one", "max", 100, 0, V2)
    assert available_memory(tmp_path) == 3072
    write_group(cgroup / "box", "2000", 500, 0, V2)
    assert available_memory(tmp_path) == 1500
    write_group(cgroup, "2000", 3000, 100, V2)
    assert available_memory(tmp_path) == 0


def test_a_system_that_does_not_tell_has_no_limit(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


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
