"""Write the bundled model's card, and its table in the README, from what training and evaluation have left behind.

python scripts/write_model_card.py --machine "Xeon 2.5 GHz"

docs/results holds what was measured; what is not there is left out of the card:
  default_model.json           python -m longvlm.world evaluate --videos 120 --duration 30:600 --reencoded --json
  default_model_lengths.json   python -m longvlm.world lengths --json -o docs/results/default_model_lengths.png
  default_model_again.json     the first command on weights trained again, without --reencoded
  default_model_fresh.json     the same with --seed 7, by which no recipe was chosen
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from string import Template
from typing import Any

from safetensors import safe_open

from longvlm.errors import LongVLMError
from longvlm.report.tables import put_table
from longvlm.text_table import TextTable
from longvlm.training.default_model import Recipe, load_recipe
from longvlm.training.untrained_model import plan_by_share
from longvlm.world.evaluate import Score
from longvlm.world.evaluate import tabulate as tabulate_scores
from longvlm.world.lengths import LengthScore
from longvlm.world.lengths import tabulate as tabulate_lengths
from longvlm.world.losses import Loss
from longvlm.world.losses import tabulate as tabulate_losses
from longvlm.world.scene import (
    COLOURS,
    MAX_EVENT_SECONDS,
    MAX_EVENTS,
    MAX_SIZE,
    MIN_EVENT_SECONDS,
    MIN_SIZE,
    OVERLAP_SHARE,
    SHAPES,
    TEXTURES,
)
from longvlm.world.wordings import vocabulary

HERE = Path(__file__).parent
PROJECT = HERE.parent
MODEL = PROJECT / "src/longvlm/assets/default_model"
# Of the kinds of questions, those whose names don't say what is asked, or what is right.
KINDS_TOLD = (
    "*after*, *before*: what comes right after or before an object; *action*: what it does; *order*: of two or three;\n"
    "*describe*: right if all objects are named in their order, whatever is said of what they do; *follow-up*: later\n"
    'turns of a conversation ("And after that?"), each after the model\'s own replies. What comes too close together\n'
    "for an order to be seen is not asked about."
)
RECIPE = PROJECT / "src/longvlm/training/recipes/default_model.yaml"
# What was aimed at, set before the first of these models was trained: shares of right answers.
AIMS = {
    **dict.fromkeys(("first", "last", "after", "before"), 0.9),
    "exists": 0.93,
    **dict.fromkeys(("count", "direction", "action"), 0.85),
    **dict.fromkeys(("order", "when"), 0.8),
}


def describe_evaluation(scores: dict[str, Any]) -> str:
    """A sentence that says what was asked, and the table."""
    low, high = (_duration(seconds) for seconds in scores["duration_seconds"])
    command = f"python -m longvlm.world evaluate --videos {scores['videos']} --seed {scores['seed']}"
    command += " --duration {:g}:{:g}".format(*scores["duration_seconds"])
    command += f" --dtype {scores['precision']}"
    return (
        f"{scores['videos']} unseen videos of {low} to {high} (log-uniform), mixed sizes, 10 to 25 frames a second,\n"
        f"written as H.264 files and read back at 1 frame a second:\n"
        f"`{command}`\n\n{tabulate_scores(_read_scores(scores), '').as_markdown()}"
    )


def tell_of_aims(scores: dict[str, Any]) -> str:
    """What was aimed at, and where it is not reached."""
    kinds = {aim: [kind for kind, other in AIMS.items() if other == aim] for aim in AIMS.values()}
    aims = [f"{aim:.0%} of {', '.join(f'*{kind}*' for kind in kinds[aim])}" for aim in sorted(kinds, reverse=True)]
    missed = _missed(scores)
    reached = f"Missed by {', '.join(f'*{one.kind}*' for one in missed)}." if missed else "All are reached."
    return f"Aimed at: {'; '.join(aims)}.\n{reached}"


def _missed(scores: dict[str, Any]) -> list[Score]:
    return [one for one in _read_scores(scores) if one.accuracy < AIMS.get(one.kind, 0)]


def describe_losses(scores: dict[str, Any]) -> str:
    """What `evaluate --reencoded` told beside the scores."""
    names = [field.name for field in dataclasses.fields(Loss)]
    losses = [Loss(**{name: one[name] for name in names}) for one in scores["reencoded"]]
    return (
        "The same questions about the same videos, re-encoded in one of four ways (`evaluate --reencoded`):\n\n"
        + tabulate_losses(losses).as_markdown()
    )


def describe_lengths(found: dict[str, Any]) -> str:
    """The table of `longvlm.world lengths --json`, which has drawn the heat map, too."""
    scores = [
        LengthScore(
            one["minutes"],
            one["n"],
            one["accuracy"],
            *one["interval_95"],
            tuple((depth["accuracy"] or 0.0, depth["n"]) for depth in one["by_depth"]),
        )
        for one in found["lengths"]
    ]
    minutes = ",".join(f"{one.minutes:g}" for one in scores)
    return (
        "By length, and by when the one object asked about is on screen (in brackets how many questions), "
        f"{found['videos']} videos of each\nlength, written at {found['drawn_fps']:g} frames a second and read at 1 "
        f"(`python -m longvlm.world lengths --minutes {minutes} --videos {found['videos']}\n--seed {found['seed']} "
        f"--dtype {found['precision']} -o lengths.png`):\n\n"
        f"{tabulate_lengths(scores).as_markdown()}\n\n"
        "![Heat map of right answers by length and depth](../../../../docs/results/default_model_lengths.png)"
    )


def describe_reproduction(first: dict[str, Any], again: dict[str, Any]) -> str:
    """These weights' scores beside those of weights that the stages of `make model` left when trained again."""
    pairs = [(one, other) for one in _read_scores(first) for other in _read_scores(again) if one.kind == other.kind]
    rows = [(one.kind, str(one.n), _with_interval(one), _with_interval(other)) for one, other in pairs]
    return (
        "Weights that the stages of `make model` left when trained anew, asked the same:\n\n"
        + TextTable("", ("question", "n", "these weights", "trained again"), rows).as_markdown()
    )


def describe_fresh(scores: dict[str, Any]) -> str:
    """What was answered about videos by which no recipe was chosen."""
    told = "By none of the following videos was the recipe chosen: " + describe_evaluation(scores)
    return f"{told}\n\n{tell_of_aims(scores)}"


def summarise(results: dict[str, dict[str, Any]]) -> str:
    """For the README: the table, and in a sentence each what else was measured."""
    text = describe_evaluation(results["scores"])
    text += f"\n\n{KINDS_TOLD}\n*chance*: the best guess that knows the world's rules; *without video* and *another"
    text += " video*: the\nsame questions with no video shown, and with the previous video of the set in its place."
    text += f"\n\n{tell_of_aims(results['scores'])}"
    if "fresh" in results:
        text += f"\n\n{_summarise_fresh(results['fresh'])}"
    if losses := results["scores"].get("reencoded"):
        whole = losses[-1]
        text += f"\n\nRe-encoded, the videos of the table lose {100 * whole['loss']:.1f} points on average"
        text += f" (95 %: {100 * whole['low']:.1f} to {100 * whole['high']:.1f}, n = {whole['n']})."
    if "lengths" in results:
        last = results["lengths"]["lengths"][-1]
        low, high = last["interval_95"]
        text += f"\n\nOf {last['n']} questions about videos of {last['minutes']:g} minutes {last['accuracy']:.0%}"
        text += f" (95 %: {low:.0%} to {high:.0%}) are answered right,\n{last['of_the_first']:.0%} of the accuracy"
        text += f" at {results['lengths']['lengths'][0]['minutes']:g} min: "
        text += "[heat map by length and depth](docs/results/default_model_lengths.png)."
    return text


def _summarise_fresh(scores: dict[str, Any]) -> str:
    *kinds, whole = _read_scores(scores)
    least = min(kinds, key=lambda one: one.accuracy)
    others = f"{scores['videos']} others (`--seed {scores['seed']}`, n = {whole.n})"
    text = f"The recipe was chosen by such videos; on {others}\n"
    text += f"{_with_interval(whole)} are right, least of all *{least.kind}*: {_with_interval(least)}."
    for one in _missed(scores):
        text += f"\nThe aim of {AIMS[one.kind]:.0%} is missed by *{one.kind}*: {_with_interval(one)}."
    return text


def _with_interval(score: Score) -> str:
    return f"{score.accuracy:.1%} ({score.low:.1%} – {score.high:.1%})"


def _read_scores(scores: dict[str, Any]) -> list[Score]:
    return [
        Score(
            kind=kind,
            n=one["n"],
            accuracy=one["accuracy"],
            low=one["interval_95"][0],
            high=one["interval_95"][1],
            chance=one["chance"],
            without_video=one["without_video"],
            another_video=float("nan") if one.get("another_video") is None else one["another_video"],
        )
        for kind, one in scores["scores"].items()
    ]


def describe_training(recipe: Recipe, log: dict[str, Any], machine: str) -> str:
    """The stages, what they took, and what the encoder knew."""
    total = [sum(stage[key] for stage in log.values()) for key in ("wall_seconds", "cpu_seconds")]
    stages = "\n".join(_describe_stages(recipe, log))
    colour, shape = (f"{log['encoder'][name]:.0%}" for name in ("colour", "shape"))
    return (
        "`make model`: [the recipe](../../training/recipes/default_model.yaml), seeded and resumable.\n\n"
        "| stage | what it learns from | wall | process CPU |\n|---|---|--:|--:|\n"
        f"{stages}\n| all | | {_minutes(*total)} |\n\n"
        f"Measured on 2 cores ({machine}), float32; processes that draw are not counted in the last column.\n"
        f"After its stage the encoder named the colour of {colour} and the shape of {shape} of held-out object patches."
    )


def gather_numbers(recipe: Recipe) -> dict[str, Any]:
    """Everything the card's template names, but training, evaluation and limits."""
    shape = recipe.model
    patches = shape.frames_per_segment * (shape.image_size // shape.patch_size) ** 2
    weights = MODEL / "model.safetensors"
    with safe_open(str(weights), "pt") as file:
        names: list[str] = file.keys()
        parameters = sum(file.get_tensor(name).numel() for name in names)
    return {
        **vars(shape),
        **_describe_world(),
        "parameters": f"{parameters / 1e6:.1f}",
        "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "words": len(vocabulary()),
        "patches": patches,
        "levels": len(plan_by_share(patches, shape.tokens_per_segment, shape.merged_share)),
    }


def _describe_world() -> dict[str, str]:
    return {
        "least_events": "2",
        "most_events": str(MAX_EVENTS),
        "overlap_share": f"{OVERLAP_SHARE:.0%}",
        "num_colours": str(len(COLOURS)),
        "colours": ", ".join(COLOURS),
        "num_shapes": str(len(SHAPES)),
        "shapes": ", ".join(SHAPES),
        "least_seconds": f"{MIN_EVENT_SECONDS:g}",
        "most_seconds": f"{MAX_EVENT_SECONDS:g}",
        "least_size": f"{MIN_SIZE:.0%}",
        "most_size": f"{MAX_SIZE:.0%}",
        "textures": ", ".join(TEXTURES),
    }


def require_log_of(recipe: Recipe, log: dict[str, Any]) -> None:
    """Raise LongVLMError where a stage was trained by another recipe than the one that the card would tell of."""
    stages = {"encoder": recipe.encoder, "bank": recipe.bank, **{stage.name: stage for stage in recipe.lessons}}
    for name, settings in stages.items():
        decides = {"seed": recipe.seed, "model": dataclasses.asdict(recipe.model), name: dataclasses.asdict(settings)}
        told = json.loads(json.dumps(decides))
        if name not in log or {key: log[name]["recipe"].get(key) for key in told} != told:
            raise LongVLMError(f"The log holds no stage {name!r} of this recipe; give --log of the run that it made.")


def _describe_stages(recipe: Recipe, log: dict[str, Any]) -> list[str]:
    """The rows of the table: stage, what it learns from, wall and processor time."""
    frames = recipe.encoder.steps * recipe.encoder.batch_size
    lessons = {
        "encoder": f"{frames:,} single frames crowded with objects: colour, shape and pose for every patch",
        "bank": f"(encodes {recipe.bank.blocks:,} blocks of {_range(recipe.bank.segments_per_block)} segments, and "
        f"{recipe.bank.scenes:,} whole scenes of {_range(recipe.bank.segments_per_scene)})",
    }
    for stage in recipe.lessons:
        shown, names = stage.lesson.shown_segments, f"{stage.lesson.names_share:.0%}"
        segments = _range(stage.lesson.segments) + " segments" + (f", at most {shown} shown," if shown else "")
        lessons[stage.name] = f"videos of {segments} from the bank, joined or whole, with questions ({names}: names)"
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


def describe(results: dict[str, dict[str, Any]]) -> str:
    """All that was measured, for the card."""
    parts = [describe_evaluation(results["scores"]), KINDS_TOLD, tell_of_aims(results["scores"])]
    if "reencoded" in results["scores"]:
        parts.append(describe_losses(results["scores"]))
    if "lengths" in results:
        parts.append(describe_lengths(results["lengths"]))
    if "fresh" in results:
        parts.append(describe_fresh(results["fresh"]))
    if "again" in results:
        parts.append(describe_reproduction(results["scores"], results["again"]))
    return "\n\n".join(parts)


def fill_card(results: dict[str, dict[str, Any]], recipe: Recipe, training: str) -> str:
    """The whole card; `training`: how the weights were made."""
    limits = (HERE / "model_card_limits.md").read_text(encoding="utf-8").strip()
    card = Template((HERE / "model_card.md").read_text(encoding="utf-8"))
    told = {"training": training, "evaluation": describe(results), "limits": limits}
    return card.substitute(gather_numbers(recipe), **told)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured: `scores`, and where there are such files, `lengths`, `fresh` and `again`."""
    files = {name: folder / f"default_model_{name}.json" for name in ("lengths", "fresh", "again")}
    files = {"scores": folder / "default_model.json"} | {name: path for name, path in files.items() if path.is_file()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=PROJECT / "docs/results", help="the folder of measurements")
    made = parser.add_mutually_exclusive_group()
    made.add_argument("--log", type=Path, default=PROJECT / "runs/default_model/log.json", help="of `make model`")
    made.add_argument("--training", type=Path, help="a text that says how the weights were trained, if by other means")
    parser.add_argument("--machine", default="", help="the processor, as the card shall name it beside the log's times")
    arguments = parser.parse_args()
    results, recipe = read_results(arguments.results), load_recipe(RECIPE)
    if arguments.training is not None:
        training = arguments.training.read_text(encoding="utf-8").strip()
    else:
        log = json.loads(arguments.log.read_text())
        require_log_of(recipe, log)
        training = describe_training(recipe, log, arguments.machine)
    (MODEL / "README.md").write_text(fill_card(results, recipe, training), encoding="utf-8")
    put_table(PROJECT / "README.md", "default model", summarise(results))


if __name__ == "__main__":
    main()
