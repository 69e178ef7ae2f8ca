import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from longvlm.training.augmentation import Augmentation
from longvlm.training.encoder_heads import (
    NO_OBJECT,
    POSE_NUMBERS,
    CrowdedFrames,
    EncoderWithHeads,
    describe_pose,
    init_as_cosine_transform,
    measure,
    patch_labels,
)
from longvlm.world.scene import COLOURS, MAX_SIZE, MIN_SIZE, SHAPES, make_scene
from longvlm.world.shapes import SYMMETRY_FOLDS


def test_patch_labels_name_what_covers_most_of_each_patch() -> None:
    labels = np.full((28, 28), -1, dtype=np.int16)
    labels[:14, :14] = 0  # fills the first patch
    labels[:14, 14:18] = 1  # 4 of 14 columns of the second
    labels[:14, 18:24] = 2  # and 6 of 14
    labels[14, 0] = 0  # one pixel is not enough
    assert patch_labels(labels, 14, 3).tolist() == [0, 2, NO_OBJECT, NO_OBJECT]


def test_patch_labels_of_an_empty_scene() -> None:
    assert patch_labels(np.full((28, 28), -1, dtype=np.int16), 14, 0).tolist() == [NO_OBJECT] * 4


def test_frames_do_not_depend_on_the_order_of_asking() -> None:
    frames = CrowdedFrames(20, image_size=56, patch_size=14, first_seed=7)
    forwards = [frames[i] for i in range(20)]
    for i in reversed(range(20)):
        for key, value in frames[i].items():
            assert torch.equal(value, forwards[i][key])
    assert forwards[0]["pixels"].shape == (3, 56, 56)
    assert forwards[0]["shapes"].shape == (16,)
    assert not torch.equal(forwards[0]["pixels"], forwards[1]["pixels"])


def test_frames_are_worn_as_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = CrowdedFrames(4, image_size=56, patch_size=14, first_seed=7)
    monkeypatch.setattr("longvlm.training.encoder_heads.draw_augmentation", lambda rng: Augmentation())
    clean = [frames[i]["pixels"] for i in range(4)]
    monkeypatch.setattr("longvlm.training.encoder_heads.draw_augmentation", lambda rng: Augmentation(scale=0.5))
    for i in range(4):
        expected = Augmentation(scale=0.5).apply(clean[i].permute(1, 2, 0).numpy())
        assert np.array_equal(frames[i]["pixels"].permute(1, 2, 0).numpy(), expected)
        assert not torch.equal(frames[i]["pixels"], clean[i])


def test_patches_are_first_looked_at_as_waves_of_brightness_and_colour() -> None:
    embedding = torch.nn.Conv2d(3, 64, 14, stride=14, bias=False)
    init_as_cosine_transform(embedding)
    filters = embedding.weight.detach().flatten(1)
    products = filters @ filters.T
    assert (products.diagonal() > 0).all()
    torch.testing.assert_close(products, torch.diag(products.diagonal()), atol=1e-6, rtol=0)
    grey = embedding(torch.ones(1, 3, 14, 14))[0, :, 0, 0]
    assert grey.abs().argmax() == 0 and (grey[1:].abs() < 1e-4).all()


def test_colour_and_shape_are_known_of_the_same_patches() -> None:
    frames = CrowdedFrames(40, image_size=112, patch_size=14, first_seed=0)
    colours = torch.stack([frames[i]["colours"] for i in range(40)])
    shapes = torch.stack([frames[i]["shapes"] for i in range(40)])
    assert torch.equal(colours == NO_OBJECT, shapes == NO_OBJECT)
    assert set(colours.unique().tolist()) == {NO_OBJECT, *range(len(COLOURS))}
    assert set(shapes.unique().tolist()) == {NO_OBJECT, *range(len(SHAPES))}


def test_a_pose_is_place_size_and_angle() -> None:
    scene = make_scene(0, 60.0)
    square = replace(scene.events[0], shape="square", action="stay")
    turned = 2 * math.pi / SYMMETRY_FOLDS["square"]
    now = square.start_seconds + 0.5 * square.duration_seconds
    pose = square.pose(now)
    x, y, size, cosine, sine = describe_pose(square, now)
    assert (x, y) == pytest.approx((math.sqrt(12) * (pose.x - 0.5), math.sqrt(12) * (pose.y - 0.5)))
    assert size == pytest.approx(3 * math.log(pose.size / math.sqrt(MIN_SIZE * MAX_SIZE)))
    assert cosine**2 + sine**2 == pytest.approx(2)
    again = describe_pose(replace(square, angle_radians=square.angle_radians + turned), now)
    assert again == pytest.approx((x, y, size, cosine, sine))
    assert describe_pose(replace(square, shape="circle"), now)[3:] == (0.0, 0.0)


def test_the_loss_counts_kinds_poses_and_presence() -> None:
    """Against sums by hand, one batch."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    learner = EncoderWithHeads(CLIPVisionModel(config), image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    shapes = torch.tensor([[2, NO_OBJECT, NO_OBJECT, 1], [NO_OBJECT, 0, NO_OBJECT, NO_OBJECT]])
    colours = torch.where(shapes == NO_OBJECT, NO_OBJECT, shapes + 1)
    poses = torch.randn(2, 4, POSE_NUMBERS)
    colour, shape, pose, presence = (part.detach() for part in learner.predict(pixels))
    there = [(b, p) for b in range(2) for p in range(4) if shapes[b, p] != NO_OBJECT]
    empty = [(b, p) for b in range(2) for p in range(4) if shapes[b, p] == NO_OBJECT]
    expected = 0.5 * sum((pose[place] - poses[place]).square().mean() for place in there) / 3
    for logits, targets in ((colour, colours), (shape, shapes)):
        logs = -logits.log_softmax(-1)
        expected = expected + 0.75 * sum(logs[place][targets[place]] for place in there) / 3
        expected = expected + 0.25 * sum(logs[place][-1] for place in empty) / 5
    present = torch.zeros_like(presence)
    for b, p in there:
        present[b, colours[b, p] * len(SHAPES) + shapes[b, p]] = 1
    expected = expected - (present * presence.sigmoid().log() + (1 - present) * (-presence).sigmoid().log()).mean()
    torch.testing.assert_close(learner(pixels, colours, shapes, poses)["loss"], expected)


def test_a_tiny_encoder_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
    )
    learner = EncoderWithHeads(CLIPVisionModel(config), image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    frames = CrowdedFrames(8, image_size=56, patch_size=14, first_seed=0)
    items = [frames[i] for i in range(8)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    untrained = learner(**batch)["loss"].item()
    for _ in range(120):
        learner(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert learner(**batch)["loss"].item() < 0.2 * untrained
    scores = measure(learner.eval(), frames)
    assert min(scores["colour"], scores["shape"], scores["empty"]) > 0.9
