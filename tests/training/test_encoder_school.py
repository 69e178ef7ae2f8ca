import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from longvlm.training.encoder_school import NO_OBJECT, CrowdedFrames, EncoderSchool, measure, patch_labels
from longvlm.world.scene import COLOURS, SHAPES


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


def test_colour_and_shape_are_known_of_the_same_patches() -> None:
    frames = CrowdedFrames(40, image_size=112, patch_size=14, first_seed=0)
    colours = torch.stack([frames[i]["colours"] for i in range(40)])
    shapes = torch.stack([frames[i]["shapes"] for i in range(40)])
    assert torch.equal(colours == NO_OBJECT, shapes == NO_OBJECT)
    assert set(colours.unique().tolist()) == {NO_OBJECT, *range(len(COLOURS))}
    assert set(shapes.unique().tolist()) == {NO_OBJECT, *range(len(SHAPES))}


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
    school = EncoderSchool(CLIPVisionModel(config), image_mean=(0.5,) * 3, image_std=(0.25,) * 3)
    frames = CrowdedFrames(8, image_size=56, patch_size=14, first_seed=0)
    items = [frames[i] for i in range(8)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    optimizer = torch.optim.AdamW(school.parameters(), lr=3e-3)
    untrained = school(**batch)["loss"].item()
    for _ in range(120):
        school(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert school(**batch)["loss"].item() < 0.2 * untrained
    scores = measure(school.eval(), frames)
    assert min(scores["colour"], scores["shape"], scores["empty"]) > 0.9
