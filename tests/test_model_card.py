"""The bundled model's card and the README say what was measured, and only that."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from longvlm.errors import LongVLMError
from longvlm.model.weight_files import hash_weights

ROOT = Path(__file__).parents[1]
CARD = ROOT / "src/longvlm/assets/default_model/README.md"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_model_card", ROOT / "scripts/write_model_card.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_card_and_readme_hold_the_measured_scores(writer: ModuleType) -> None:
    results = writer.read_results(ROOT / "docs/results")
    training = (ROOT / "scripts/model_card_training.md").read_text(encoding="utf-8").strip()
    recipe = writer.load_recipe(writer.RECIPE)
    assert CARD.read_text(encoding="utf-8") == writer.fill_card(results, recipe, training)
    assert writer.summarise(results) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_was_measured_are_the_bundled_weights_in_the_recipes_shape(writer: ModuleType) -> None:
    weights = hash_weights(CARD.parent)
    results = writer.read_results(ROOT / "docs/results")
    assert [results[name]["weights_sha256"] for name in ("scores", "lengths", "fresh")] == [weights] * 3
    config, shape = json.loads((CARD.parent / "config.json").read_text()), writer.load_recipe(writer.RECIPE).model
    for part in ("vision", "text"):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        expected = [getattr(shape, f"{part}_{name}") for name in ("width", "layers", "heads")]
        assert [config[f"{part}_config"][name] for name in sizes] == expected
    assert (config["vision_config"]["image_size"], config["vision_config"]["patch_size"]) == (112, 14)
    assert (shape.image_size, shape.patch_size) == (112, 14)


def test_the_bundled_weights_reach_what_was_aimed_at(writer: ModuleType) -> None:
    scores = writer.read_results(ROOT / "docs/results")["scores"]
    aims = "Aimed at: 93% of *exists*; 90% of *first*, *last*, *after*, *before*; 85% of *count*, *direction*, "
    aims += "*action*; 80% of *order*, *when*.\n"
    assert writer.tell_of_aims(scores) == f"{aims}All are reached."
    scores["scores"]["count"]["accuracy"] = 0.849
    assert writer.tell_of_aims(scores) == f"{aims}Missed by *count*."


def test_every_measurement_gets_its_table(writer: ModuleType, tmp_path: Path) -> None:
    first = {"n": 10, "accuracy": 0.9, "interval_95": [0.8, 1.0], "chance": 0.0125, "without_video": 0.02}
    first["another_video"] = 0.03
    scores = {
        "videos": 5,
        "seed": 3,
        "precision": "float32",
        "duration_seconds": [30.0, 600.0],
        "scores": {"first": first},
    }
    (tmp_path / "default_model.json").write_text(json.dumps(scores))
    bare = writer.describe(writer.read_results(tmp_path))
    assert "`python -m longvlm.world evaluate --videos 5 --seed 3 --duration 30:600 --dtype float32`" in bare
    assert "5 unseen videos of 30 s to 10 min" in bare
    assert "| first | 10 | 90.0% | 80.0% – 100.0% | 1.2% | 2.0% | 3.0% |" in bare
    assert not any(word in bare for word in ("re-encod", "length", "again"))

    loss = {"reencoding": "all", "n": 10, "original": 0.9, "reencoded": 0.88, "low": -0.01, "high": 0.05, "loss": 0.02}
    (tmp_path / "default_model.json").write_text(json.dumps(scores | {"reencoded": [loss]}))
    depths = [{"accuracy": 0.75, "n": 4}, *[{"accuracy": None, "n": 0}] * 4]
    lengths = [
        {"minutes": 1.0, "n": 8, "accuracy": 0.9, "interval_95": [0.8, 1.0], "of_the_first": 1.0, "by_depth": depths},
        {"minutes": 60.0, "n": 8, "accuracy": 0.81, "interval_95": [0.7, 0.9], "of_the_first": 0.9, "by_depth": depths},
    ]
    told_lengths = {"videos": 4, "drawn_fps": 2, "seed": 6, "precision": "float32", "lengths": lengths}
    (tmp_path / "default_model_lengths.json").write_text(json.dumps(told_lengths))
    again = scores | {"scores": {"first": first | {"accuracy": 0.7, "interval_95": [0.6, 0.8]}}}
    (tmp_path / "default_model_again.json").write_text(json.dumps(again))
    last = first | {"n": 12, "accuracy": 0.5, "interval_95": [0.4, 0.6]}
    fresh = scores | {"seed": 4, "scores": {"first": first, "last": last, "all": first | {"n": 22}}}
    (tmp_path / "default_model_fresh.json").write_text(json.dumps(fresh))
    results = writer.read_results(tmp_path)
    told = writer.describe(results)
    assert told.startswith(bare)
    assert "| all | 10 | 90.0% | 88.0% | 2.0 | -1.0 – 5.0 |" in told
    assert "4 videos of each\nlength, written at 2 frames a second" in told
    assert "lengths --minutes 1,60 --videos 4\n--seed 6 --dtype float32 -o lengths.png`" in told
    assert "| 60 min | 8 | 81.0% | 70.0% – 90.0% | 90% | 75% (4) | – | – | – | – |" in told
    assert "| first | 10 | 90.0% (80.0% – 100.0%) | 70.0% (60.0% – 80.0%) |" in told
    assert "By none of the following videos was the recipe chosen: 5 unseen videos" in told
    assert "| last | 12 | 50.0% |" in told
    summary = writer.summarise(results)
    assert "on 5 others (`--seed 4`, n = 22)\n90.0% (80.0% – 100.0%) are right, least of all *last*: 50.0%" in summary
    summary = writer.summarise(results)
    assert "lose 2.0 points on average (95 %: -1.0 to 5.0, n = 10)" in summary
    assert "Of 8 questions about videos of 60 minutes 81% (95 %: 70% to 90%) are answered right,\n90% of the" in summary


def test_the_log_of_another_recipe_is_refused(writer: ModuleType) -> None:
    recipe = writer.load_recipe(writer.RECIPE)
    told = json.loads(json.dumps(dataclasses.asdict(recipe)))
    stages = {name: told[name] for name in ("encoder", "bank")} | {one["name"]: one for one in told["lessons"]}
    shared = {"seed": told["seed"], "model": told["model"]}
    log = {name: {"recipe": {**shared, name: stage}} for name, stage in stages.items()}
    writer.require_log_of(recipe, log)
    spent = {"wall_seconds": 60.0, "cpu_seconds": 30.0}
    measured = {name: {**stage, **spent, "colour": 0.99, "shape": 0.92} for name, stage in log.items()}
    trained = writer.describe_training(recipe, measured, "a processor")
    assert [line.split(" | ")[0] for line in trained.splitlines()[4:-3]] == [f"| {name}" for name in [*stages, "all"]]
    assert f"| all | | {len(stages)}.0 min | {len(stages) / 2:.1f} min |" in trained
    assert "the colour of 99% and the shape of 92%" in trained
    told["model"]["text_layers"] += 1
    with pytest.raises(LongVLMError, match="no stage 'encoder' of this recipe"):
        writer.require_log_of(recipe, log)
    told["model"]["text_layers"] -= 1
    log["bank"]["recipe"]["bank"]["blocks"] += 1
    with pytest.raises(LongVLMError, match="no stage 'bank' of this recipe"):
        writer.require_log_of(recipe, log)
    del log["bank"]
    with pytest.raises(LongVLMError, match="no stage 'bank'"):
        writer.require_log_of(recipe, log)
