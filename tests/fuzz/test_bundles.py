"""The generators of damage: repeatable, endless, and refused cleanly by everything that does not run a network."""

from __future__ import annotations

import hashlib
import shutil
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="builds its network with onnx")

from masksam_deploy.base.errors import MaskSamError
from masksam_deploy.bundle.archive import pack, unpack
from masksam_deploy.bundle.directory import Bundle
from tests.engines.small_bundle import make_bundle
from tests.fuzz import archives, bundles

COUNT = 120


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("good") / "good.masksam").path


def content(path: Path) -> str:
    """A hash of everything below a path, or of what it is."""
    total = hashlib.sha256()
    for place in (path, *sorted(path.rglob("*"))):
        # Sparse files of gigabytes count by their size.
        small = place.is_file() and place.stat().st_size < 10**8
        what = place.read_bytes() if small else str(place.lstat().st_mode).encode()
        total.update(f"{place.relative_to(path.parent)}:{len(what)}:".encode() + what)
    return total.hexdigest()


def test_damage_is_repeatable_and_differs(good: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    for _, mutate in islice(bundles.mutations(7), 20):
        hashes = set()
        for attempt in ("one", "two"):
            copy = tmp_path / attempt / "copy"
            shutil.copytree(good, copy)
            mutate(copy)
            hashes.add(content(copy))
            shutil.rmtree(tmp_path / attempt)
        assert len(hashes) == 1
        seen += hashes
    assert len(set(seen)) > 15
    names = [[name for name, _ in islice(bundles.mutations(seed), 50)] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_damaged_bundles_are_refused_in_one_line_or_are_consistent(good: Path, tmp_path: Path) -> None:
    refused = 0
    for name, mutate in islice(bundles.mutations(11), COUNT):
        copy = tmp_path / "copy.masksam"
        shutil.copytree(good, copy)
        mutate(copy)
        try:
            bundle = Bundle.load(copy)
            for graph in bundle.manifest.graphs:
                bundle.graph_path(graph.name)
        except MaskSamError as error:
            refused += 1
            assert str(error).isprintable(), name
            assert len(str(error)) < 1_000, name
        remove(copy)
    assert COUNT // 4 < refused < COUNT  # the rest are for the runtime to refuse


def test_damaged_archives_are_refused_in_one_line_or_unharmed(good: Path, tmp_path: Path) -> None:
    packed = pack(good, tmp_path / "good.masksam.zip")
    expected = Bundle.load(good).sha256
    for name, mutate in islice(archives.mutations(13), COUNT):
        copy, target = tmp_path / "copy.zip", tmp_path / "copy.masksam"
        shutil.copyfile(packed, copy)
        mutate(copy)
        try:
            assert unpack(copy, target).sha256 == expected, name
            shutil.rmtree(target)
        except MaskSamError as error:
            assert str(error).isprintable() and len(str(error)) < 1_000, name
        assert not target.exists(), name
        remove(copy)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
