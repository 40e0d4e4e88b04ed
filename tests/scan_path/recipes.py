"""Recipes to test with."""

from __future__ import annotations

from typing import Any

from masksam_deploy.bundle.recipe import Channel, Grid, Keep, Recipe, Resampling, Scores, Windows

LINEAR = Resampling(order=1, order_z=0)


def recipe_for(*, channels: int = 1, grid: Any = None, windows: Any = None, scores: Any = None, **steps: Any) -> Recipe:
    """nnU-Net's windows and scores, on the scan's own grid, but for what is given.

    Args:
        channels: how many, all with the same steps.
        grid: fields of `Grid`.
        windows: fields of `Windows`.
        scores: fields of `Scores`.
        steps: `before`, `after` and `on_window` of every channel.
    """
    names = [f"channel {index}" for index in range(channels)]
    return Recipe(
        channels=tuple(Channel(name=name, **steps) for name in names),
        grid=Grid(**({"size": (Keep(), Keep(), Keep()), "resampling": LINEAR} | (grid or {}))),
        windows=Windows(**(windows or {})),
        scores=Scores(**({"resampling": LINEAR} | (scores or {}))),
    )
