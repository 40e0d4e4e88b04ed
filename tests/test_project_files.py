"""What pyproject.toml, the Makefile's `check` and the commit hooks promise about the project's own files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")

yaml = pytest.importorskip("yaml", reason="needs the 'dev' extra")
pytest.importorskip("towncrier", reason="needs the 'dev' extra")

ROOT = Path(__file__).parents[1]
HOOKS_ALONE = {
    "trailing-whitespace",
    "end-of-file",
    "toml",
    "yaml",
    "json",
    "merge-conflict",
    "executables",
    "large-files",
}
"""Hooks that `make check` has no step for."""


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content


def test_that_types_and_style_are_checked_for_the_oldest_python_that_is_supported(settings: dict[str, Any]) -> None:
    oldest = settings["project"]["requires-python"].removeprefix(">=")
    assert settings["tool"]["mypy"]["python_version"] == oldest
    assert settings["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    return list(repository["hooks"])


@pytest.mark.parametrize("hook", hooks(), ids=lambda hook: hook["id"])
def test_that_every_commit_hook_runs_from_the_environment_without_network(hook: dict[str, Any]) -> None:
    assert hook["language"] == "system"
    program = Path(hook["entry"].split()[0])
    assert program.parent == Path(".venv/bin")
    assert shutil.which(program.name, path=str(Path(sys.executable).parent)), (
        f"{program.name} is not in the 'dev' extra"
    )


def test_that_commits_are_held_to_all_that_make_check_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = re.search(r"^check: (.+)$", makefile, re.MULTILINE)
    assert steps
    recipes = [re.search(rf"^{step}:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE) for step in steps[1].split()]
    programs = {program for recipe in recipes if recipe for program in re.findall(r"\$\(BIN\)/(\S+)", recipe[1])}
    assert programs == {Path(h["entry"].split()[0]).name for h in hooks() if h["id"] not in HOOKS_ALONE}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("18.added.md", True),
        ("18.fixed.2.md", True),
        ("+region-models.fixed.md", True),
        ("README.md", True),
        ("18.improved.md", False),
        ("someone.added.md", False),
        ("news.md", False),
    ],
)
def test_that_news_fragments_are_called_after_an_issue_and_a_type(tmp_path: Path, name: str, good: bool) -> None:
    for kept in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / kept, tmp_path)
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "changelog.d" / name).write_text("Somebody notices this.\n", encoding="utf-8")
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "unreleased"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == good, done.stderr
    assert ("Somebody notices this." in done.stdout) == (good and name != "README.md")
