"""The network in PyTorch, behind the same protocol as the runtimes: what benchmarks compare with.

It is the network that the family's graphs are traced from. MaskSAM's already leaves out the multiplications that exact
rewrites of the encoder and the decoder save; the authors' own form is slower (`benchmarks/encoder_rewrites.py`). It
runs in float32 ("eager"), with
automatic mixed precision on a GPU ("amp"), or compiled ("compile"). The runtime finds `open_baseline` through an entry
point.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from masksam_deploy.base.errors import BackendError, CheckpointError
from masksam_deploy.base.text import one_line, shown
from masksam_deploy.base.threads import usable_cores
from masksam_deploy.bench.contenders import BaselineMode
from masksam_deploy.bundle.directory import Bundle, file_digest
from masksam_deploy.bundle.manifest import Graph, Port
from masksam_deploy.runtimes import Device, GraphChain
from masksam_deploy.runtimes.base import IMAGE, SCORES, Tensors
from masksam_export.families.registry import Families, installed_families, load_trained

NETWORK = "network"
"""The name of the only stage."""


def open_baseline(
    checkpoint: Path,
    bundle: Bundle,
    mode: BaselineMode,
    *,
    device: Device = "cpu",
    threads: int | None = None,
    families: Families = installed_families,
) -> GraphChain:
    """Load the checkpoint that a bundle was exported from.

    Args:
        checkpoint: that file.
        bundle: whose window and classes the network has.
        mode: how the network runs; see the module.
        device: where it runs.
        threads: see `torch_chain`.
        families: gives the families of networks to choose from.

    Raises:
        CheckpointError: it cannot be read, or the bundle was exported from another one.
        BackendError: the device or mode is not available.
    """
    expected = bundle.manifest.provenance.source_sha256
    found = _digest(checkpoint)
    if found is not None and found != expected:
        raise CheckpointError(
            f"{shown(checkpoint)}: found SHA-256 {found[:12]}…, expected {expected[:12]}… from which the bundle was "
            f"exported ({one_line(bundle.manifest.provenance.source_name)}); name that checkpoint"
        )
    module = load_trained(checkpoint, families=families).module
    return torch_chain(module, _ends(bundle), mode, device=device, threads=threads)


def _digest(checkpoint: Path) -> str | None:
    """None where there is no file, which `load_checkpoint` says."""
    try:
        return file_digest(checkpoint).sha256 if checkpoint.is_file() else None
    except OSError as error:
        raise CheckpointError(
            f"{shown(checkpoint)}: found a checkpoint that cannot be read ({error.strerror}), expected a readable "
            "file; check its permissions and the disk"
        ) from error


def _ends(bundle: Bundle) -> tuple[Port, Port]:
    """What goes into a bundle's chain, and what comes out."""
    graphs = bundle.manifest.graphs
    inputs = {port.name: port for graph in graphs for port in graph.inputs}
    outputs = {port.name: port for graph in graphs for port in graph.outputs}
    return inputs[IMAGE], outputs[SCORES]


def torch_chain(
    module: nn.Module,
    ends: tuple[Port, Port],
    mode: BaselineMode = "eager",
    *,
    device: Device = "cpu",
    threads: int | None = None,
) -> GraphChain:
    """A network as a chain of one stage.

    Args:
        module: the network, `image` to `semseg`.
        ends: the ports of both.
        mode: how the network runs; see the module.
        device: where it runs.
        threads: of PyTorch, for the whole process; by default all cores that it may use.

    Raises:
        BackendError: the device or mode is not available.
    """
    session = TorchSession(module, mode, device, threads)
    graph = Graph(name=NETWORK, file="none", inputs=ends[:1], outputs=ends[1:])
    return GraphChain([(graph, session)], {NETWORK: "fp16" if mode == "amp" else "fp32"})


class TorchSession:
    """See `Session`. A window goes to the device and back within `run`. AMP has not run on a GPU yet."""

    def __init__(self, model: nn.Module, mode: BaselineMode, device: Device, threads: int | None) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError(
                f"device 'cuda' was asked for, but PyTorch {torch.__version__} finds no GPU; install a build for it, "
                "or measure on the cpu"
            )
        if mode == "amp" and device == "cpu":
            raise BackendError("mode 'amp' was asked for on the cpu, expected a GPU; leave it out or use --device cuda")
        # Always set: OMP_NUM_THREADS limits PyTorch and not ONNX Runtime, and the comparison would be unfair.
        torch.set_num_threads(threads or usable_cores())
        if device == "cuda":  # PyTorch's default for convolutions is TF32: not float32, and not what it is held to
            torch.backends.cudnn.allow_tf32 = False
        self.device: Device = device
        self._device = torch.device(device)
        self._mixed = mode == "amp"
        model = model.eval().requires_grad_(False).to(self._device)
        self._model: Callable[[Tensor], Tensor] | None = torch.compile(model) if mode == "compile" else model
        self.provider = f"PyTorch {torch.__version__} {mode} on {device}, threads: {torch.get_num_threads()}"

    def run(self, feeds: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Session.run`."""
        if self._model is None:
            raise BackendError("the network is closed; open it again")
        try:
            with torch.inference_mode(), self._precision():
                scores = self._model(torch.from_numpy(feeds[IMAGE]).to(self._device))
                return {SCORES: scores.float().cpu().numpy()}
        except RuntimeError as error:
            raise BackendError(f"the network failed in PyTorch: {one_line(str(error), 300)}") from error

    def close(self) -> None:
        """See `Session.close`."""
        self._model = None

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.float16) if self._mixed else nullcontext()
