"""Networks fitted to a patch, and how their weights begin."""

from dataclasses import replace

import pytest
import torch

from masksam_deploy.base.errors import DatasetError
from masksam_export.families.masksam import official
from masksam_export.families.masksam.model import MaskSAM
from masksam_export.families.masksam.training.network import (
    NETWORK_NAMES,
    NetworkName,
    default_queries,
    network_config,
    new_network,
    weight_count,
)
from masksam_export.families.masksam.weights import config_from_shapes


def test_the_published_patches_give_the_published_networks() -> None:
    assert network_config("acdc", channels=1, patch=(4, 256, 256), queries=8, classes=4) == official.ACDC
    assert network_config("amos", channels=1, patch=(9, 512, 512), queries=24, classes=16) == official.AMOS
    published = network_config("synapse", channels=1, patch=(26, 256, 256), queries=24, classes=9)
    assert published == official.SYNAPSE


@pytest.mark.parametrize("name", NETWORK_NAMES)
@pytest.mark.parametrize("tokens", [2, 3, 7, 16])
def test_every_size_can_be_read_off_the_weights(name: NetworkName, tokens: int) -> None:
    side = tokens * (4 if name in ("tiny", "acdc") else 16)
    config = network_config(name, channels=2, patch=(5, side, side), queries=4, classes=3)
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in MaskSAM(config).state_dict().items()}
    assert config.patch_side == side
    assert config_from_shapes(shapes) == config


def test_tiny_stays_below_two_million_weights_at_the_demo_s_patch() -> None:
    config = network_config("tiny", channels=1, patch=(4, 64, 64), queries=4, classes=2)
    assert 1_000_000 < weight_count(new_network(config, 0)) < 2_000_000


@pytest.mark.parametrize(
    ("patch", "name"),
    [
        ((4, 102, 102), "tiny"),
        ((4, 64, 60), "tiny"),
        ((4, 4, 4), "tiny"),
        ((4, 2048, 2048), "tiny"),
        ((4, 260, 260), "acdc"),
        ((4, 1040, 1040), "amos"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused(patch: tuple[int, int, int], name: NetworkName) -> None:
    with pytest.raises(DatasetError, match="multiple of"):
        network_config(name, channels=1, patch=patch, queries=4, classes=2)


def test_fewer_queries_than_classes_are_refused() -> None:
    with pytest.raises(DatasetError, match="3 queries cannot stand for 4 classes"):
        network_config("tiny", channels=1, patch=(2, 32, 32), queries=3, classes=4)


@pytest.mark.parametrize(
    ("name", "classes", "queries"),
    [
        ("tiny", 2, 4),
        ("tiny", 3, 5),
        ("tiny", 9, 13),
        ("acdc", 4, 8),
        ("synapse", 9, 24),
        ("amos", 16, 24),
        ("amos", 30, 45),
    ],
)
def test_default_queries_are_the_published_ones_where_they_suffice(
    name: NetworkName, classes: int, queries: int
) -> None:
    assert default_queries(name, classes) == queries


def test_one_seed_gives_one_network_and_leaves_torch_s_own_generator_alone() -> None:
    config = network_config("tiny", channels=1, patch=(2, 32, 32), queries=4, classes=2)
    before = torch.get_rng_state()
    first, second, other = (new_network(config, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_fresh_weights_give_finite_scores_of_moderate_size() -> None:
    config = network_config("tiny", channels=1, patch=(3, 64, 64), queries=4, classes=2)
    model = new_network(replace(config), 0)
    found = model.predict(torch.randn(2, *config.input_shape, generator=torch.Generator().manual_seed(0)))
    for value in (found.logits, found.masks, found.proposals.mask_logits):
        assert float(value.detach().abs().max()) < 50
    assert float(found.masks.detach().std()) > 1e-3
