"""The network in PyTorch behind the runtimes' protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the 'export' extra")
pytest.importorskip("onnxruntime", reason="needs the 'cpu' extra")

import torch

from masksam_deploy.base.errors import BackendError, CheckpointError
from masksam_deploy.bundle.directory import Bundle
from masksam_deploy.bundle.manifest import Port
from masksam_deploy.metrics.parity import compare_scores
from masksam_deploy.runtimes import open_chain
from masksam_export.baseline import open_baseline, torch_chain
from masksam_export.families.masksam.family import FAMILY
from masksam_export.families.masksam.graphs import image_port, semseg_port
from masksam_export.families.masksam.model import MaskSAM
from tests.export.golden import Golden


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """PyTorch's threads are the whole process's: other tests get them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ends(model: MaskSAM) -> tuple[Port, Port]:
    return image_port(model.config), semseg_port(model.config)


def test_it_computes_what_the_bundle_computes(cardiac_bundle: Path, cardiac_case: Path) -> None:
    bundle = Bundle.load(cardiac_bundle)
    window = np.random.default_rng(0).standard_normal((1, bundle.channels, *bundle.patch_size)).astype(np.float32)
    checkpoint = cardiac_case / "checkpoint_final.pth"
    with (
        open_baseline(checkpoint, bundle, "eager", threads=1, families=lambda: [FAMILY]) as network,
        open_chain(bundle, threads=1) as graphs,
    ):
        parity = compare_scores(network(window), graphs(window), "argmax", tie_margin=1e-4)
        assert parity.max_abs_error < 1e-3 and parity.decided_agreement == 1.0
        assert network.providers == {"network": f"PyTorch {torch.__version__} eager on cpu, threads: 1"}
        assert (network.precision, network.engine) == ("float32", None)


def test_another_checkpoint_than_the_bundles_is_refused(cardiac_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"another one")
    with pytest.raises(CheckpointError, match=r"expected [0-9a-f]{12}… from which the bundle was exported"):
        open_baseline(other, Bundle.load(cardiac_bundle), "eager")
    with pytest.raises(CheckpointError):
        open_baseline(tmp_path / "missing.pth", Bundle.load(cardiac_bundle), "eager")


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="a file that cannot be read is at hand on Linux only")
def test_a_checkpoint_that_the_system_does_not_read_is_refused(cardiac_bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="found a checkpoint that cannot be read"):
        open_baseline(Path("/proc/self/mem"), Bundle.load(cardiac_bundle), "eager")


def test_what_this_machine_cannot_do_is_refused() -> None:
    model = Golden.read("tiny_acdc").model()
    with pytest.raises(BackendError, match="expected a GPU"):
        torch_chain(model, ends(model), "amp")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="finds no GPU"):
            torch_chain(model, ends(model), device="cuda")


def test_a_failing_or_closed_network_is_an_error_of_the_backend() -> None:
    model = Golden.read("tiny_acdc").model()
    network = torch_chain(model, ends(model))
    with pytest.raises(BackendError, match="failed in PyTorch"):
        network(np.zeros((1, 7, 2, 3, 5), np.float32))
    network.close()
    with pytest.raises(BackendError, match="closed"):
        network(np.zeros((1, *model.config.input_shape), np.float32))


@pytest.mark.gpu
def test_mixed_precision_on_a_gpu_agrees_with_float32() -> None:
    """Not yet run on a GPU."""
    model = Golden.read("tiny_acdc").model()
    window = np.random.default_rng(0).standard_normal((1, *model.config.input_shape)).astype(np.float32)
    expected = torch_chain(model, ends(model))(window)
    with torch_chain(Golden.read("tiny_acdc").model(), ends(model), "amp", device="cuda") as network:
        assert compare_scores(network(window), expected, "argmax", tie_margin=1e-2).decided_agreement > 0.99
