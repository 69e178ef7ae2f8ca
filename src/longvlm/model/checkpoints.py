"""From a name to a model: folders, hub ids, LongVLM and LLaVA checkpoints, whole or only the vision tower."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from longvlm.errors import LongVLMError, one_line
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.download import download, name_of_checkpoint
from longvlm.model.layouts import is_original_layout, name_tower, refuse_unknown_family
from longvlm.model.llava_config import (
    VIDEO_TOKENS,
    convert_original,
    load_tokenizer,
    read_image_settings,
    read_json,
    readable_tokenizer,
    video_marks,
)
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.model.projector import ReferenceProjector
from longvlm.model.trained_part import (
    Base,
    TrainedPart,
    apply_part,
    base_config,
    base_of,
    explain_missing_base,
    require_fit,
    require_part,
    require_same_base,
    tower_weights,
)
from longvlm.model.weight_files import StoredTensor, open_tensors, read_tower_weights, tensor_names, weight_files
from longvlm.model.weight_names import is_recomputed, is_tower, module_name
from longvlm.stages.video_access import kind_of_path, local_path
from longvlm.stages.vision import VisionEncoder, count_patches, digest_weights, image_side
from longvlm.types import Compression

DEFAULT_MODEL_FOLDER = Path(__file__).parents[1] / "assets" / "default_model"

# Left in full precision in 4-bit loads: small, and read with features that were never quantised. transformers takes
# these for the beginnings of names.
NOT_QUANTISED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


def resolve_model(model: str | Path | None) -> Path:
    """The folder of a model: None is the bundled default, a hub id is downloaded or found in the cache.

    Raises LongVLMError, with the remedy, for anything else.
    """
    if model is None:
        if not (DEFAULT_MODEL_FOLDER / "config.json").is_file():
            raise LongVLMError("This installation has no bundled default model; name a model, or reinstall longvlm.")
        return DEFAULT_MODEL_FOLDER
    folder = local_path(str(model))
    kind = kind_of_path(folder) if str(model) else "missing"
    if kind == "folder":
        return folder
    if kind == "file":
        raise LongVLMError(f"The model {model} is a file; give its folder, which has config.json and the weights.")
    if isinstance(model, Path) or folder.is_absolute() or str(model).startswith((".", "~")):
        raise LongVLMError(f"There is no model folder {model}; check the path, or give a Hugging Face hub id.")
    return download(str(model))


def load_config(
    folder: Path,
    *,
    vision_tower: str | None = None,
    projector: str | Path | None = None,
    base: str | Path | None = None,
) -> LongVLMConfig:
    """The configuration of a LongVLM or LLaVA checkpoint; the latter gets settings that need no training.

    `vision_tower` names a folder or hub id of a tower that replaces the checkpoint's own, or stands in where
    the checkpoint has none; `projector` an mm_projector.bin of the reference, which is merged into the checkpoint;
    `base` what a trained part in `folder` belongs to, where that is not in its old place any more.
    Raises LongVLMError for checkpoints, towers and projectors that can't be read or don't fit.
    """
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == LongVLMConfig.model_type:
        config = _read_config(folder)
    else:
        refuse_unknown_family(raw, folder)
        if is_original_layout(raw, folder):
            named = name_tower(raw, folder, vision_tower)
            tower = resolve_model(named) if vision_tower else _find_named_tower(named, folder)
            vision_tower, tower_config = named, load_tower_config(tower)
            if raw.get("mm_hidden_size") not in (None, tower_config.hidden_size):
                raise _unfit_tower(named, tower_config.hidden_size, raw["mm_hidden_size"])
            with _config_that_fits(folder):
                config = convert_original(raw, folder, tower_config, read_image_settings(tower).fit)
        else:
            fit = read_image_settings(resolve_model(vision_tower) if vision_tower else folder).fit
            config = LongVLMConfig.from_llava(_read_config(folder), fit=fit)
    if vision_tower is not None:
        _replace_tower(config, vision_tower)
    if projector is not None:
        if base_of(folder) is not None:
            raise LongVLMError(f"{folder} holds the trained part of a model; leave the projector {projector} out.")
        ReferenceProjector.open(projector).adapt_config(config, load_tokenizer(folder))
    if base is not None:
        require_part(folder, base)
        config.base = str(base)
    with _config_that_fits(folder):
        count_patches(config.vision_config, config.vision_feature_select_strategy)  # refuses unknown kinds of towers
    return config


def _find_named_tower(tower: str, folder: Path) -> Path:
    """The folder of the tower that the config of the checkpoint in `folder` names."""
    try:
        return resolve_model(tower)
    except LongVLMError as error:
        raise LongVLMError(
            f"{error} It is the vision tower that {folder / 'config.json'} names; if you have it elsewhere, give its "
            "folder with --vision-tower, in a training's recipe as model.vision_tower."
        ) from error


def _replace_tower(config: LongVLMConfig, vision_tower: str) -> None:
    tower_config = load_tower_config(resolve_model(vision_tower))
    if tower_config.hidden_size != config.vision_config.hidden_size:
        raise _unfit_tower(vision_tower, tower_config.hidden_size, config.vision_config.hidden_size)
    config.vision_config, config.vision_tower = tower_config, vision_tower


def _unfit_tower(vision_tower: str, width: int, wanted: int) -> LongVLMError:
    return LongVLMError(
        f"The vision tower {vision_tower} has features of width {width}, but the model's projector reads {wanted}; "
        "choose a tower of that width."
    )


def load_tower_config(folder: Path) -> PreTrainedConfig:
    """The vision part of a config: of a tower alone, of a CLIP or SigLIP pair, or of a LLaVA checkpoint."""
    read_json(folder / "config.json")
    config = _read_config(folder)
    vision_config = getattr(config, "vision_config", config)
    if not isinstance(vision_config, PreTrainedConfig):
        raise LongVLMError(f"{folder / 'config.json'} has a vision_config that is none; download the checkpoint again.")
    with _config_that_fits(folder):
        count_patches(vision_config, "full")  # refuses unknown kinds of towers
    return vision_config


def _read_config(folder: Path) -> PreTrainedConfig:
    with _config_that_fits(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)


@contextmanager
def _config_that_fits(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for values that it doesn't expect into a message about the file."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError, ZeroDivisionError, StrictDataclassError) as error:
        reason = one_line(error)
        if "auto_map" in read_json(folder / "config.json"):
            reason = "it wants Python code of its own, and LongVLM runs no code from checkpoints"
        raise LongVLMError(f"{folder / 'config.json'} is not supported by transformers: {reason}") from error


def load_encoder(
    folder: Path,
    config: LongVLMConfig,
    *,
    compression: Compression,
    device: torch.device | str,
    dtype: torch.dtype,
) -> VisionEncoder:
    """The vision tower alone: no other weight of the checkpoint is read.

    Its fingerprint is that of the stored weights, whatever `dtype` they are loaded in.
    """
    bases = find_bases(folder, config.base)
    source = _tower_folder(bases[-1][1] if bases else folder, config)
    images = read_image_settings(source)
    # float16 loses what the fingerprint reads: rounded to bfloat16 afterwards, values would differ.
    tower = _load_tower(source, config.vision_config, torch.float32 if dtype == torch.float16 else dtype)
    for part, _ in reversed(bases):  # the one nearest to the untrained base first
        trained = tower_weights(TrainedPart.load(part))
        for name, weight in trained.items():
            require_fit(name, weight.shape, tower.state_dict())
        tower.load_state_dict(trained, strict=False)
    digests = digest_weights(tower)
    return VisionEncoder(
        tower.to(device=device, dtype=dtype),
        feature_layer=config.vision_feature_layer,
        select_strategy=config.vision_feature_select_strategy,
        global_layers=compression.global_layers,
        image_mean=images.mean,
        image_std=images.std,
        name=f"{config.vision_config.model_type} of {config.vision_tower or name_of_checkpoint(folder)}",
        weight_digests=digests,
    )


def _tower_folder(folder: Path, config: LongVLMConfig) -> Path:
    return folder if config.vision_tower is None else _find_named_tower(config.vision_tower, folder)


def find_bases(folder: Path, given: str | None = None) -> list[tuple[Path, Path]]:
    """`folder` and its base's, if it holds a trained part; then the same of that base, and so on.

    `given` is where the first base lies, if it has moved; any other one is looked for where it lay in its training.
    Raises LongVLMError where a base is not there, not the one of the training, or the part itself.
    """
    found: list[tuple[Path, Path]] = []
    while (base := base_of(folder)) is not None:
        below = _base_folder(base, folder) if found or given is None else resolve_model(given)
        if below.resolve() in {part.resolve() for part, _ in found} | {folder.resolve()}:
            raise LongVLMError(
                f"{folder} was trained on what lay in {below}, which is gone; put it back, or give it with --base."
            )
        require_same_base(base, below, folder)
        found.append((folder, below))
        folder = below
    return found


def _base_folder(base: Base, part_folder: Path) -> Path:
    try:
        return resolve_model(base.name or None)
    except LongVLMError as error:
        raise explain_missing_base(base, part_folder, error) from error


def _load_tower(folder: Path, vision_config: PreTrainedConfig, dtype: torch.dtype | None) -> PreTrainedModel:
    weights = read_tower_weights(folder, dtype)
    dtype = dtype or next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    tower_class = MODEL_MAPPING[type(vision_config)]
    tower, report = tower_class.from_pretrained(
        None,
        config=vision_config,
        state_dict=weights,
        dtype=dtype,
        ignore_mismatched_sizes=True,  # what doesn't fit is named below
        output_loading_info=True,
    )
    require_complete(report, folder)
    return tower


def load_processor(folder: Path, config: LongVLMConfig) -> LongVLMProcessor:
    """Tokenizer, chat template and normalisation of a checkpoint; `config` says how a video is compressed."""
    settings = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    if settings.get("processor_class") == LongVLMProcessor.__name__:
        with readable_tokenizer(folder):
            processor = LongVLMProcessor.from_pretrained(folder, trust_remote_code=False)
        processor.compression = config.compression
        if config.vision_tower is not None:  # in place of the one that the processor was saved with
            images = read_image_settings(_tower_folder(folder, config))
            processor.image_mean, processor.image_std = list(images.mean), list(images.std)
            processor.image_size = image_side(config.vision_config)
        if config.projector is not None and ReferenceProjector.open(config.projector).adapt_tokenizer(
            processor.tokenizer
        ):
            processor.video_token = VIDEO_TOKENS[0]
            processor.video_start_token, processor.video_end_token = VIDEO_TOKENS[1:]
        return processor
    tokenizer = load_tokenizer(folder)
    if config.projector is not None:
        ReferenceProjector.open(config.projector).adapt_tokenizer(tokenizer)
    video_token = tokenizer.convert_ids_to_tokens(config.video_token_index)
    if video_token is None:
        video_token = "<vid_patch>"
        tokenizer.add_special_tokens({"additional_special_tokens": [video_token]}, replace_extra_special_tokens=False)
    images = read_image_settings(_tower_folder(folder, config))
    start, end = video_marks(read_json(folder / "config.json"), tokenizer, config.video_token_index)
    return LongVLMProcessor(
        tokenizer,
        video_token=video_token,
        video_start_token=start,
        video_end_token=end,
        image_mean=images.mean,
        image_std=images.std,
        image_size=image_side(config.vision_config),
        compression=config.compression,
        chat_template=_read_chat_template(folder, settings),
    )


def _read_chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """A processor's own template, which older checkpoints keep in JSON; None leaves it to the tokenizer."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        template = read_json(folder / "chat_template.json").get("chat_template")
        if not isinstance(template, str):
            raise LongVLMError(f"{folder / 'chat_template.json'} holds no text 'chat_template'; mend or remove it.")
        return template
    return settings.get("chat_template")


def load_model(
    folder: Path,
    config: LongVLMConfig,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    load_in_4bit: bool = False,
) -> LongVLMForConditionalGeneration:
    """The whole model in evaluation mode. `device` may be "auto", which spreads it over what there is.

    Raises LongVLMError where weights are missing, and where 4-bit loading lacks CUDA or bitsandbytes.
    """
    if bases := find_bases(folder, config.base):
        base_folder = bases[0][1]
        vocabulary = load_config(base_folder, vision_tower=config.vision_tower).text_config.vocab_size
        model = load_model(
            base_folder, base_config(config, vocabulary), device=device, dtype=dtype, load_in_4bit=load_in_4bit
        )
        apply_part(model, TrainedPart.load(folder), config.text_config.vocab_size)
        return model
    for path in weight_files(folder):
        tensor_names(path)  # names a missing or cut-off file before gigabytes are read
    weights = None
    if config.vision_tower is not None or config.projector is not None:
        weights = {name: one.read() for name, one in stored_weights(folder, config, tower_dtype=dtype).items()}
    model, report = LongVLMForConditionalGeneration.from_pretrained(
        folder if weights is None else None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        device_map="auto" if device == "auto" else {"": device},
        quantization_config=_four_bits(dtype) if load_in_4bit else None,
        ignore_mismatched_sizes=True,  # what doesn't fit is named below
        output_loading_info=True,
    )
    require_complete(report, folder)
    model.config.vision_tower = model.config.projector = None  # the weights are the model's own from here on
    if weights is not None and (folder / "generation_config.json").is_file():
        read_json(folder / "generation_config.json")
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def stored_weights(
    folder: Path, config: LongVLMConfig, *, tower_dtype: torch.dtype | None = None
) -> dict[str, StoredTensor]:
    """A model's weights by their names here, with the tower and projector that `config` names in place of its own.

    The tower's are in memory, in `tower_dtype` or as stored; all others are read when they are needed.
    """
    weights = {name: one for name, one in open_tensors(folder).items() if not is_tower(name)}
    if config.projector is not None:
        projector = ReferenceProjector.open(config.projector)
        weights = projector.merge_into(weights, tied=config.tie_word_embeddings)
    tower = _load_tower(_tower_folder(folder, config), config.vision_config, tower_dtype)
    of_tower = {f"model.vision_tower.{name}": StoredTensor.held(one) for name, one in tower.state_dict().items()}
    return {module_name(name): one for name, one in weights.items() if not is_recomputed(name)} | of_tower


def require_complete(report: dict[str, Any], folder: Path) -> None:
    """Raise unless every weight was found in the right shape."""
    mismatched = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    lacking = sorted({*report["missing_keys"], *mismatched})
    if lacking:
        raise LongVLMError(
            f"{folder} lacks {len(lacking)} weights that its config.json wants, first of them {lacking[0]}; "
            "give a complete checkpoint of a supported layout."
        )


def require_four_bits() -> None:
    """Raise LongVLMError where weights can't be loaded in 4 bits."""
    if not torch.cuda.is_available():
        raise LongVLMError("Loading in 4 bits needs a CUDA device, and none is available; leave load_in_4bit out.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LongVLMError("Loading in 4 bits needs bitsandbytes: pip install 'longvlm[quantization]'.")


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    require_four_bits()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=NOT_QUANTISED,
    )
