"""nnU-Net's plans and dataset.json, reduced to what inference needs, and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, Field, PositiveFloat, ValidationError, model_validator

from masksam_deploy.base.errors import CheckpointError
from masksam_deploy.base.records import OpenRecord, Record
from masksam_deploy.base.text import one_line
from masksam_deploy.bundle.manifest import Labels
from masksam_deploy.bundle.nnunet import Normalization, NormalizationScheme, Preprocessing, SplineOrders
from masksam_export.torch_files.quoting import quoted, some

RESAMPLING_FUNCTION = "resample_data_or_seg_to_shape"
# Readers that keep the array as stored. NibabelIOWithReorient turns it to RAS: its models see other axes.
READERS = ("SimpleITKIO", "NibabelIO")
MAX_ENTRIES = 10_000
"""Values in one entry of a plan or dataset.json that is used here; official ones have a few hundred."""
MAX_ANCESTORS = 32

_Model = TypeVar("_Model", bound=BaseModel)


class _Lenient(OpenRecord):
    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, data: Any) -> Any:
        """Before pydantic makes an error of every one of a million wrong values."""
        used = [name for name in cls.model_fields if name in data] if isinstance(data, Mapping) else []
        for name in used:
            if _count(data[name]) > MAX_ENTRIES:
                raise ValueError(f"'{name}' has more than {MAX_ENTRIES:,} values")
        return data


class _Intensities(_Lenient):
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class _ResamplingKwargs(Record):
    """With the defaults of nnU-Net's `resample_data_or_seg_to_shape`; arguments unknown here would be ignored."""

    is_seg: bool = False
    order: int = 3
    order_z: int = 0
    force_separate_z: bool | None = False
    separate_z_anisotropy_threshold: float = Field(default=3, ge=3, le=3)


class _Configuration(_Lenient):
    patch_size: tuple[int, ...]
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    preprocessor_name: str = "DefaultPreprocessor"
    normalization_schemes: tuple[NormalizationScheme, ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: str = RESAMPLING_FUNCTION
    resampling_fn_data_kwargs: _ResamplingKwargs
    resampling_fn_probabilities: str = RESAMPLING_FUNCTION
    resampling_fn_probabilities_kwargs: _ResamplingKwargs
    previous_stage: str | None = None
    architecture: dict[str, Any] = Field(default_factory=dict)


class _Plans(_Lenient):
    image_reader_writer: str = "SimpleITKIO"
    transpose_forward: tuple[int, int, int]
    configurations: dict[str, dict[str, Any]]
    foreground_intensity_properties_per_channel: dict[str, _Intensities] = Field(default_factory=dict)


class _Dataset(_Lenient):
    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    """The name of `channel_names` before nnU-Net v2."""
    labels: dict[str, int | list[int]]
    regions_class_order: list[int] | None = None


class Plan:
    """One configuration of a plan, with its dataset.

    Raises:
        CheckpointError: something is missing, malformed, or asks for what this project does not do.
    """

    def __init__(self, plans: Mapping[str, Any], dataset: Mapping[str, Any], configuration: str) -> None:
        self.name = configuration
        self._plans = _parse(_Plans, plans, "plans")
        self._dataset = _parse(_Dataset, dataset, "dataset.json")
        merged = _inherit(self._plans.configurations, configuration)
        self._configuration = _parse(_Configuration, merged, f"plans, configuration '{one_line(configuration)}'")
        self._refuse_unsupported()

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Window size in voxels, transposed axis order."""
        return self._configuration.patch_size

    @property
    def norm_eps(self) -> float:
        """Epsilon of the plan's instance norms."""
        return self._arch_number("norm_op_kwargs", "eps", 1e-5)

    @property
    def leaky_slope(self) -> float:
        """Negative slope of the plan's LeakyReLU."""
        return self._arch_number("nonlin_kwargs", "negative_slope", 0.01)

    def preprocessing(self) -> Preprocessing:
        """Everything that turns a scan into network input."""
        plan, chosen = self._plans, self._configuration
        names = self._channel_names()
        schemes = tuple(zip(chosen.normalization_schemes, chosen.use_mask_for_norm, strict=True))
        if len(names) != len(schemes):
            raise CheckpointError(
                f"dataset.json names {len(names)} channels ({some(names)}), the plan normalises {len(schemes)}; "
                "expected as many"
            )
        return Preprocessing(
            channel_names=names,
            transpose_forward=plan.transpose_forward,
            spacing=chosen.spacing,
            normalization=tuple(self._normalization(i, *scheme) for i, scheme in enumerate(schemes)),
            resample_data=_resampling(chosen.resampling_fn_data_kwargs, "resampling_fn_data_kwargs"),
            resample_scores=_resampling(
                chosen.resampling_fn_probabilities_kwargs, "resampling_fn_probabilities_kwargs"
            ),
        )

    def labels(self) -> Labels:
        """Output classes in the network's order."""
        entries = {name: value for name, value in self._dataset.labels.items() if name != "ignore"}
        if any(isinstance(value, list) for value in entries.values()):
            return self._region_labels(entries)
        values = {name: value for name, value in entries.items() if isinstance(value, int)}
        ordered = sorted(values.items(), key=lambda item: item[1])
        if [value for _, value in ordered] != list(range(len(ordered))):
            raise CheckpointError(
                f"label values are {quoted([v for _, v in ordered])}, expected 0..{len(ordered) - 1} without gaps: "
                "the network's class index is what nnU-Net writes"
            )
        return _labels("argmax", ordered)

    def _region_labels(self, entries: Mapping[str, int | list[int]]) -> Labels:
        """Regions overlap; each paints one value, in `regions_class_order`."""
        order = self._dataset.regions_class_order
        regions = [name for name, value in entries.items() if value not in (0, [0])]
        if order is None or len(order) != len(regions):
            raise CheckpointError(
                f"dataset.json has {len(regions)} regions but regions_class_order is {quoted(order)}; expected one "
                "value each"
            )
        return _labels("regions", zip(regions, order, strict=True))

    def _channel_names(self) -> tuple[str, ...]:
        names = self._dataset.channel_names or self._dataset.modality
        if not names:
            raise CheckpointError("dataset.json has neither 'channel_names' nor 'modality'; expected one of them")
        try:
            return tuple(names[str(i)] for i in range(len(names)))
        except KeyError as missing:
            raise CheckpointError(
                f"dataset.json names channels {some(sorted(names))}, expected the keys '0'..'{len(names) - 1}'"
            ) from missing

    def _normalization(self, channel: int, scheme: NormalizationScheme, use_mask: bool) -> Normalization:
        if scheme != "CTNormalization":
            return Normalization(scheme=scheme, use_mask=use_mask and scheme == "ZScoreNormalization")
        constants = self._plans.foreground_intensity_properties_per_channel.get(str(channel))
        if constants is None:
            raise CheckpointError(
                f"channel {channel} uses CTNormalization but the plans have no "
                f"foreground_intensity_properties_per_channel['{channel}']"
            )
        return Normalization(
            scheme=scheme,
            lower=constants.percentile_00_5,
            upper=constants.percentile_99_5,
            mean=constants.mean,
            std=constants.std,
        )

    def _arch_number(self, group: str, key: str, default: float) -> float:
        arguments = self._configuration.architecture.get("arch_kwargs")
        values = arguments.get(group) if isinstance(arguments, dict) else None
        value = values.get(key, default) if isinstance(values, dict) else default
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise CheckpointError(f"plans: {group}.{key} is {quoted(value)}, expected a number from 0 to 1")
        return float(value)

    def _refuse_unsupported(self) -> None:
        plan, chosen = self._plans, self._configuration
        if plan.image_reader_writer not in READERS:
            raise CheckpointError(
                f"the plan reads images with '{one_line(plan.image_reader_writer)}'; only {' and '.join(READERS)} keep "
                "the axes as stored, which is what this project reproduces"
            )
        if chosen.preprocessor_name != "DefaultPreprocessor":
            raise CheckpointError(
                f"preprocessor '{one_line(chosen.preprocessor_name)}' is unknown; expected DefaultPreprocessor"
            )
        if chosen.previous_stage is not None:
            raise CheckpointError(
                f"configuration '{one_line(self.name)}' is a cascade's second stage, which is not supported"
            )
        for function in (chosen.resampling_fn_data, chosen.resampling_fn_probabilities):
            if function != RESAMPLING_FUNCTION:
                raise CheckpointError(
                    f"resampling function '{one_line(function)}' is unknown; expected {RESAMPLING_FUNCTION}"
                )
        if len(chosen.use_mask_for_norm) != len(chosen.normalization_schemes):
            raise CheckpointError("plans: normalization_schemes and use_mask_for_norm have different lengths")


def _count(value: Any) -> int:
    """How many values there are in a value, up to a few more than `MAX_ENTRIES`."""
    total, waiting = 0, [value]
    while waiting and total <= MAX_ENTRIES:
        inner = waiting.pop()
        items = inner.values() if isinstance(inner, Mapping) else inner if isinstance(inner, list | tuple) else ()
        total += len(items)
        if total <= MAX_ENTRIES:
            waiting.extend(items)
    return total


def _inherit(configurations: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """nnU-Net lets a configuration inherit from another; the child's entries win."""
    chain: dict[str, dict[str, Any]] = {}
    current: object = name
    while current is not None:
        if not isinstance(current, str) or current not in configurations or current in chain:
            raise CheckpointError(
                f"the plans have no usable configuration {quoted(current)}; found {some(sorted(configurations))}: "
                "choose one with --configuration"
            )
        if len(chain) == MAX_ANCESTORS:
            raise CheckpointError(
                f"configuration '{one_line(name)}' inherits from more than {MAX_ANCESTORS} others, expected a few: "
                "choose one with --configuration"
            )
        chain[current] = configurations[current]
        current = configurations[current].get("inherits_from")
    return {key: value for layer in reversed(chain.values()) for key, value in layer.items()}


def _labels(decision: str, named: Iterable[tuple[str, int]]) -> Labels:
    classes = [{"name": name, "value": value} for name, value in named]
    return _parse(Labels, {"decision": decision, "classes": classes}, "dataset.json, labels")


def _resampling(kwargs: _ResamplingKwargs, name: str) -> SplineOrders:
    return _parse(SplineOrders, kwargs.model_dump(include={"order", "order_z", "force_separate_z"}), f"plans, {name}")


def _parse(model: type[_Model], data: Mapping[str, Any], source: str) -> _Model:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"'{one_line(where)}': {one_line(first['msg'].lower(), limit=300)}, found {quoted(first['input'])}"
        problem = found if where else one_line(first["msg"], limit=300)
        raise CheckpointError(
            f"{source}: {problem}; expected what nnU-Net writes: correct it, or pass --plans and --dataset"
        ) from error
