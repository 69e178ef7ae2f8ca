"""Rewriting checkpoints: LLaVA's as LongVLM's own, any files as safetensors shards, a trained part with its base."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import (
    find_bases,
    load_config,
    load_processor,
    require_complete,
    resolve_model,
    stored_weights,
)
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.layouts import is_original_layout
from longvlm.model.llava_config import load_tokenizer, read_json
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.projector import FILE_NAME, ReferenceProjector
from longvlm.model.settings_files import change_config, copy_settings
from longvlm.model.trained_part import TrainedPart, base_of, merge_stored_part, require_part
from longvlm.model.weight_files import StoredTensor, open_tensors
from longvlm.model.weight_names import saved_name
from longvlm.model.weight_writing import (
    MAX_SHARD_SIZE,
    OnProgress,
    require_new_folder,
    whole_folder,
    write_json,
    write_weights,
)


def import_llava(
    model: str | Path,
    target: str | Path,
    *,
    vision_tower: str | None = None,
    projector: str | Path | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    on_progress: OnProgress | None = None,
) -> None:
    """Write a LLaVA checkpoint, in transformers' layout or the original, as the LongVLM folder `target`.

    All parts are in it, the vision tower and the projector asked for included, in the dtypes they are stored in;
    `LongVLM.from_pretrained` takes it as it is. Memory: the tower and one shard. Raises LongVLMError for
    checkpoints that aren't complete or not supported, before anything is written, and for a target that exists.
    """
    folder = _resolve(model)
    require_new_folder(Path(target))
    if base_of(folder) is not None:
        raise LongVLMError(
            f"{folder} holds the trained part of a model alone; `longvlm weights consolidate` writes it as a LongVLM "
            "checkpoint, together with its base."
        )
    config = load_config(folder, vision_tower=vision_tower, projector=projector)
    _write_own(folder, config, Path(target), max_shard_size, on_progress)


def _write_own(
    folder: Path, config: LongVLMConfig, target: Path, max_shard_size: str, on_progress: OnProgress | None
) -> None:
    """Write a checkpoint, or a trained part with its base, in LongVLM's layout."""
    processor = load_processor(folder, config)
    bases = find_bases(folder, config.base)
    untrained = bases[-1][1] if bases else folder
    tensors = stored_weights(untrained, config)
    if bases and config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # some files list the embeddings once more under its name
    for part, _ in reversed(bases):  # the one nearest to the untrained base first
        tensors = merge_stored_part(tensors, TrainedPart.load(part), load_config(part).text_config.vocab_size)
    _require_all(tensors, config, folder)
    config.vision_tower = config.projector = config.base = None  # they are the checkpoint's own from here on
    config.architectures = [LongVLMForConditionalGeneration.__name__]
    with whole_folder(target) as new:
        named = {saved_name(name): tensor for name, tensor in tensors.items()}
        write_weights(new, named, max_shard_size=max_shard_size, on_progress=on_progress)
        config.save_pretrained(new)
        processor.save_pretrained(new)
        if (untrained / "generation_config.json").is_file():
            shutil.copyfile(untrained / "generation_config.json", new / "generation_config.json")


def _resolve(model: str | Path) -> Path:
    """The folder of a checkpoint, which a projector alone is none."""
    folder = resolve_model(model)
    if [path.name for path in folder.glob("*.bin")] == [FILE_NAME] and not any(folder.glob("*.safetensors")):
        raise LongVLMError(f"{folder} holds a projector alone; give its base, and --projector {folder}.")
    return folder


def _require_all(tensors: dict[str, StoredTensor], config: LongVLMConfig, folder: Path) -> None:
    """Have transformers load the weights' outlines, which takes no time, to learn whether any is missing."""
    outlines = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in tensors.items()}
    _, report = LongVLMForConditionalGeneration.from_pretrained(
        None,
        config=copy.deepcopy(config),
        state_dict=outlines,
        device_map="meta",
        ignore_mismatched_sizes=True,  # told by the report, instead of as an error in words of its own
        output_loading_info=True,
    )
    require_complete(report, folder)


def consolidate(
    model: str | Path,
    target: str | Path,
    *,
    vision_tower: str | None = None,
    projector: str | Path | None = None,
    base: str | Path | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    on_progress: OnProgress | None = None,
) -> None:
    """Rewrite a checkpoint's weight files as safetensors shards in the folder `target`, in its own layout.

    Tensors, names and dtypes stay; `projector`, an mm_projector.bin, is merged with its base, a checkpoint of the
    original layout. Memory: one shard.

    What `longvlm train` saved of a part is merged with its base (`base`, a folder or hub id, where that is not in its
    old place any more) into a checkpoint in LongVLM's layout, with what `trained_part.merge_stored_part` says about
    rounding. Memory: the vision tower, the part, and one shard.
    `vision_tower` stands in for one that a part, or a projector's base, names but is not there.
    Raises LongVLMError as `import_llava` does, and for a base that the part was not trained on.
    """
    folder = _resolve(model)
    require_new_folder(Path(target))
    if base_of(folder) is not None:
        config = load_config(folder, vision_tower=vision_tower, projector=projector, base=base)
        _write_own(folder, config, Path(target), max_shard_size, on_progress)
        return
    if base is not None:
        require_part(folder, base)
    if projector is None:
        if vision_tower is not None:
            raise LongVLMError(f"{folder} is rewritten as it is; leave the vision tower {vision_tower} out.")
        tensors = open_tensors(folder)
        with whole_folder(Path(target)) as new:
            write_weights(new, tensors, max_shard_size=max_shard_size, on_progress=on_progress)
            copy_settings(folder, new)
        return
    if not is_original_layout(read_json(folder / "config.json"), folder):
        raise LongVLMError(
            f"{folder} is no base of LLaVA's original layout, so {projector} can't be merged into its files; "
            "use `longvlm weights import-llava` with --projector."
        )
    config = load_config(folder, vision_tower=vision_tower, projector=projector)  # refuses what does not fit
    _merge_projector(folder, config, Path(target), ReferenceProjector.open(projector), max_shard_size, on_progress)


def _merge_projector(
    folder: Path,
    config: LongVLMConfig,
    target: Path,
    projector: ReferenceProjector,
    max_shard_size: str,
    on_progress: OnProgress | None,
) -> None:
    tensors = projector.merge_into(open_tensors(folder), tied=config.tie_word_embeddings)
    with whole_folder(target) as new:
        write_weights(new, tensors, max_shard_size=max_shard_size, on_progress=on_progress)
        copy_settings(folder, new)
        projector_type = "linear" if projector.num_layers == 1 else "mlp2x_gelu"
        change_config(new, vocab_size=config.text_config.vocab_size)
        # Where the base's config has no such key, readers take the projector for a linear one.
        write_json(new / "config.json", read_json(new / "config.json") | {"mm_projector_type": projector_type})
        tokenizer = load_tokenizer(folder)
        if projector.adapt_tokenizer(tokenizer):
            tokenizer.save_pretrained(new)
