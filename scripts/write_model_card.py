"""Write the bundled model's card, and its table in the README, from what training and evaluation have left behind.

python scripts/write_model_card.py --scores docs/results/default_model.json --machine "Xeon 2.5 GHz"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from string import Template
from typing import Any

from safetensors import safe_open

from longvlm.report.tables import put_table
from longvlm.training.default_model import Recipe, load_recipe, plan_gently
from longvlm.world.evaluate import Score, as_markdown
from longvlm.world.wordings import vocabulary

HERE = Path(__file__).parent
PROJECT = HERE.parent
MODEL = PROJECT / "src/longvlm/assets/default_model"
RECIPE = PROJECT / "src/longvlm/training/recipes/default_model.yaml"


def describe_evaluation(scores: dict[str, Any]) -> str:
    """A sentence that says what was asked, and the table."""
    low, high = (_duration(seconds) for seconds in scores["duration_seconds"])
    command = f"python -m longvlm.world evaluate --videos {scores['videos']} --seed {scores['seed']}"
    command += " --duration {:g}:{:g}".format(*scores["duration_seconds"])
    table = [
        Score(
            kind=kind,
            n=one["n"],
            accuracy=one["accuracy"],
            low=one["interval_95"][0],
            high=one["interval_95"][1],
            chance=one["chance"],
            without_video=one["without_video"],
        )
        for kind, one in scores["scores"].items()
    ]
    return (
        f"{scores['videos']} unseen videos of {low} to {high} (log-uniform), mixed sizes, 10 to 25 frames a second,\n"
        f"written as H.264 files and read back at 1 frame a second:\n`{command}`\n\n{as_markdown(table)}"
    )


def gather_numbers(recipe: Recipe, log: dict[str, Any]) -> dict[str, Any]:
    """Everything the card's template names, but the evaluation."""
    shape = recipe.model
    patches = shape.frames_per_segment * (shape.image_size // shape.patch_size) ** 2
    weights = MODEL / "model.safetensors"
    with safe_open(str(weights), "pt") as file:
        names: list[str] = file.keys()
        parameters = sum(file.get_tensor(name).numel() for name in names)
    total = [sum(stage[key] for stage in log.values()) for key in ("wall_seconds", "cpu_seconds")]
    return {
        **vars(shape),
        "stages": "\n".join(_describe_stages(recipe, log)),
        "total_time": _minutes(*total),
        "parameters": f"{parameters / 1e6:.1f}",
        "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "words": len(vocabulary()),
        "patches": patches,
        "levels": len(plan_gently(patches, shape.tokens_per_segment, shape.merged_share)),
        "colour": f"{log['encoder']['colour']:.0%}",
        "shape": f"{log['encoder']['shape']:.0%}",
    }


def _describe_stages(recipe: Recipe, log: dict[str, Any]) -> list[str]:
    """The rows of the table: stage, what it learns from, wall and processor time."""
    frames = recipe.encoder.steps * recipe.encoder.batch_size
    lessons = {
        "encoder": f"{frames:,} single frames crowded with objects: colour, shape and pose for every patch",
        "bank": f"(encodes {recipe.bank.blocks:,} blocks of {_range(recipe.bank.segments_per_block)} segments)",
    }
    for stage in recipe.lessons:
        segments, names = _range(stage.lesson.segments), f"{stage.lesson.names_share:.0%}"
        lessons[stage.name] = f"videos of {segments} segments joined from the bank, with questions ({names}: names)"
    return [
        f"| {name} | {what} | {_minutes(log[name]['wall_seconds'], log[name]['cpu_seconds'])} |"
        for name, what in lessons.items()
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def _minutes(wall_seconds: float, cpu_seconds: float) -> str:
    return f"{wall_seconds / 60:.1f} min | {cpu_seconds / 60:.1f} min"


def _range(numbers: list[int] | tuple[int, ...]) -> str:
    return f"{min(numbers)} to {max(numbers)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", type=Path, required=True, help="what `longvlm.world evaluate --json` printed")
    parser.add_argument("--log", type=Path, default=PROJECT / "runs/default_model/log.json")
    parser.add_argument("--machine", required=True, help="the processor, as the card shall name it")
    arguments = parser.parse_args()
    evaluation = describe_evaluation(json.loads(arguments.scores.read_text()))
    numbers = gather_numbers(load_recipe(RECIPE), json.loads(arguments.log.read_text()))
    limits = (HERE / "model_card_limits.md").read_text().strip()
    card = Template((HERE / "model_card.md").read_text())
    (MODEL / "README.md").write_text(
        card.substitute(numbers, evaluation=evaluation, limits=limits, machine=arguments.machine)
    )
    put_table(PROJECT / "README.md", "default model", evaluation)


if __name__ == "__main__":
    main()
