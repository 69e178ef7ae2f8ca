"""Writing checkpoints: whole or not at all, in shards, with one shard in memory at a time."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from longvlm.errors import LongVLMError, one_line
from longvlm.model.weight_files import StoredTensor
from longvlm.whole_files import as_os_errors, hidden_beside, replacing

MAX_SHARD_SIZE = "5GB"

OnProgress = Callable[[float, str], None]

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Bytes from "5GB", "500MB" or "20KB" (powers of ten, as in transformers)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip().upper())
    num_bytes = float(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= num_bytes < math.inf:
        raise LongVLMError(f"The shard size {text!r} is none; write it as 5GB, 500MB or 20KB.")
    return int(num_bytes)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill that becomes `target` when all has gone well, and is deleted if not.

    It lies in a hidden one beside `target`, so that the renaming is a single step. A process that is killed leaves
    that one (`.saving-…`) behind until the same target is written again. Folders above `target` are made, and go
    with it. Raises LongVLMError where `target` can't be written.
    """
    require_new_folder(target)
    try:
        with as_os_errors(), _folders_above(target), hidden_beside(target) as hidden:
            folder = hidden / "checkpoint"
            folder.mkdir()
            yield folder
            if target.exists():
                target.rmdir()  # empty: see above
            folder.rename(target)
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        raise LongVLMError(
            f"Can't write {target} ({reason}); choose a place with room that you may write to."
        ) from error


@contextmanager
def _folders_above(target: Path) -> Iterator[None]:
    """Make the folders that `target` shall lie in; those that were not there go again if nothing comes into them."""
    lacking = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in lacking:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def require_new_folder(target: Path) -> None:
    """Refuse a target that exists already, or that a file is in the way of; call before anything takes long."""
    if target.resolve() == Path.cwd():
        raise LongVLMError(f"{target} is the folder you are in; give the name of a new one.")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise LongVLMError(f"{target} exists already; delete it, or choose another place.")
    above = next(path for path in target.resolve().parents if path.exists())
    if not above.is_dir():
        raise LongVLMError(f"Can't write {target}: {above} is a file; choose another place.")


def write_weights(
    folder: Path,
    tensors: Mapping[str, StoredTensor],
    *,
    max_shard_size: str = MAX_SHARD_SIZE,
    on_progress: OnProgress | None = None,
) -> None:
    """Write safetensors shards of at most `max_shard_size` with an index, or one file if all fits in.

    A tensor that is larger alone has a shard of its own. `on_progress` is told the fraction done, and in words.
    Raises LongVLMError where the disk has no room for all of it, before anything is written.
    """
    total_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    free_bytes = shutil.disk_usage(folder).free
    if total_bytes > free_bytes:
        raise LongVLMError(
            f"The weights take {total_bytes / 1e9:.1f} GB, but the disk of {folder.parent.parent} has "
            f"{free_bytes / 1e9:.1f} GB left; make room, or choose another place."
        )
    shards = _plan_shards(tensors, parse_size(max_shard_size))
    done_bytes, weight_map = 0, {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        shard: dict[str, torch.Tensor] = {}
        for name in names:
            # a copy: names of a .bin file may share memory, which safetensors refuses, or map the file
            shard[name] = tensors[name].read().clone(memory_format=torch.contiguous_format)
            weight_map[name] = file
            done_bytes += tensors[name].num_bytes
            if on_progress is not None:
                on_progress(done_bytes / max(total_bytes, 1), f"Writing file {number} of {len(shards)}")
        _save_shard(shard, folder / file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / "model.safetensors.index.json", index)


def _plan_shards(tensors: Mapping[str, StoredTensor], max_bytes: int) -> list[list[str]]:
    """The names of each shard, in the order given."""
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and shard_bytes + tensor.num_bytes > max_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(name)
        shard_bytes += tensor.num_bytes
    return shards


def _save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with replacing(path) as whole:
        save_file(tensors, whole, {"format": "pt"})


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
