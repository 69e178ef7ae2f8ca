"""What `longvlm train` saves of a part becomes one checkpoint that is the trained model."""

from pathlib import Path

import torch
from small_run import read_recipe

from longvlm.model.conversion import consolidate
from longvlm.pipeline import LongVLM
from longvlm.training.finetune import train


def open_model(folder: Path) -> LongVLM:
    return LongVLM.from_pretrained(folder, device="cpu", dtype="float32")


def test_projector_rows_and_low_rank_changes_of_a_training(small_recipe: Path, tmp_path: Path) -> None:
    changes = ["learning_rates.lora=1e-2", "lora.rank=2", "schedule.max_steps=2"]
    recipe = read_recipe(small_recipe, f"output={tmp_path / 'run'}", *changes)
    trained = train(recipe, say=lambda text: None)
    consolidate(trained, tmp_path / "new" / "one")
    expected, actual = open_model(trained), open_model(tmp_path / "new" / "one")
    wanted, weights = expected.language_model.state_dict(), actual.language_model.state_dict()
    untrained = open_model(small_recipe.parent / "base").language_model.state_dict()
    changed = {name for name in wanted if not torch.equal(wanted[name], untrained[name])}
    assert {name.split(".")[1] for name in changed} == {"multi_modal_projector", "language_model"}
    assert any("layers" in name for name in changed)
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    video = small_recipe.parent / "features" / "v1.longvlm"
    answers = [model.ask(video, "What is in it?", max_new_tokens=8).text for model in (expected, actual)]
    assert answers[0] == answers[1]
