"""What `--help` shows of every command, and that it holds: examples can be typed, requests match options."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import click
import pytest
from click.testing import CliRunner

from masksam_deploy.cli import app, values
from masksam_deploy.cli.help import Command, OptionGroup
from masksam_deploy.cli.run_bench import BenchRequest
from masksam_deploy.cli.run_build_engine import BuildEngineRequest
from masksam_deploy.cli.run_compare import CompareRequest
from masksam_deploy.cli.run_evaluate import EvaluateRequest
from masksam_deploy.cli.run_infer import InferRequest
from masksam_deploy.cli.run_sensitivity import SensitivityRequest
from masksam_deploy.engines.choose import Backend
from masksam_deploy.engines.profiles import ProfileName
from masksam_deploy.io.write_labels import LABEL_SUFFIXES
from masksam_deploy.runtimes.base import Device
from masksam_deploy.runtimes.spec import Precision, Target
from masksam_deploy.scan_path.place import ScoresOn
from masksam_deploy.scan_path.windows import Accumulator

COMMANDS = app.list_commands(click.Context(app))
LONG = 10
"""Options of a command from which on they stand under headings."""


def command_of(name: str) -> click.Command:
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command


def commands_typed(examples: str) -> list[list[str]]:
    lines = examples.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_its_own_parser_takes(name: str) -> None:
    command = command_of(name)
    assert isinstance(command, Command)
    typed = [words for example in command.examples.values() for words in commands_typed(example)]
    assert typed
    for words in typed:
        assert words[:2] == ["masksam-deploy", name]
        command.make_context(name, words[2:], parent=click.Context(app))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_the_examples_as_they_are_typed(name: str) -> None:
    command = command_of(name)
    assert isinstance(command, Command)
    text = CliRunner().invoke(app, [name, "--help"]).output
    shown = text[text.index("\nExamples:\n") :]
    for what, typed in command.examples.items():
        assert f"  # {what}\n" in shown
        assert all(f"  {line}\n" in shown and len(line) < 79 for line in typed.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_in_help_once_and_under_headings_where_there_are_many(name: str) -> None:
    command = command_of(name)
    assert isinstance(command, Command)
    options = [param for param in command.params if isinstance(param, click.Option)]
    lines = CliRunner().invoke(app, [name, "--help"]).output.splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith(":") and not line.startswith(" "))
    shown = [line.strip().split("  ")[0].replace(",", " ").split() for line in lines[first:] if line[:3] == "  -"]
    for option in options:
        assert sum(option.opts[-1] in words for words in shown) == 1, option.opts
    assert len(options) < LONG or all(command.heading_of(option) for option in options)
    assert all(option.help for option in options)


def test_help_of_no_command_imports_a_heavy_package() -> None:
    heavy = ["numpy", "pydantic", "SimpleITK", "rich", "torch", "onnx", "onnxruntime", "PIL"]
    code = f"""
import sys
from click.testing import CliRunner
from masksam_deploy.cli import app
for name in {COMMANDS}:
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
    found = [package for package in {heavy} if package in sys.modules]
    assert not found, (name, found)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr


def test_options_without_a_heading_come_last() -> None:
    first, second = OptionGroup("First"), OptionGroup("Second")

    @click.command(cls=Command, examples={"Run it": "tool --plain"})
    @first("--a")
    @click.option("--plain")
    @second("--b")
    @first("--c")
    def tool() -> None:
        """Do nothing."""

    lines = [line.strip().split()[0] for line in CliRunner().invoke(tool, ["--help"]).output.splitlines() if line]
    found = [line for line in lines if line in ("First:", "Second:", "Other", "--a", "--b", "--c", "--plain")]
    assert found == ["First:", "--a", "--c", "Second:", "--b", "Other", "--plain"]


@pytest.mark.parametrize(
    ("name", "request_type", "aside"),
    [
        ("infer", InferRequest, set()),
        ("bench", BenchRequest, {"compared"}),
        ("build-engine", BuildEngineRequest, set()),
        ("compare", CompareRequest, set()),
        ("evaluate", EvaluateRequest, set()),
        ("sensitivity", SensitivityRequest, set()),
    ],
)
def test_a_request_has_a_field_for_every_parameter_and_no_other(name: str, request_type: type, aside: set[str]) -> None:
    parameters = {parameter.name for parameter in command_of(name).params} - aside
    assert {field.name for field in fields(request_type)} == parameters


@pytest.mark.parametrize(
    ("choice", "original"),
    [
        (values.DEVICE, get_args(Device)),
        (values.PRECISION, get_args(Precision)),
        (values.TARGET, get_args(Target)),
        (values.BACKEND, get_args(Backend)),
        (values.ACCUMULATOR, get_args(Accumulator)),
        (values.SCORES_ON, get_args(ScoresOn)),
        (values.PROFILE, get_args(ProfileName)),
        (values.LABEL_SUFFIX, LABEL_SUFFIXES),
    ],
)
def test_choices_of_options_are_those_of_the_run_time(choice: click.Choice[str], original: tuple[str, ...]) -> None:
    assert sorted(choice.choices) == sorted(original)


@pytest.mark.parametrize("fold", ["", "12", "5", "-1", "every"])
def test_folds_that_do_not_exist_are_usage_errors(fold: str) -> None:
    with pytest.raises(click.BadParameter, match="is not one of 0, 1, 2, 3, 4, all"):
        command_of("train").make_context("train", ["data", "-o", "run", "--fold", fold])


def test_choices_of_building_and_measuring_are_those_of_the_code() -> None:
    pytest.importorskip("onnx", reason="needs the 'engines' extra")
    from masksam_deploy.bench.contenders import BaselineMode
    from masksam_deploy.engines.quantisation import Calibrator

    assert tuple(values.CALIBRATOR.choices) == get_args(Calibrator)
    assert tuple(values.BASELINE_MODE.choices) == get_args(BaselineMode)
