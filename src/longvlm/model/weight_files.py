"""Reading single tensors out of a checkpoint's files, without the rest of them.

Weights come from safetensors files, or from .bin files read with `weights_only`, which can't run code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

from longvlm.errors import LongVLMError
from longvlm.model.llava_config import read_json


def read_tower_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A tower's tensors by their names inside the tower, from only those files and bytes that hold them."""
    files = weight_files(folder)
    prefix = _tower_prefix([name for names in files.values() for name in names])
    weights: dict[str, torch.Tensor] = {}
    for path, names in files.items():
        wanted = [name for name in names if name.startswith(prefix)]
        if wanted:
            weights |= read_tensors(path, wanted)
    # transformers itself knows the older names within a tower, which start with "vision_model."
    inside = "" if prefix == "vision_model." else prefix
    return {name.removeprefix(inside): tensor for name, tensor in weights.items()}


def _tower_prefix(names: list[str]) -> str:
    """What a tower's names start with: in LLaVA checkpoints of three generations, in a CLIP or SigLIP pair,
    and (with nothing) in a file of its own.
    """
    known = ("model.vision_tower.vision_tower.", "model.vision_tower.", "vision_tower.", "vision_model.")
    return next((prefix for prefix in known if any(name.startswith(prefix) for name in names)), "")


def weight_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files of a folder with the names of the tensors in each, safetensors preferred."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        index, single = folder / f"{stem}{suffix}.index.json", folder / f"{stem}{suffix}"
        if index.is_file():
            files: dict[Path, list[str]] = {}
            for name, file in read_json(index)["weight_map"].items():
                files.setdefault(folder / Path(file).name, []).append(name)
            return files
        if single.is_file():
            return {single: tensor_names(single)}
    raise LongVLMError(f"{folder} has no model.safetensors or pytorch_model.bin; give a complete checkpoint.")


def tensor_names(path: Path) -> list[str]:
    with _readable(path):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return list(file.keys())
        return list(torch.load(path, map_location="meta", weights_only=True))


def read_tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    with _readable(path):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name: tensors[name] for name in names}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn a missing or damaged weight file into a message about that file."""
    try:
        yield
    except FileNotFoundError as error:
        raise LongVLMError(f"{path.parent} lacks the file {path.name}; download the checkpoint again.") from error
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise LongVLMError(f"{path} can't be read ({reason}); download the checkpoint again.") from error
