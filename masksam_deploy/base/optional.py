"""Packages that only some uses need: looked for, loaded, and named with what installs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from masksam_deploy.base.errors import BackendError, MissingDependencyError
from masksam_deploy.base.text import one_line


@dataclass(frozen=True)
class OptionalPackage:
    """A package that may not be installed.

    Attributes:
        module: what is imported, such as `PIL.Image`.
        package: its name for pip.
        extra: of masksam-deploy, which brings it.
        purpose: what needs it, to begin a sentence with.
        title: its name for people, if that is not the package's.
        install: what to do instead where no extra of ours brings it; asked only when something is wrong.
    """

    module: str
    package: str
    extra: str
    purpose: str
    title: str = ""
    install: Callable[[], str] | None = None

    @property
    def is_installed(self) -> bool:
        """Whether Python finds the module; it is not loaded, except packages that contain it."""
        try:
            return find_spec(self.module) is not None
        except ModuleNotFoundError:  # of a package that contains it
            return False

    def require(self) -> None:
        """Say now, before long work, that it is missing.

        Raises:
            MissingDependencyError: it is not installed.
        """
        if not self.is_installed:
            raise self.missing()

    def load(self) -> Any:
        """Import the module.

        Raises:
            MissingDependencyError: it is not installed.
            BackendError: it is installed and does not load.
        """
        try:
            import_module(self.module.partition(".")[0])  # else a submodule that is loaded is found without it
            return import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{self.module}.".startswith(f"{error.name}."):
                raise self.missing() from error
            raise self._broken("incomplete", error) from error
        except (ImportError, OSError) as error:
            raise self._broken("installed but does not load", error) from error

    def missing(self) -> MissingDependencyError:
        """The error that says what to install."""
        return MissingDependencyError(self.package, self.extra, self.purpose, self.install and self.install())

    def _broken(self, what: str, error: ImportError | OSError) -> BackendError:
        remedy = self.install() if self.install else f"pip install --force-reinstall 'masksam-deploy[{self.extra}]'"
        reason = one_line(str(error), limit=300)
        return BackendError(f"{self.title or self.package} is {what}: {reason}; needs: {remedy}")


def require_packages(*packages: str, extra: str, purpose: str) -> None:
    """Say now, before long work, which package is missing; each is imported by its own name.

    Raises:
        MissingDependencyError: names the first that is not installed.
    """
    for package in packages:
        OptionalPackage(package, package, extra, purpose).require()
