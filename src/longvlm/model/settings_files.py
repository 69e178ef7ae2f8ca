"""The small files beside a checkpoint's weights: which there are, and copying them."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from longvlm.model.llava_config import read_json
from longvlm.model.weight_writing import write_json

_SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt")
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt")
_TOKENIZER = (*_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")


def has_tokenizer(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARIES)


def copy_settings(
    source: Path, target: Path, *, tokenizer_only: bool = False, dtype: torch.dtype | None = None
) -> None:
    """Copy config, tokenizer and preprocessor files; with `dtype`, the config copied says that one."""
    for pattern in _TOKENIZER if tokenizer_only else _SETTINGS:
        for path in source.glob(pattern):
            if path.is_file() and not path.name.endswith(".index.json"):
                shutil.copyfile(path, target / path.name)
    if dtype is not None:
        change_config(target, **{key: str(dtype).removeprefix("torch.") for key in ("torch_dtype", "dtype")})


def change_config(folder: Path, **changes: object) -> None:
    """Set keys of a config.json, those that it has."""
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {key: changes[key] for key in changes if key in config})
