"""What a frame's labels ask for."""

import torch

from masksam_export.families.masksam.training.targets import PADDING, frame_targets


def test_every_class_of_a_frame_is_one_target_background_included() -> None:
    labels = torch.zeros(1, 2, 8, 8, dtype=torch.long)
    labels[0, 0, 2:4, 5:8] = 3
    first, second = frame_targets(labels)
    assert first.labels.tolist() == [0, 3]
    assert second.labels.tolist() == [0]
    assert first.masks.sum(dim=(1, 2)).tolist() == [58, 6]
    # x1, y1, x2, y2, maxima inclusive, over the side
    assert first.boxes.tolist() == [[0, 0, 7 / 8, 7 / 8], [5 / 8, 2 / 8, 7 / 8, 3 / 8]]


def test_padding_belongs_to_no_class() -> None:
    labels = torch.full((1, 2, 4, 4), PADDING)
    labels[0, 0, :2] = 1
    first, second = frame_targets(labels)
    assert first.labels.tolist() == [1]
    assert first.masks.sum() == 8
    assert len(second) == 0


def test_rows_are_frames_of_the_first_patch_then_of_the_second() -> None:
    labels = torch.arange(6).reshape(2, 3, 1, 1).expand(2, 3, 2, 2)
    assert [t.labels.item() for t in frame_targets(labels)] == [0, 1, 2, 3, 4, 5]
