"""Reading single tensors out of a checkpoint's files, without the rest of them.

Weights come from safetensors files, or from .bin files read with `weights_only`, which can't run code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open

from longvlm.errors import LongVLMError, one_line
from longvlm.model.llava_config import read_json

# The dtypes of safetensors files, as their headers call them.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def hash_weights(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, its files one after another by name; what one file's own sum is, too."""
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        with path.open("rb") as file:
            while some := file.read(1 << 24):
                weights.update(some)
    return weights.hexdigest()


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is read when it is needed; its shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @classmethod
    def held(cls, tensor: torch.Tensor) -> StoredTensor:
        """One that is in memory already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def cut(self, num_rows: int) -> StoredTensor:
        """The first `num_rows` rows of a table, or all where there are fewer."""
        kept = min(num_rows, self.shape[0])
        return StoredTensor((kept, *self.shape[1:]), self.dtype, lambda: self.read()[:kept])

    def grown(self, num_rows: int) -> StoredTensor:
        """A table (R, width) with `num_rows` rows instead, at least R; those that are new are the mean of its own."""

        def read() -> torch.Tensor:
            rows = self.read()
            mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
            return torch.cat([rows, mean.expand(num_rows - len(rows), -1)])

        return StoredTensor((num_rows, *self.shape[1:]), self.dtype, read)


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint's weight files by name; of each, only shape and dtype are read yet."""
    tensors: dict[str, StoredTensor] = {}
    for path, names in weight_files(folder).items():
        stored = open_file(path)
        for name in names:
            if name not in stored:
                raise LongVLMError(f"{path} lacks {name}, which the index lists; download the checkpoint again.")
            tensors[name] = stored[name]
    return tensors


def open_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors or .bin file, as `open_tensors`."""
    return {
        name: StoredTensor(shape, dtype, partial(_read_tensor, path, name))
        for name, (shape, dtype) in _read_outlines(path).items()
    }


def _read_outlines(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    with readable(path):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                return {name: (tuple(one.get_shape()), _dtype(path, one.get_dtype())) for name, one in slices.items()}
        content = torch.load(path, map_location="meta", weights_only=True)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise LongVLMError(f"{path} holds other things than named tensors; give a file of a model's weights.")
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in content.items()}


def _dtype(path: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise LongVLMError(f"{path} has weights of type {name}; give a checkpoint that is not quantised.")
    return _DTYPES[name]


def _read_tensor(path: Path, name: str) -> torch.Tensor:
    return read_tensors(path, [name])[name]


def read_tower_weights(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """A tower's tensors by their names inside the tower, from only those files and bytes that hold them, in `dtype` or
    as stored.
    """
    files = weight_files(folder)
    prefix = _tower_prefix([name for names in files.values() for name in names])
    weights: dict[str, torch.Tensor] = {}
    for path, names in files.items():
        wanted = [name for name in names if name.startswith(prefix)]
        if wanted:
            weights |= read_tensors(path, wanted, dtype)
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
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise LongVLMError(f"{index} has no weight_map; download the checkpoint again.")
            for name, file in weight_map.items():
                if not isinstance(file, str):
                    raise LongVLMError(f"{index} names no file for {name}; download the checkpoint again.")
                files.setdefault(folder / Path(file).name, []).append(name)
            return files
        if single.is_file():
            return {single: tensor_names(single)}
    raise LongVLMError(f"{folder} has no model.safetensors or pytorch_model.bin; give a complete checkpoint.")


def tensor_names(path: Path) -> list[str]:
    if path.suffix != ".safetensors":
        return list(_read_outlines(path))
    with readable(path), safe_open(str(path), framework="pt") as file:
        return list(file.keys())


def read_tensors(path: Path, names: list[str], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Tensors by their names, as stored or converted to `dtype` one by one, so that only one is there twice; whole
    numbers stay.
    """
    with readable(path):
        if path.suffix == ".safetensors":
            # Pages of a mapped file would count until the last tensor is converted.
            with safe_open(str(path), framework="pt", backend="pread" if dtype else "mmap") as file:
                return {name: _convert(file.get_tensor(name), dtype) for name in names}
        tensors = load_mapped(path)
        return {name: _convert(tensors[name], dtype) for name in names}


def load_mapped(path: Path) -> dict[str, torch.Tensor]:
    """A .bin file's tensors, of which only what is used is read; of the format before torch 1.6, all."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def _convert(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a missing or damaged weight file into a message about that file."""
    try:
        yield
    except FileNotFoundError as error:
        raise LongVLMError(f"{path.parent} lacks the file {path.name}; download the checkpoint again.") from error
    except (LongVLMError, MemoryError):
        raise
    except Exception as error:  # what is no pickle breaks torch's reader in many ways
        reason = one_line(error)
        raise LongVLMError(f"{path} can't be read ({reason}); download the checkpoint again.") from error
