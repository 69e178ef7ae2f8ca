"""`longvlm train`: a recipe, with changes to it, to a trained model."""

from __future__ import annotations

import os

from longvlm.commands import console
from longvlm.heap import keep_one_heap


def train(recipe: str, changes: list[str], only_check: bool, verbose: bool) -> None:
    keep_one_heap()
    if not verbose:
        console.silence_libraries()
    from longvlm.training.recipe import load_recipe

    chosen = load_recipe(recipe, changes)
    from longvlm.training.finetune import check, train

    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if only_check:
        check(chosen)
        if is_first:
            console.note(f"{recipe} can be trained; its data was not read.")
        return
    folder = train(chosen, lambda text: print(text, flush=True))
    if is_first:
        console.note(f'the trained model is {folder}; ask it with `longvlm ask VIDEO "…" --model {folder}`.')
