from pathlib import Path

import pytest

from longvlm.errors import LongVLMError
from longvlm.stages.merging import plan_reductions
from longvlm.training.recipe import Recipe, bundled_recipes, load_recipe
from longvlm.types import Compression


@pytest.mark.parametrize("name", ["paper.yaml", "paper-lora.yaml", "full.yaml", "tiny.yaml"])
def test_bundled_recipes_load(name: str) -> None:
    assert name in bundled_recipes()
    assert isinstance(load_recipe(name), Recipe)


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = load_recipe("paper.yaml")
    rates, schedule = recipe.learning_rates, recipe.schedule
    assert (rates.projector, rates.new_tokens) == (2e-5, 2e-5)
    assert rates.encoder is rates.language_model is rates.lora is None
    assert (schedule.epochs, schedule.batch_size, schedule.accumulation, schedule.max_tokens) == (3, 8, 1, 2048)
    assert (schedule.shape, schedule.warmup_share, schedule.weight_decay) == ("cosine", 0.03, 0)
    assert schedule.group_lengths is recipe.model.timestamps is False
    assert (recipe.machine.precision, recipe.machine.gradient_checkpointing) == ("bf16", True)
    compression = Compression.from_dict(recipe.model.compression)
    assert compression == Compression()
    assert plan_reductions(2560, compression.tokens_per_segment) == [1280, 640, 320, 160, 80, 40, 10]
    assert recipe.model.num_frames == 100


def test_changes_reach_every_depth() -> None:
    changes = ["seed=7", "schedule.epochs=0.5", "data.0.weight=2", "learning_rates.projector=3e-4", "lora.rank=4"]
    changes += ["output=runs/other", "learning_rates.language_model=null", "learning_rates.lora=1e-4"]
    recipe = load_recipe("tiny.yaml", changes)
    assert recipe.output == Path("runs/other")
    assert (recipe.seed, recipe.schedule.epochs, recipe.data[0].weight, recipe.lora.rank) == (7, 0.5, 2, 4)
    assert recipe.learning_rates.projector == 3e-4  # without a point, YAML takes it for a text
    assert recipe.learning_rates.language_model is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("epochs=3", r"tiny.yaml has the unknown key 'epochs'; its keys are output, data, learning_rates"),
        ("schedule.epoch=3", r"tiny.yaml: schedule has the unknown key 'epoch'; its keys are epochs, max_steps"),
        ("data.0.feature=x", r"tiny.yaml: data.0 has the unknown key 'feature'"),
        ("data.1.features=x", r"data.1.features can't be set: '1' is no position in a list of 1"),
        ("seed.x=1", r"seed.x can't be set: seed holds"),
        ("seed", r"'seed' is no change to a recipe; write key=value"),
        ("output=null", r"lacks the key 'output'"),
        ("seed=many", r"seed is 'many'; a whole number is expected"),
        ("seed=true", r"seed is True; a whole number is expected"),
        ("seed=4294967296", r"seed is 4294967296; it must be less than 4294967296"),
        ("schedule.epochs=[1]", r"epochs is \[1\]; a number is expected"),
        ("schedule.epochs=0", r"epochs is 0.0; it must be above 0"),
        ("schedule.shape=square", r"shape is 'square'; choose one of cosine, linear, constant"),
        ("held_out_share=1", r"held_out_share is 1.0; it must be at least 0 and below 1"),
        ("model.compression.frame=3", r"Unknown compression setting 'frame'"),
        ("model.compression=3", r"compression is 3; keys with values is expected"),
        ("learning_rates.lora=1e-4", r"both language_model and lora"),
        ("learning_rates.projector=-1", r"learning_rates.projector is -1.0; it must be above 0"),
        ("data=[{instructions: a, features: b, videos: c}]", r"has both features and videos"),
        ("model.load_in_4bit=true", r"Weights loaded in 4 bits can't be trained"),
        ("data=[]", r"data is empty"),
        ("lora.rank=64", r"lora has settings, but nothing trains it; give learning_rates.lora"),
        ("learning_rates={language_model: 1e-4}", r"new_projector is set, but nothing trains it; give learning_rates"),
    ],
)
def test_a_wrong_key_or_value_is_named(change: str, message: str) -> None:
    seeded = ["seed=3", change] if change.startswith("seed.") else [change]
    with pytest.raises(LongVLMError, match=message):
        load_recipe("tiny.yaml", seeded)


def test_an_encoder_learns_from_no_features() -> None:
    changes = ["data.0.features=features", "learning_rates.encoder=1e-6"]
    with pytest.raises(LongVLMError, match=r"training.json comes with features, from which an encoder can't learn"):
        load_recipe("tiny.yaml", changes)


def test_what_looks_like_a_date_is_a_path() -> None:
    assert load_recipe("tiny.yaml", ["output=2026-02-30"]).output == Path("2026-02-30")
    assert load_recipe("tiny.yaml", ["output=2026-02-03"]).output == Path("2026-02-03")


def test_features_take_the_place_of_videos() -> None:
    (source,) = load_recipe("tiny.yaml", ["data.0.features=features"]).data
    assert (source.features, source.videos) == (Path("features"), None)
    (source,) = load_recipe("paper.yaml", ["data.0.videos=videos"]).data
    assert (source.features, source.videos) == (None, Path("videos"))
    (source,) = load_recipe("paper.yaml", ["data.0.videos=videos", "data.0.features=null"]).data
    assert (source.features, source.videos) == (None, Path("videos"))


def test_all_frozen_is_refused() -> None:
    with pytest.raises(LongVLMError, match="No part has a learning rate"):
        load_recipe("tiny.yaml", ["learning_rates.projector=null", "learning_rates.language_model=null"])


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(LongVLMError, match=r"No such recipe: nothing.yaml. Give a YAML file, or one of full.yaml"):
        load_recipe("nothing.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(LongVLMError, match=r"broken.yaml is no readable YAML"):
        load_recipe(path)
    path.write_text("- 1")
    with pytest.raises(LongVLMError, match=r"broken.yaml holds no keys"):
        load_recipe(path)
