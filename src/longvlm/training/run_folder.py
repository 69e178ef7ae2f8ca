"""What lies in the output folder of a training, and which recipe it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from longvlm.differences import first_difference
from longvlm.errors import LongVLMError
from longvlm.training.checkpointing import complete_checkpoints
from longvlm.training.instructions import digest_file
from longvlm.training.recipe import Recipe
from longvlm.whole_files import write_whole

CHECKPOINTS, MODEL, FEATURES, CURVES = "checkpoints", "model", "features", "tensorboard"
RECIPE_FILE, SAMPLES_FILE, HISTORY_FILE = "longvlm-recipe.yaml", "samples.sha256", "history.json"


def claim_output(recipe: Recipe, num_processes: int) -> None:
    """Note the recipe in the output folder; raise LongVLMError where something else lies there in the run's places.

    A run that had not come to its first checkpoint leaves nothing that depends on the recipe.
    """
    path, wanted = recipe.output / RECIPE_FILE, _what_decides(recipe, num_processes)
    found = _read_note(path)
    taken = next((name for name in (CHECKPOINTS, MODEL) if (recipe.output / name).exists()), None)
    if found is None and taken is not None:
        raise LongVLMError(
            f"{recipe.output / taken} is there, but no {RECIPE_FILE} beside it says that a training made it; choose "
            "another output, or move it away."
        )
    differing = first_difference(found, wanted)
    if differing is None:
        return
    if found is not None and ((recipe.output / MODEL).is_dir() or complete_checkpoints(recipe.output / CHECKPOINTS)):
        key, theirs, ours = differing
        raise LongVLMError(
            f"{recipe.output} holds a run of another recipe: {key} is {theirs} there and {ours} here. Choose "
            "another output, or remove that folder."
        )
    write_whole(path, yaml.safe_dump(wanted, sort_keys=False).encode())


def _read_note(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LongVLMError(f"{path} is damaged; remove its folder, or choose another output.") from error


def claim_samples(output: Path, places: Iterable[str]) -> None:
    """Note the rows that are learned from; raise LongVLMError where there are checkpoints that learned from others.

    Rows whose videos are missing may be dropped, so that they come and go with these.
    """
    path, digest = output / SAMPLES_FILE, hashlib.sha256("\n".join(places).encode("utf-8", "replace")).hexdigest()
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    if found == digest:
        return
    if found is not None and complete_checkpoints(output / CHECKPOINTS):
        raise LongVLMError(
            f"{output} holds a run on other rows: videos or features have come or gone since. Put them back, choose "
            "another output, or remove that folder."
        )
    write_whole(path, digest.encode())


def _what_decides(recipe: Recipe, num_processes: int) -> dict[str, Any]:
    """What the trained weights depend on: the recipe's keys, but how a step is divided, and the rows to learn from."""
    content = recipe.to_dict()
    for item, source in zip(content["data"], recipe.data, strict=True):
        item["sha256"] = digest_file(source.instructions)
    for key in ("output", "reports"):
        del content[key]
    # A sharded optimizer's state has another form.
    content["machine"] = {"precision": recipe.machine.precision, "fsdp": recipe.machine.fsdp}
    schedule = content["schedule"]
    schedule["samples_per_step"] = schedule.pop("batch_size") * schedule.pop("accumulation") * num_processes
    return content
