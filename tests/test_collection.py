"""Which tests are left out where there is no GPU and no time."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

MODULE = """
import pytest

def test_plain():
    pass

@pytest.mark.gpu
def test_marked():
    pass
"""


@pytest.mark.parametrize("folder", ["gpu", "slow"])
def test_that_only_marked_tests_are_left_out_whatever_their_folder_is_called(
    folder: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a driver on the path, as on most machines."""
    monkeypatch.setenv("PATH", "")
    pytester.makeini("[pytest]\nmarkers = gpu: needs one\n    slow: takes long")
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.mkdir(folder).joinpath("test_two.py").write_text(MODULE, encoding="utf-8")
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1, skipped=1)
