"""What LLaVA's weights are called: in its own repository, in this package's modules, and in saved files."""

from __future__ import annotations

import re

# A projector of the original layout, as it stands beside plain LLaMA weights.
ORIGINAL_PROJECTOR = "model.mm_projector."

# From names in files, of the original layout or of transformers, to those of the modules here.
_MODULE_NAMES = {
    r"^model\.mm_projector\.(weight|bias)": r"model.multi_modal_projector.linear_1.\1",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^multi_modal_projector\.": "model.multi_modal_projector.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^language_model\.model\.": "model.language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
}

# And back, to what transformers' own save_pretrained writes.
_SAVED_NAMES = {
    r"^model\.(vision_tower|multi_modal_projector)\.": r"\1.",
    r"^model\.language_model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
}


def module_name(name: str) -> str:
    """A weight's name here, from its name in a file; towers are named by transformers alone."""
    return _rename(name, _MODULE_NAMES)


def saved_name(name: str) -> str:
    """A weight's name in a file, from its name here."""
    return _rename(name, _SAVED_NAMES)


def is_projector(name: str) -> bool:
    return "mm_projector." in name or "multi_modal_projector." in name


def is_tower(name: str) -> bool:
    return name.startswith(("vision_tower.", "model.vision_tower."))


def is_recomputed(name: str) -> bool:
    """Whether a tensor is a table that the model works out itself; older checkpoints store it."""
    return name.endswith("rotary_emb.inv_freq")


def _rename(name: str, rules: dict[str, str]) -> str:
    for pattern, replacement in rules.items():
        renamed = re.sub(pattern, replacement, name)
        if renamed != name:
            return renamed
    return name
