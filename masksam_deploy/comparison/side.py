"""One side of a comparison: a bundle, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass

from masksam_deploy.base.errors import BundleError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.engines.choose import Backend, open_network
from masksam_deploy.runtimes import Device
from masksam_deploy.runtimes.spec import Precision
from masksam_deploy.scan_path.report import label_names
from masksam_deploy.scan_path.segmenter import Segmenter
from masksam_deploy.scan_path.windows import Accumulator


@dataclass(frozen=True)
class Side:
    """A bundle and how it is run; the defaults are those of `Segmenter`.

    Attributes:
        bundle: verified.
        device, backend, precision: which engine runs; float32 in ONNX Runtime are the bundle's own graphs.
        accumulator: number type in which class scores are summed.
        tta: whether to average over mirrored windows, where the bundle allows it.
    """

    bundle: Bundle
    device: Device = "cpu"
    backend: Backend = "onnxruntime"
    precision: Precision | None = "fp32"
    accumulator: Accumulator = "float32"
    tta: bool = True

    def open(self, *, threads: int | None = None, max_ram: int | None = None) -> Segmenter:
        """Open the network of this side.

        Args:
            threads: CPU threads for the network; by default all cores.
            max_ram: bytes of memory that a scan may use besides the network; None for no limit.

        Returns:
            A segmenter, which the caller closes.

        Raises:
            BundleError, BackendError, MissingDependencyError: as `Segmenter`.
            EngineError: there is no valid engine of this backend and precision.
        """
        network, _ = open_network(self.bundle, self.backend, self.precision, device=self.device, threads=threads)
        return Segmenter(
            self.bundle,
            device=self.device,
            network=network,
            tta=self.tta,
            accumulator=self.accumulator,
            max_ram=max_ram,
        )

    @property
    def label_names(self) -> dict[int, str]:
        """The names of the label values of this side."""
        return label_names(self.bundle.manifest.labels)

    @property
    def title(self) -> str:
        """One line about the bundle and how it is run."""
        mirrored = "mirrored" if self.tta and self.bundle.manifest.mirror_axes else "not mirrored"
        name = one_line(self.bundle.manifest.name)
        runs = f"{self.backend} {self.precision or 'best precision'} on {self.device}"
        return f"{name} ({shown(self.bundle.path)}), {runs}, {self.accumulator} accumulator, {mirrored}"


def check_comparable(a: Side, b: Side) -> None:
    """Refuse sides with different labels, and bundles that need several files per scan.

    Args:
        a, b: the two sides.

    Raises:
        BundleError: the message names the difference.
    """
    for side in (a, b):
        channels = side.bundle.channels
        if channels != 1:
            raise BundleError(
                f"{shown(side.bundle.path)}: found a model of {channels} input channels, expected one; run "
                "'masksam-deploy infer' with both bundles and compare the label maps with 'masksam-deploy evaluate'"
            )
    names_a, names_b = a.label_names, b.label_names
    for value in sorted(names_a.keys() | names_b.keys()):
        if names_a.get(value) != names_b.get(value):
            raise BundleError(
                f"{shown(b.bundle.path)}: found label {value} {_named(names_b.get(value))}, expected "
                f"{_named(names_a.get(value))} as in {shown(a.bundle.path)}; compare bundles of the same labels"
            )


def _named(name: str | None) -> str:
    return "missing" if name is None else f"called '{one_line(name)}'"
