"""Packages that may be missing or broken, and what is said of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from masksam_deploy.base.errors import BackendError, MissingDependencyError
from masksam_deploy.base.optional import OptionalPackage, require_packages


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> OptionalPackage:
    """A package `name` with a module `inner` that holds `code`."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    (folder / name / "inner.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    return OptionalPackage(f"{name}.inner", "pip-name", "extra", "doing this", "The Package")


def test_a_package_that_works_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = installed(tmp_path, monkeypatch, "works_well", "answer = 42")
    assert package.is_installed
    assert "works_well.inner" not in sys.modules
    package.require()
    assert package.load().answer == 42


@pytest.mark.parametrize("module", ["nowhere_to_be_found", "nowhere_to_be_found.inner", "json.nowhere_to_be_found"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(module: str) -> None:
    package = OptionalPackage(module, "pip-name", "extra", "doing this")
    assert not package.is_installed
    expected = r"^doing this needs 'pip-name', which is not installed; needs: pip install 'masksam-deploy\[extra\]'$"
    with pytest.raises(MissingDependencyError, match=expected):
        package.require()
    with pytest.raises(MissingDependencyError, match=expected):
        package.load()


def test_what_no_extra_brings_is_installed_in_its_own_way() -> None:
    package = OptionalPackage("nowhere_to_be_found", "pip-name", "", "doing this", install=lambda: "sudo apt install x")
    with pytest.raises(MissingDependencyError, match=r"needs: sudo apt install x$"):
        package.load()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import nowhere_to_be_found", "incomplete: No module named 'nowhere_to_be_found'"),
        ("raise ImportError('libx.so: cannot open')", "installed but does not load: libx.so: cannot open"),
        ("raise OSError('libx.so: cannot open')", "installed but does not load: libx.so: cannot open"),
    ],
)
def test_a_package_that_does_not_load_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, what: str
) -> None:
    name = f"broken_{abs(hash(code))}"
    with pytest.raises(BackendError) as caught:
        installed(tmp_path, monkeypatch, name, code).load()
    assert str(caught.value) == (f"The Package is {what}; needs: pip install --force-reinstall 'masksam-deploy[extra]'")


def test_of_several_packages_the_first_that_is_missing_is_named() -> None:
    require_packages("json", "csv", extra="x", purpose="this")
    with pytest.raises(MissingDependencyError, match="this needs 'missing_a'"):
        require_packages("json", "missing_a", "missing_b", extra="x", purpose="this")
