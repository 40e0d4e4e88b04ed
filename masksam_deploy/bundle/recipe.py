"""The recipe: how a scan becomes windows for a network, and how the network's scores become a label map.

The runtime interprets a recipe and knows no family of networks. Every choice is a value of a closed set: an unknown
kind or field is refused, because a reader that ignored it would segment wrongly.

The axes of the network's grid are the scan's array axes (z, y, x) after `Grid.transpose`; all lists of three follow
them.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt

from masksam_deploy.base.records import Record

Axis: TypeAlias = Literal[0, 1, 2]

SMALLEST_STEP = 0.05
"""Twenty windows over each voxel along each axis: more take days and add nothing."""
MOST_VOXELS = 2**14
"""Of an axis whose size a recipe states: more take memory without end, whatever the scan."""
_Voxels: TypeAlias = Annotated[int, Field(gt=0, le=MOST_VOXELS)]


class Keep(Record):
    """The axis keeps its number of voxels."""

    kind: Literal["keep"] = "keep"


class Spacing(Record):
    """The axis is sampled at a spacing: `round(size * spacing of the scan / mm)` voxels."""

    kind: Literal["spacing"] = "spacing"
    mm: PositiveFloat


class Count(Record):
    """The axis gets a fixed number of voxels."""

    kind: Literal["count"] = "count"
    voxels: _Voxels


class Longest(Record):
    """The longest of all axes of this kind gets a number of voxels, the others as many in proportion."""

    kind: Literal["longest"] = "longest"
    voxels: _Voxels


AxisSize: TypeAlias = Annotated[Keep | Spacing | Count | Longest, Field(discriminator="kind")]


class Resampling(Record):
    """How one grid becomes another.

    Attributes:
        order: of the spline in the plane.
        order_z: across the plane, where that axis is resampled apart from the others.
        force_separate_z: nnU-Net's switch for anisotropic data; None decides by the spacing.
        coordinates: `centres` aligns the outer edges of the outermost voxels and repeats edge voxels beyond them
            (`scipy.ndimage.zoom(mode="nearest", grid_mode=True)`); `corners` aligns their centres, mirrors beyond them,
            and gives 0 where rounding puts a sample behind the last one (`scipy.ndimage.zoom` as it is by default).
    """

    order: Literal[0, 1, 3]
    order_z: Literal[0, 1, 3]
    force_separate_z: bool | None = None
    coordinates: Literal["centres", "corners"] = "centres"


class Clip(Record):
    """Intensities below `lower` and above `upper` become these."""

    kind: Literal["clip"] = "clip"
    lower: float
    upper: float


class Scale(Record):
    """(v - subtract) / divide."""

    kind: Literal["scale"] = "scale"
    subtract: float = 0.0
    divide: float = 1.0


class ZScore(Record):
    """(v - mean) / max(standard deviation, 1e-8), over the cropped scan.

    Attributes:
        inside_mask: measured and applied where the scan is not zero only, holes filled.
    """

    kind: Literal["z-score"] = "z-score"
    inside_mask: bool = False


class MinMax(Record):
    """The smallest intensity becomes 0, the largest 1.

    Attributes:
        over: what the smallest and the largest are of: the whole (cropped) scan, each slice of axis 0, or each window.
        guard: against dividing by zero: the range is `at-least` epsilon, or epsilon is `added` to it.
        epsilon: 0 gives 0 where all intensities are the same.
    """

    kind: Literal["min-max"] = "min-max"
    over: Literal["scan", "slice", "window"] = "scan"
    guard: Literal["at-least", "added"] = "at-least"
    epsilon: float = Field(default=1e-8, ge=0)


class Quantise(Record):
    """Clipped to 0 and `highest`, then cut off to whole numbers, as a conversion to unsigned integers does."""

    kind: Literal["quantise"] = "quantise"
    highest: PositiveInt = 255


class Within(Record):
    """A scan with intensities outside of the range is refused."""

    kind: Literal["within"] = "within"
    lower: float
    upper: float


Step: TypeAlias = Annotated[Clip | Scale | ZScore | MinMax | Quantise | Within, Field(discriminator="kind")]


class Channel(Record):
    """One input of the network, and what is done to its intensities, in order.

    Attributes:
        name: for people.
        before: on the scan's own grid, cropped.
        after: on the network's grid.
        on_window: to every window when it is cut, its repeated or zero voxels included.
    """

    name: str
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    on_window: tuple[Step, ...] = ()


class Grid(Record):
    """From the scan's grid to the network's.

    Attributes:
        transpose: new axis i is old axis `transpose[i]`.
        flip: new axes whose direction is turned round.
        crop: to the box of voxels that are not zero in any channel, or not at all.
        size: of each new axis.
        resampling: of intensities.
    """

    transpose: tuple[Axis, Axis, Axis] = (0, 1, 2)
    flip: tuple[Axis, ...] = ()
    crop: Literal["nonzero", "none"] = "nonzero"
    size: tuple[AxisSize, AxisSize, AxisSize]
    resampling: Resampling


class Share(Record):
    """Windows are spread evenly over the axis, at most this share of a window apart (nnU-Net's rule)."""

    kind: Literal["share"] = "share"
    share: float = Field(default=0.5, ge=SMALLEST_STEP, le=1)


class Voxels(Record):
    """Windows begin this many voxels apart; the last one ends with the axis."""

    kind: Literal["voxels"] = "voxels"
    voxels: PositiveInt


Advance: TypeAlias = Annotated[Share | Voxels, Field(discriminator="kind")]


class Windows(Record):
    """Where the network runs.

    Attributes:
        advance: from one window to the next, per axis.
        overhang: voxels by which the first and the last window of an axis stand out of the grid.
        edge: what is there, and where an axis is shorter than a window: zeros, or the outermost voxels again.
        weight: of a window's voxels when overlapping windows are averaged.
        mirror_axes: along which the network may be mirrored; none means never.
    """

    advance: tuple[Advance, Advance, Advance] = (Share(), Share(), Share())
    overhang: tuple[int, int, int] = (0, 0, 0)
    edge: Literal["zeros", "repeat"] = "zeros"
    weight: Literal["gaussian", "uniform"] = "gaussian"
    mirror_axes: tuple[Axis, ...] = ()


class Scores(Record):
    """From the network's scores to labels.

    Attributes:
        before_sum: what is done to the scores of a window before windows are averaged.
        bring_back: whether averaged scores are resampled to the scan's grid and then decided, or labels that were
            decided on the network's grid.
        resampling: of what is brought back; of labels, order 0.

    How scores are decided is said with the labels, whose meaning depends on it (`manifest.Labels`).
    """

    before_sum: Literal["none", "softmax", "sigmoid"] = "none"
    bring_back: Literal["scores", "labels"] = "scores"
    resampling: Resampling


class Recipe(Record):
    """All that happens to a scan besides the network."""

    channels: tuple[Channel, ...] = Field(min_length=1)
    grid: Grid
    windows: Windows = Windows()
    scores: Scores

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Of all channels, in their order."""
        return tuple(channel.name for channel in self.channels)
