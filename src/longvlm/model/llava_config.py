"""Reading the config and preprocessor files of LLaVA checkpoints, in transformers' layout or the original."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaTokenizer,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from longvlm.errors import LongVLMError, one_line
from longvlm.model.configuration import LongVLMConfig
from longvlm.types import Compression, Fit

# What the reference adds to a tokenizer, in this order.
VIDEO_TOKENS = ("<vid_patch>", "<vid_start>", "<vid_end>")
_PICTURE_MARKS = ("<im_start>", "<im_end>")


@dataclass(frozen=True)
class ImageSettings:
    """What a checkpoint's image processor does to pixels in [0, 1], and to pictures that are not square."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises LongVLMError where it is missing or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LongVLMError(f"{path.parent} has no {path.name}; give a complete checkpoint folder.") from error
    except OSError as error:
        raise LongVLMError(f"{path} can't be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, RecursionError) as error:
        raise LongVLMError(f"{path} is not valid JSON ({error}); download the checkpoint again.") from error
    if not isinstance(content, dict):
        raise LongVLMError(f"{path} holds no JSON object; download the checkpoint again.")
    return content


def _require_channels(values: Any, name: str) -> None:
    are_numbers = isinstance(values, list) and all(isinstance(value, int | float) for value in values)
    if not (are_numbers and len(values) == 3 and all(map(math.isfinite, values))):
        raise LongVLMError(f"{name} is {values!r}; three numbers are expected, one a channel.")


def read_image_settings(folder: Path) -> ImageSettings:
    """Mean, deviation and fit from a checkpoint's processor_config.json or preprocessor_config.json."""
    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            inner = content.get("image_processor", {})
            if not isinstance(inner, dict):
                raise LongVLMError(
                    f"{folder / name} has an image_processor that is none; download the checkpoint again."
                )
            settings |= content | inner
    if "image_mean" not in settings or "image_std" not in settings:
        raise LongVLMError(
            f"{folder} has no preprocessor_config.json with image_mean and image_std; "
            "copy it from the model that its vision tower comes from."
        )
    for name in ("image_mean", "image_std"):
        _require_channels(settings[name], f"{folder}: {name}")
    if settings.get("do_pad"):
        fit: Fit = "pad"
    else:
        fit = "crop" if settings.get("do_center_crop") else "squash"
    return ImageSettings(tuple(settings["image_mean"]), tuple(settings["image_std"]), fit)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, never with code of its own. Raises LongVLMError where there is none."""
    with readable_tokenizer(folder):
        tokenizer = _load_sentencepiece(folder) or AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    remember_legacy(tokenizer)
    return tokenizer


def remember_legacy(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have LLaMA's tokenizer save whether it is a "legacy" one, which transformers leaves out: read back as one that is
    not, it would have other ids for what follows a control token than those that the model learned from.
    """
    if hasattr(tokenizer, "legacy"):
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy


def _load_sentencepiece(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder with LLaMA's `tokenizer.model` alone, None for other folders. It is read as LLaMA's,
    whatever its config calls the model, and, where that doesn't say otherwise, as it was when LLaVA was trained: with a
    token at the start, and ("legacy") a blank before what follows a control token.
    """
    if (folder / "tokenizer.json").is_file() or not (folder / "tokenizer.model").is_file():
        return None
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    if not str(settings.get("tokenizer_class", "LlamaTokenizer")).lower().startswith("llamatokenizer"):
        return None
    as_trained = {"legacy": True, "add_bos_token": True}
    return LlamaTokenizer.from_pretrained(folder, **{key: settings.get(key, as_trained[key]) for key in as_trained})


@contextmanager
def readable_tokenizer(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for missing or damaged tokenizer files into a message about the folder."""
    try:
        yield
    except LongVLMError:
        raise
    except Exception as error:  # what tokenizers raises for a file it can't read is no narrower class
        reason = one_line(error)
        if "trust_remote_code" in reason:
            reason = "it wants Python code of its own, and LongVLM runs no code from checkpoints"
        elif (folder / "tokenizer.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
            reason = "its tokenizer.model needs another library: pip install sentencepiece protobuf"
        raise LongVLMError(f"{folder} has no readable tokenizer ({reason}); give a complete folder.") from error


def convert_original(raw: dict[str, Any], folder: Path, tower_config: PreTrainedConfig, fit: Fit) -> LongVLMConfig:
    """A config of LLaVA's own repository (a LLaMA config with `mm_*` keys), with its tower's config.

    LLaVA's own code has no token in the prompt for a visual token, so the first id behind the vocabulary stands for
    one. A checkpoint that the reference has trained has the video's tokens, and tells it apart.
    """
    projector = raw.get("mm_projector_type") or "linear"
    if projector not in ("linear", "mlp2x_gelu"):
        raise LongVLMError(f"{folder} has a projector of type {projector!r}; 'linear' and 'mlp2x_gelu' are supported.")
    text_config_class, tokenizer = type(AutoConfig.for_model("llama")), load_tokenizer(folder)
    known = set(text_config_class().to_dict()) | {"rope_theta", "rope_scaling"}
    llava = LlavaConfig(
        vision_config=tower_config,
        text_config=text_config_class(**{key: raw[key] for key in known & set(raw) if key != "model_type"}),
        image_token_index=len(tokenizer),
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy="full" if raw.get("mm_vision_select_feature") == "cls_patch" else "default",
        dtype=raw.get("torch_dtype") or raw.get("dtype"),
    )
    config = LongVLMConfig.from_llava(llava, fit="pad" if raw.get("image_aspect_ratio") == "pad" else fit)
    config.projector_num_layers = 1 if projector == "linear" else 2
    if VIDEO_TOKENS[0] in tokenizer.get_vocab():
        follow_the_paper(config, tokenizer)
    return config


def follow_the_paper(config: LongVLMConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Settings of a model that the reference has trained, whose tokenizer has the video's tokens."""
    settings = Compression(merge_heads=(config.compression or {}).get("merge_heads", Compression.merge_heads))
    if isinstance(config.vision_feature_layer, list):  # wider than a [CLS], see LongVLMConfig
        settings = replace(settings, global_layers=0)
    config.compression = json.loads(settings.to_json())
    config.video_token_index = tokenizer.convert_tokens_to_ids(VIDEO_TOKENS[0])


def video_marks(
    raw: dict[str, Any], tokenizer: PreTrainedTokenizerBase, video_token_id: int
) -> tuple[str, str] | tuple[None, None]:
    """What stands around a video's tokens: the reference's marks, where its tokens are the tokenizer's own; else those
    around a picture, where the checkpoint with the config.json `raw` has learned them, as the first LLaVA has.
    """
    vocabulary = tokenizer.get_vocab()
    patch, start, end = VIDEO_TOKENS
    if vocabulary.get(patch) == video_token_id and start in vocabulary and end in vocabulary:
        return start, end
    start, end = _PICTURE_MARKS
    if raw.get("mm_use_im_start_end") and start in vocabulary and end in vocabulary:
        return start, end
    return None, None
