"""Random maps keep lengths and right angles; intensity changes keep what they promise."""

import pytest
import torch

from masksam_export.families.masksam.training.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    Random,
    change_intensities,
    random_matrix,
    shade,
)


def seeded(seed: int) -> Random:
    return Random(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("isotropic", [False, True])
def test_maps_are_rotations_times_one_scale_within_the_range(isotropic: bool) -> None:
    augmentation = Augmentation(isotropic=isotropic, spatial=1.0)
    low, high = augmentation.scale
    seen = []
    for seed in range(200):
        matrix = random_matrix(augmentation, seeded(seed))
        product = matrix @ matrix.T
        zoom = float(product[1, 1]) ** -0.5
        seen.append(zoom)
        assert low - 1e-5 <= zoom <= high + 1e-5
        if isotropic:
            assert torch.allclose(product, torch.eye(3) / zoom**2, atol=1e-5)
        else:
            assert matrix[0].abs().tolist() == [1, 0, 0]
            assert torch.allclose(product[1:, 1:], torch.eye(2) / zoom**2, atol=1e-5)
    assert min(seen) < low + 0.1
    assert max(seen) > high - 0.1


def test_rotations_keep_lengths_in_millimetres() -> None:
    spacing = (2.0, 0.5, 1.0)
    millimetres = torch.diag(torch.tensor(spacing))
    for seed in range(50):
        augmentation = Augmentation(spacing=spacing, isotropic=True, spatial=1.0, scale=(1.0, 1.0))
        turned = millimetres @ random_matrix(augmentation, seeded(seed)) @ torch.linalg.inv(millimetres)
        assert torch.allclose(turned @ turned.T, torch.eye(3), atol=1e-5)


def test_flips_mirror_only_the_axes_they_may() -> None:
    augmentation = Augmentation(spatial=0.0, flips=(0.0, 0.5, 1.0))
    diagonals = {tuple(random_matrix(augmentation, seeded(seed)).diagonal().tolist()) for seed in range(40)}
    assert diagonals == {(1, 1, -1), (1, -1, -1)}


def test_no_augmentation_changes_nothing() -> None:
    image = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        assert torch.equal(random_matrix(NO_AUGMENTATION, seeded(seed)), torch.eye(3))
        assert torch.equal(change_intensities(image, NO_AUGMENTATION.intensity, seeded(seed)), image)


def test_intensity_changes_are_finite_and_moderate() -> None:
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = [change_intensities(image, 1.0, seeded(seed)) for seed in range(50)]
    for result in changed:
        assert result.shape == image.shape
        assert torch.isfinite(result).all()
        assert 0.05 < float(result.std()) < 4
    assert any(not torch.allclose(result, changed[0]) for result in changed[1:])


def test_channels_keep_units_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.stack(
        [1000 * torch.rand(2, 16, 16, generator=generator), torch.randn(2, 16, 16, generator=generator)]
    )
    for seed in range(50):
        changed = change_intensities(image, 1.0, seeded(seed))[1]
        assert float(changed.mean().abs()) < 1
        assert 0.1 < float(changed.std()) < 4


def test_a_constant_patch_survives_every_intensity_change() -> None:
    for seed in range(20):
        assert torch.isfinite(change_intensities(torch.zeros(1, 2, 8, 8), 1.0, seeded(seed))).all()


def test_shading_is_a_smooth_positive_gain_over_the_darkest_value() -> None:
    image = torch.rand(2, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0, 0] = 0  # the darkest value, so that gains can be read off
    for seed in range(20):
        shaded = shade(image, 0.5, seeded(seed))
        assert torch.equal(shaded == 0, image == 0)
        gain = (shaded / image).nan_to_num(nan=1.0)[0]
        gain[0, 0, 0] = gain[0, 0, 1]
        log_gain = gain.log()
        assert float(log_gain.abs().max()) <= 0.5 * (3 + 4 / 3) + 1e-4
        for axis in (1, 2):
            assert float(log_gain.diff(dim=axis).abs().max()) < 0.5 * 3 * 2 / 23 + 1e-3
        assert float(log_gain[:, 1:].diff(n=2, dim=0).abs().max()) < 1e-3  # along the depth it is a ramp


def test_one_seed_draws_the_same_numbers() -> None:
    first, second = seeded(3), seeded(3)
    assert [first.uniform(0, 1) for _ in range(5)] == [second.uniform(0, 1) for _ in range(5)]
    assert first.index(1000) == second.index(1000)
