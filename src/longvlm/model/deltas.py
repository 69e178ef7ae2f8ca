"""Weight deltas: a model published as its difference from a base that may not be shared (LLaVA from LLaMA).

A delta is added to its base tensor by tensor. What the base has none of comes from the delta alone: the projector
(`model.mm_projector.*`), and the rows of new tokens, which follow the base's own in `model.embed_tokens.weight`
and `lm_head.weight`. Both sums and differences are taken in one dtype (float16, as LLaVA's own): the base's weights
are rounded to it, the result is rounded to it once, so base + (target - base) is the target to that rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import resolve_model
from longvlm.model.llava_config import load_tokenizer, read_json
from longvlm.model.placement import choose_dtype
from longvlm.model.settings_files import copy_settings, has_tokenizer
from longvlm.model.weight_files import StoredTensor, open_tensors
from longvlm.model.weight_names import ORIGINAL_PROJECTOR, is_recomputed, is_tower
from longvlm.model.weight_writing import MAX_SHARD_SIZE, OnProgress, require_new_folder, whole_folder, write_weights

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Tokenizers of one vocabulary may write a few special tokens differently; those of different ones share few words.
_MAX_FRACTION_OF_OTHER_WORDS = 0.01

# What fine-tuning leaves alone, while generations of a model change it: LLaMA 2 has LLaMA's shapes and words. So do
# conversions of one and the same model, though, so this proves nothing.
_TELLING_SETTINGS = ("rms_norm_eps", "rope_theta")


def apply_delta(
    base: str | Path,
    delta: str | Path,
    target: str | Path,
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
    on_progress: OnProgress | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
) -> None:
    """Write base + delta as the folder `target`, in the delta's layout, names and dtypes.

    `base` and `delta` are folders or hub ids. Config and tokenizer files are the delta's; it may leave the
    tokenizer to the base. Memory: one shard. Raises LongVLMError for a base that does not fit the delta by its
    tensors or words, before anything is written, and for a target that exists. `on_warning` is told in a line where
    the base's config has other settings of those that hint at another model.
    """
    base_folder, delta_folder = resolve_model(base), resolve_model(delta)
    require_new_folder(Path(target))
    pairs = _pair_tensors(base_folder, delta_folder)
    _tell_other_settings(base_folder, delta_folder, on_warning)
    tensors = {name: _combine(name, own, of_base, own.dtype, 1) for name, (own, of_base) in pairs.items()}
    with whole_folder(Path(target)) as folder:
        write_weights(folder, tensors, max_shard_size=max_shard_size, on_progress=on_progress)
        copy_settings(delta_folder, folder)
        if not has_tokenizer(delta_folder):
            copy_settings(base_folder, folder, tokenizer_only=True)


def make_delta(
    base: str | Path,
    target: str | Path,
    delta: str | Path,
    *,
    dtype: str | torch.dtype = torch.float16,
    max_shard_size: str = MAX_SHARD_SIZE,
    on_progress: OnProgress | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
) -> None:
    """Write target - base as the folder `delta`, which `apply_delta` adds to the base again.

    `base` and `target` are folders or hub ids; `delta` gets the target's layout, config and tokenizer, and its
    weights in `dtype`. Memory: one shard. Raises LongVLMError, and tells `on_warning`, as `apply_delta` does.
    """
    base_folder, target_folder = resolve_model(base), resolve_model(target)
    require_new_folder(Path(delta))
    chosen = choose_dtype(dtype, torch.device("cpu"))
    pairs = _pair_tensors(base_folder, target_folder)
    _tell_other_settings(base_folder, target_folder, on_warning)
    tensors = {name: _combine(name, own, of_base, chosen, -1) for name, (own, of_base) in pairs.items()}
    with whole_folder(Path(delta)) as folder:
        write_weights(folder, tensors, max_shard_size=max_shard_size, on_progress=on_progress)
        copy_settings(target_folder, folder, dtype=chosen)


def _combine(
    name: str, own: StoredTensor, of_base: StoredTensor | None, dtype: torch.dtype, sign: Literal[1, -1]
) -> StoredTensor:
    """own + sign · base in `dtype`, where the base has rows; the rows behind them are `own`'s alone."""

    def read() -> torch.Tensor:
        result = own.read().to(dtype, copy=True)
        if of_base is not None:
            rows = of_base.read().to(dtype)
            result[: len(rows)].add_(rows, alpha=sign)
        if not result.isfinite().all():
            remedy = "download both again" if sign == 1 else "choose --dtype bfloat16 or float32"
            raise LongVLMError(f"{name} would hold values beyond what {str(dtype)[6:]} can express; {remedy}.")
        return result

    return StoredTensor(own.shape, dtype, read)


def _pair_tensors(base: Path, other: Path) -> dict[str, tuple[StoredTensor, StoredTensor | None]]:
    """Each tensor of `other` with the base's own of that name, None where it stands alone.

    Raises LongVLMError, naming the tensor, where the two don't belong together.
    """
    theirs = _open_language_model(base, with_head=True)
    ours = _open_language_model(other, with_head=False)
    pairs: dict[str, tuple[StoredTensor, StoredTensor | None]] = {}
    for name, tensor in ours.items():
        if name.startswith(ORIGINAL_PROJECTOR) or is_tower(name):
            pairs[name] = tensor, None
        elif name not in theirs:
            raise _misfit(base, other, f"it lacks {name}")
        else:
            _require_shape(base, other, name, theirs[name].shape, tensor.shape)
            pairs[name] = tensor, theirs[name]
    lacking = next((name for name in theirs if name not in ours and name != HEAD), None)
    if lacking is not None:
        raise _misfit(base, other, f"it has {lacking}, which {other} lacks")
    if EMBEDDINGS in theirs:
        _require_same_words(base, other, theirs[EMBEDDINGS].shape[0])
    return pairs


def _tell_other_settings(base: Path, other: Path, on_warning: Callable[[str], None]) -> None:
    theirs, ours = read_json(base / "config.json"), read_json(other / "config.json")
    differing = [
        f"{key}={theirs[key]} where {other} has {ours[key]}"
        for key in _TELLING_SETTINGS
        if key in theirs and key in ours and theirs[key] != ours[key]
    ]
    if differing:
        on_warning(
            f"the config of {base} has {', '.join(differing)}: the weights fit, and the latter's config is written, "
            "but make sure that they are of one model: LLaMA 1 and 2 differ like this."
        )


def _open_language_model(folder: Path, *, with_head: bool) -> dict[str, StoredTensor]:
    """A checkpoint's tensors. A tied head is the embeddings themselves, listed again only `with_head`."""
    config = read_json(folder / "config.json")
    tensors = {name: tensor for name, tensor in open_tensors(folder).items() if not is_recomputed(name)}
    if config.get("tie_word_embeddings", False):
        tensors.pop(HEAD, None)
        if with_head and EMBEDDINGS in tensors:
            tensors[HEAD] = tensors[EMBEDDINGS]
    elif HEAD not in tensors:
        raise LongVLMError(f"{folder} lacks {HEAD}, and its config.json does not tie it; give a complete checkpoint.")
    return tensors


def _require_shape(base: Path, other: Path, name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    may_grow = name in (EMBEDDINGS, HEAD) and len(theirs) == len(ours) == 2
    if may_grow and theirs[1:] == ours[1:]:
        if theirs[0] > ours[0]:
            rows = f"{theirs[0]} rows, one for each token of its vocabulary, and {other} only {ours[0]}"
            raise _misfit(base, other, f"its {name} has {rows}")
    elif theirs != ours:
        raise _misfit(base, other, f"its {name} has the shape {theirs}, and that of {other} {ours}")


def _require_same_words(base: Path, other: Path, num_rows: int) -> None:
    """Refuse a base whose rows stand for other words; shapes alone can't tell OpenLLaMA from LLaMA."""
    words = [_read_words(folder, num_rows) for folder in (base, other)]
    common = words[0].keys() & words[1].keys()
    differing = sorted(row for row in common if words[0][row] != words[1][row])
    if len(differing) > _MAX_FRACTION_OF_OTHER_WORDS * len(common):
        row = differing[0]
        told = f"row {row} of its {EMBEDDINGS} stands for {words[0][row]!r}, and in {other} for {words[1][row]!r}"
        raise _misfit(base, other, told)


def _read_words(folder: Path, num_rows: int) -> dict[int, str]:
    """The words of the first rows; none where the folder has no tokenizer that can be read here."""
    if not has_tokenizer(folder):
        return {}
    try:
        vocabulary: dict[str, int] = load_tokenizer(folder).get_vocab()
    except LongVLMError:  # its files are copied as they are, so reading them is not this command's business
        return {}
    return {row: word for word, row in vocabulary.items() if row < num_rows}


def _misfit(base: Path, other: Path, reason: str) -> LongVLMError:
    return LongVLMError(f"{base} is not the base of {other}: {reason}. Give the base that it was made from.")
