"""Prepared cases on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from masksam_deploy.base.errors import OutputError
from masksam_deploy.base.volume import Volume
from masksam_export.families.masksam.training.storage import CaseStore, check_space
from tests.training.test_patches import case


def test_arrays_come_back_unchanged_and_leave_no_file(tmp_path: Path) -> None:
    first, second = case((3, 4, 5)), case((2, 7, 3))
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    first = replace(first, reference=Volume(labels, first.frame.geometry))
    with CaseStore(tmp_path) as store:
        store.add(first)
        store.add(second)
        kept = store.cases()
    assert list(tmp_path.iterdir()) == []
    for original, mapped in zip((first, second), kept, strict=True):
        assert mapped.image.dtype == np.float32
        np.testing.assert_array_equal(mapped.image, original.image)
        np.testing.assert_array_equal(mapped.labels, original.labels)
    assert kept[0].reference is not None
    np.testing.assert_array_equal(np.asarray(kept[0].reference.array), labels)
    assert kept[1].reference is None


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts file descriptors in /proc")
def test_many_cases_take_few_file_descriptors(tmp_path: Path) -> None:
    before = descriptors()
    with CaseStore(tmp_path) as store:
        for _ in range(50):
            store.add(case((2, 2, 2)))
        kept = store.cases()
    assert len(kept) == 50
    assert descriptors() <= before + 1


def test_a_disk_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with CaseStore(tmp_path) as store:
        monkeypatch.setattr(store, "_write", full)
        with pytest.raises(OutputError, match=r"cannot hold the prepared case 'case'.*No space left"):
            store.add(case((2, 2, 2)))


def test_a_disk_that_is_too_small_is_refused_beforehand(tmp_path: Path) -> None:
    check_space(1, tmp_path)
    with pytest.raises(OutputError, match=r"need 931\.3 GiB of disk"):
        check_space(10**12, tmp_path)
