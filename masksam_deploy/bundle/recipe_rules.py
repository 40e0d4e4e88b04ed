"""How the fields of a recipe must fit together, and to the network's window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.recipe import (
    SMALLEST_STEP,
    Channel,
    Clip,
    Grid,
    MinMax,
    Recipe,
    Resampling,
    Scale,
    Step,
    Voxels,
    Windows,
    Within,
    ZScore,
)

_MOST_OVERLAP = round(1 / SMALLEST_STEP)
"""Windows that may lie over one voxel along an axis."""


def recipe_problems(recipe: Recipe, labels: Labels, patch: Sequence[int]) -> Iterator[str]:
    """What the fields contradict each other in, a line each.

    Args:
        recipe: of a bundle.
        labels: of the same bundle.
        patch: voxels of a window along each axis; not three if the graphs do not say.
    """
    for index, channel in enumerate(recipe.channels):
        yield from _channel_problems(channel, f"field 'recipe.channels.{index}")
    yield from _grid_problems(recipe.grid)
    yield from _resampling_problems(recipe.scores.resampling, "field 'recipe.scores.resampling'")
    if len(patch) == 3:
        yield from _window_problems(recipe.windows, patch)
    if len(set(recipe.windows.mirror_axes)) < len(recipe.windows.mirror_axes):
        yield f"{_axes('windows.mirror_axes', recipe.windows.mirror_axes)}, expected each axis at most once"
    scores = recipe.scores
    if scores.bring_back == "labels" and (scores.resampling.order, scores.resampling.order_z) != (0, 0):
        yield "field 'recipe.scores.resampling': found a spline between label values, expected order 0 for labels"
    if labels.decision == "regions" and scores.before_sum == "softmax":
        yield "field 'recipe.scores.before_sum': found 'softmax' for overlapping regions, expected 'none' or 'sigmoid'"


def _channel_problems(channel: Channel, field: str) -> Iterator[str]:
    for stage, steps in (("before", channel.before), ("after", channel.after), ("on_window", channel.on_window)):
        for number, step in enumerate(steps):
            for problem in _step_problems(step, stage):
                yield f"{field}.{stage}.{number}': found {problem}"


def _step_problems(step: Step, stage: str) -> Iterator[str]:
    if isinstance(step, (Clip, Within)) and step.lower >= step.upper:
        yield f"lower {step.lower:g} and upper {step.upper:g}, expected lower below upper"
    if isinstance(step, Scale) and step.divide <= 0:
        yield f"divide {step.divide:g}, expected more than 0"
    if isinstance(step, ZScore) and stage != "before":
        yield "a z-score, expected it on the scan's own grid ('before')"
    if isinstance(step, Within) and stage != "before":
        yield "a check of the scan's range, expected it on the scan's own grid ('before')"
    if isinstance(step, MinMax) and (step.over == "window") != (stage == "on_window"):
        yield f"min-max over each {step.over}, expected over windows in 'on_window' and nowhere else"


def _grid_problems(grid: Grid) -> Iterator[str]:
    if sorted(grid.transpose) != [0, 1, 2]:
        yield f"{_axes('grid.transpose', grid.transpose)}, expected each of 0, 1 and 2 once"
    if len(set(grid.flip)) < len(grid.flip):
        yield f"{_axes('grid.flip', grid.flip)}, expected each axis at most once"
    yield from _resampling_problems(grid.resampling, "field 'recipe.grid.resampling'")


def _resampling_problems(resampling: Resampling, field: str) -> Iterator[str]:
    if resampling.coordinates == "corners" and (
        resampling.force_separate_z is not None or resampling.order != resampling.order_z
    ):
        yield f"{field}: found an axis apart from the others, expected none where corners are aligned"


def _window_problems(windows: Windows, patch: Sequence[int]) -> Iterator[str]:
    for axis, (advance, overhang, size) in enumerate(zip(windows.advance, windows.overhang, patch, strict=True)):
        if not 0 <= overhang < size:
            yield (
                f"field 'recipe.windows.overhang.{axis}': found {overhang} for windows of {size} voxels, expected 0 to "
                f"{size - 1}"
            )
        if isinstance(advance, Voxels) and not size <= advance.voxels * _MOST_OVERLAP <= size * _MOST_OVERLAP:
            yield (
                f"field 'recipe.windows.advance.{axis}': found {advance.voxels} voxels for windows of {size}, expected "
                f"{-(-size // _MOST_OVERLAP)} to {size}"
            )


def _axes(field: str, axes: Sequence[int]) -> str:
    return f"field 'recipe.{field}': found {list(axes)}"
