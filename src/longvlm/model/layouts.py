"""Which layout a checkpoint has: that of transformers, of LLaVA's own repository, or one that is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longvlm.errors import LongVLMError
from longvlm.model.weight_files import weight_files
from longvlm.model.weight_names import ORIGINAL_PROJECTOR, is_tower

# LLaVA's relatives that this package does not read, and why.
REFUSED_FAMILIES = {
    "llava_next": "LLaVA-NeXT reads a picture as tiles",
    "llava_next_video": "LLaVA-NeXT-Video pools tiles in its own way",
    "llava_onevision": "LLaVA-OneVision reads a picture as tiles",
    "video_llava": "Video-LLaVA has two towers, one of them for videos",
    "vipllava": "VipLLaVA's projector normalises several layers first",
    "llava_mistral": "this original LLaVA-NeXT layout reads a picture as tiles",
    "llava_qwen": "this original LLaVA-OneVision layout reads a picture as tiles",
    "llava_mpt": "language models of type MPT are not supported",
}

# The original LLaVA layout is a LLaMA checkpoint with extra weights, under any of these names.
_ORIGINAL_LAYOUT_TYPES = ("llava", "llava_llama", "llama")


def is_original_layout(raw: dict[str, Any], folder: Path) -> bool:
    """Whether a checkpoint with the config.json `raw` is LLaVA's own: a LLaMA that names its tower, or has a projector.

    Of the weights at most names are read. Raises LongVLMError where those are needed and can't be.
    """
    if raw.get("model_type") not in _ORIGINAL_LAYOUT_TYPES:
        return False
    if "mm_vision_tower" in raw:
        return True
    if "vision_config" in raw or "text_config" in raw:  # as only transformers' layout has
        return False
    return any(name.startswith(ORIGINAL_PROJECTOR) for names in weight_files(folder).values() for name in names)


def refuse_unknown_family(raw: dict[str, Any], folder: Path) -> None:
    """Raise LongVLMError for any other checkpoint than LLaVA's in one of the two layouts."""
    model_type = raw.get("model_type")
    if str(raw.get("image_aspect_ratio")).startswith("anyres") or str(raw.get("mm_patch_merge_type")).startswith(
        "spatial"
    ):
        model_type = "llava_mistral"  # whatever its language model calls itself
    if model_type in REFUSED_FAMILIES:
        raise LongVLMError(
            f"{folder} is of type {model_type!r}, which is not supported ({REFUSED_FAMILIES[model_type]}); "
            "use a LLaVA 1.5 style one, such as llava-hf/llava-1.5-7b-hf."
        )
    if model_type != "llava" and not is_original_layout(raw, folder):
        raise LongVLMError(
            f"{folder} is of type {model_type!r}; LongVLM and LLaVA checkpoints ('longvlm', 'llava') are "
            "supported, as llava-hf/llava-1.5-7b-hf."
        )
    if raw.get("quantization_config"):
        raise LongVLMError(
            f"{folder} holds quantised weights, which are not read; give the checkpoint that they were made from, with "
            "--load-in-4bit (load_in_4bit=True) where memory is short."
        )


def _has_tower(folder: Path) -> bool:
    return any(is_tower(name) for names in weight_files(folder).values() for name in names)


def name_tower(raw: dict[str, Any], folder: Path, vision_tower: str | None) -> str:
    """The tower of a checkpoint of the original layout: `vision_tower` if given, else the one its config names.

    Raises LongVLMError where there is neither, and where the named one is not what the checkpoint was trained with.
    """
    if vision_tower is None and raw.get("unfreeze_mm_vision_tower") and _has_tower(folder):
        raise LongVLMError(
            f"{folder} has trained its vision tower and holds it itself, where it is not read in this layout; give "
            "it as a folder of its own with --vision-tower."
        )
    named = vision_tower or raw.get("mm_vision_tower")
    if not isinstance(named, str):
        raise LongVLMError(
            f"{folder} is a LLaVA checkpoint of the original layout, and its config names no vision tower; "
            "give --vision-tower."
        )
    return named
