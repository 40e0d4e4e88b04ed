"""Patches hold the scan's own voxels where nothing is turned, and labels stay on their voxels where it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masksam_deploy.base.volume import Geometry
from masksam_deploy.scan_path.frame import ScanFrame
from masksam_export.families.masksam.training.augmentation import NO_AUGMENTATION, Augmentation
from masksam_export.families.masksam.training.cases import PreparedCase
from masksam_export.families.masksam.training.patches import PatchSampler, Source, cut
from masksam_export.families.masksam.training.targets import PADDING


def case(shape: tuple[int, int, int], labels: np.ndarray | None = None) -> PreparedCase:
    """Every voxel has its own intensity, and by default label 0."""
    image = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(1, *shape)
    geometry = Geometry((shape[2], shape[1], shape[0]), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    z, y, x = shape
    frame = ScanFrame(geometry, (0, 1, 2), ((0, z), (0, y), (0, x)), (1, 1, 1), (1, 1, 1), shape)
    array = np.zeros(shape, np.int8) if labels is None else labels.astype(np.int8)
    return PreparedCase("case", image, array, None, frame)


def sampler(
    cases: list[PreparedCase],
    patch: tuple[int, int, int],
    augmentation: Augmentation = NO_AUGMENTATION,
    foreground: float = 0.0,
    seed: int = 0,
) -> PatchSampler:
    return PatchSampler(
        [Source.of(case) for case in cases], patch, augmentation, foreground, torch.Generator().manual_seed(seed)
    )


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_an_unturned_patch_is_a_block_of_the_scan_padded_as_in_inference(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    source = case(shape)
    drawn = sampler([source], patch, seed=seed).draw()
    inside = drawn.labels != PADDING
    # Axes shorter than the patch are padded, the smaller half first; longer ones never.
    for axis, (size, side) in enumerate(zip(shape, patch, strict=True)):
        occupied = inside.any(dim=tuple(other for other in range(3) if other != axis)).nonzero().flatten().tolist()
        low = max(side - size, 0) // 2
        assert occupied == list(range(low, low + min(size, side)))
    values = drawn.image[0][inside]
    whole = torch.from_numpy(source.image[0])
    start = tuple((whole - values[0]).abs().flatten().argmin().reshape(1).tolist())
    z, y, x = np.unravel_index(start[0], shape)
    depth, height, width = (min(size, side) for size, side in zip(shape, patch, strict=True))
    expected = whole[z : z + depth, y : y + height, x : x + width]
    assert torch.allclose(values, expected.flatten(), rtol=1e-4)  # grid_sample's coordinates are float32
    assert (drawn.image[0][~inside] == 0).all() or torch.allclose(drawn.image[0][~inside], torch.zeros(1), atol=0.05)


def test_foreground_patches_contain_the_class() -> None:
    labels = np.zeros((6, 40, 40))
    labels[5, 1, 38] = 1
    labels[0, 30, 3] = 2
    drawn = sampler([case((6, 40, 40), labels)], (2, 8, 8), foreground=1.0)
    found = [set(drawn.draw().labels.unique().tolist()) for _ in range(40)]
    assert all(values & {1, 2} for values in found)
    assert any(1 in values for values in found)
    assert any(2 in values for values in found)


def test_a_case_without_foreground_still_gives_patches() -> None:
    assert sampler([case((3, 9, 9))], (2, 4, 4), foreground=1.0).draw().labels.unique().tolist() == [0]


def test_flips_move_image_and_labels_together() -> None:
    labels = np.arange(4 * 6 * 6).reshape(4, 6, 6) % 100
    flipped = sampler([case((4, 6, 6), labels)], (4, 6, 6), replace(NO_AUGMENTATION, flips=(1.0, 0.0, 1.0))).draw()
    assert torch.equal(flipped.labels, torch.from_numpy(labels.copy()).flip(0, 2))
    assert torch.allclose(flipped.image[0], torch.from_numpy(case((4, 6, 6)).image[0]).flip(0, 2), rtol=1e-4)


def test_rotation_and_scale_keep_labels_on_their_voxels() -> None:
    """The image is the label map itself, so after any map they must agree but for the rounding at borders."""
    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 12
    labels = np.repeat(disc[None], 4, axis=0)
    source = replace(case((4, 40, 40), labels), image=labels[None].astype(np.float32))
    turned = sampler([source], (4, 40, 40), Augmentation(spatial=1.0, intensity=0.0))
    for _ in range(20):
        patch = turned.draw()
        clear = (patch.image[0] < 0.2) | (patch.image[0] > 0.8)
        known = clear & (patch.labels != PADDING)
        assert torch.equal((patch.image[0] > 0.5)[known], (patch.labels == 1)[known])
        assert known.float().mean() > 0.5


def test_a_quarter_turn_is_exact() -> None:
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    patch = cut(image, image[0].long(), (1, 5, 5), (0.5, 2.5, 2.5), turn)
    assert torch.equal(patch.labels[0], torch.rot90(image[0, 0], -1).long()) or torch.equal(
        patch.labels[0], torch.rot90(image[0, 0], 1).long()
    )
    assert torch.allclose(patch.image[0, 0], patch.labels[0].float(), atol=1e-4)


def test_one_seed_gives_one_sequence_of_batches() -> None:
    cases = [case((4, 20, 20)), case((3, 18, 24))]
    everything = Augmentation()
    first, second, other = (sampler(cases, (2, 16, 16), everything, 0.5, seed) for seed in (1, 1, 2))
    for _ in range(3):
        images, labels = first.batch(2)
        assert images.shape == (2, 1, 2, 16, 16)
        assert labels.shape == (2, 2, 16, 16)
        again, _ = second.batch(2)
        assert torch.equal(images, again)
        assert not torch.equal(images, other.batch(2)[0])


def test_shading_changes_patches_and_its_absence_draws_nothing() -> None:
    drawn = {
        shading: sampler([case((4, 16, 16))], (2, 8, 8), Augmentation(shading=shading)).batch(8)[0]
        for shading in (0.0, 0.8)
    }
    assert torch.equal(drawn[0.0], sampler([case((4, 16, 16))], (2, 8, 8), Augmentation()).batch(8)[0])
    assert not torch.equal(drawn[0.0], drawn[0.8])


def test_labels_of_many_classes_survive_sampling() -> None:
    labels = np.full((1, 4, 4), 104)
    assert sampler([case((1, 4, 4), labels)], (1, 4, 4)).draw().labels.unique().tolist() == [104]


def test_what_a_patch_does_not_need_is_not_read() -> None:
    """NaN everywhere but near the patch: interpolation must not touch it."""
    image = torch.full((1, 20, 60, 60), float("nan"))
    image[:, 8:12, 20:40, 20:40] = 1
    patch = cut(image, torch.zeros(20, 60, 60, dtype=torch.int8), (2, 16, 16), (10.0, 30.0, 30.0), torch.eye(3))
    assert torch.allclose(patch.image, torch.ones(1))


def test_a_patch_wholly_outside_is_padding() -> None:
    patch = cut(torch.ones(1, 4, 8, 8), torch.ones(4, 8, 8), (2, 4, 4), (100.0, -50.0, 4.0), torch.eye(3))
    assert not patch.image.any()
    assert (patch.labels == PADDING).all()


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_has_as_many_patches_as_asked(size: int) -> None:
    images, labels = sampler([case((4, 8, 8))], (2, 4, 4)).batch(size)
    assert len(images) == len(labels) == size
