"""Finding families of networks, and the one of a checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="part of Python since 3.11")

from masksam_deploy.base.errors import CheckpointError, ExportError
from masksam_export.cli import export_command
from masksam_export.families.base import LoadRequest, Shapes, Trained
from masksam_export.families.masksam.family import FAMILY
from masksam_export.families.registry import GROUP, check_names, choose_family, option_values

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
MASKSAM = {"sam_model.image_encoder.pos_embed": (1, 8, 8, 16), "image_decoder_seg_layers.0.weight": (4, 8, 1, 1, 1)}


class Named:
    """A family that recognises weights whose names begin with its own."""

    title = "an example"

    def __init__(self, name: str, option: click.Option | None = None) -> None:
        self.name = name
        self._option = option

    def options(self) -> Sequence[click.Option]:
        return [] if self._option is None else [self._option]

    def recognises(self, shapes: Shapes) -> bool:
        return any(name.startswith(self.name) for name in shapes)

    def load(self, request: LoadRequest) -> Trained:
        raise NotImplementedError


def test_every_family_of_the_project_is_there_under_its_own_name() -> None:
    points = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    assert points
    for name, value in points.items():
        assert EntryPoint(name, value, GROUP).load().name == name


def test_families_show_their_options_without_anything_that_loads_slowly() -> None:
    code = (
        "import sys; from masksam_export.cli import export_command;"
        "from masksam_export.families.masksam.family import FAMILY;"
        "export_command(lambda: [FAMILY])(['--help'], standalone_mode=False);"
        "print([name for name in ('torch', 'numpy', 'pydantic', 'onnx', 'rich') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Options of masksam" in result.stdout and "--adapters" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_family_that_recognises_a_checkpoint_is_chosen() -> None:
    other = Named("other")
    assert choose_family(MASKSAM, [other, FAMILY], "x.pth") is FAMILY
    assert choose_family({"other.weight": (1,)}, [other, FAMILY], "x.pth") is other


def test_a_checkpoint_of_no_family_names_what_is_in_it_and_what_is_known() -> None:
    with pytest.raises(CheckpointError) as caught:
        choose_family({f"layer.{index}": (1,) for index in range(9)}, [Named("other"), FAMILY], "x.pth")
    message = str(caught.value)
    assert "checkpoint 'x.pth': found 9 weights that no installed family" in message
    assert "(layer.0, layer.1, layer.2, …)" in message
    assert "expected those of other (an example), masksam (" in message
    with pytest.raises(CheckpointError, match="none is installed"):
        choose_family(MASKSAM, [], "x.pth")


def test_a_checkpoint_of_several_families_needs_a_name() -> None:
    families = [Named("oth"), Named("other")]
    shapes = {"other.weight": (1,)}
    with pytest.raises(CheckpointError, match=r"several families recognise \(oth, other\).* --family"):
        choose_family(shapes, families, "x.pth")
    assert choose_family(shapes, families, "x.pth", "oth") is families[0]
    with pytest.raises(ExportError, match="found 'nowhere', expected an installed family of networks: oth"):
        choose_family(shapes, families, "x.pth", "nowhere")


def test_two_families_of_one_name_are_refused() -> None:
    with pytest.raises(ExportError, match="two installed families of networks named 'other'"):
        check_names([Named("other"), FAMILY, Named("other")])


def test_options_that_were_not_given_have_their_defaults() -> None:
    values = option_values(FAMILY, {"configuration": "2d"})
    assert values == {
        "plans": None,
        "dataset": None,
        "configuration": "2d",
        "mirror_axes": None,
        "adapters": "planes",
        "kernels": None,
    }


def test_families_share_an_option_only_if_it_is_the_same() -> None:
    alike = [Named(name, click.Option(["--side"], type=int)) for name in ("one", "two")]
    other = Named("three", click.Option(["--side"], type=str))
    own = Named("four", click.Option(["--force"], is_flag=True))
    help_text = export_command(lambda: alike).get_help(click.Context(export_command(lambda: alike)))
    assert "Options of one, two" in help_text and help_text.count("--side") == 1
    for wrong in ([*alike, other], [own]):
        command = export_command(lambda families=wrong: families)  # type: ignore[misc]
        with pytest.raises(ExportError, match="with another meaning, expected another name"):
            command.get_help(click.Context(command))
