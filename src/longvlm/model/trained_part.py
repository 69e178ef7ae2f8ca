"""What a training changed, without the model it changed: one small file that is applied to its base when loaded.

Holds whole weights (a projector, a vision tower), rows of the embedding for new tokens, and low-rank changes to linear
layers (LoRA, arXiv 2106.09685). It says which base it belongs to, by name and by a digest of the base's weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from longvlm.errors import LongVLMError, one_line
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.weight_files import StoredTensor, load_mapped, readable, weight_files
from longvlm.whole_files import give_usual_mode

FILE_NAME = "trained_part.safetensors"
TOWER_PREFIX = "model.vision_tower."
_FORMAT, _FORMAT_VERSION = "longvlm-trained-part", "1"
_EMBEDDINGS, _HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
_INPUT_ROWS, _OUTPUT_ROWS = "new_tokens.input_rows", "new_tokens.output_rows"


@dataclass(frozen=True)
class Base:
    """The model that a part belongs to: a folder or hub id ("" is the bundled model), and a digest of its weights."""

    name: str
    digest: str


@dataclass(frozen=True)
class TrainedPart:
    """`weights` by the names of the model's parameters; input_rows, output_rows (n, width) of `token_ids` in the
    embedding and in the head; `low_rank` (rank, in), (out, rank) by the names of linear layers, whose product times
    `low_rank_scale` is added to their weights."""

    base: Base
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    token_ids: tuple[int, ...] = ()
    input_rows: torch.Tensor | None = None
    output_rows: torch.Tensor | None = None
    low_rank: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    low_rank_scale: float = 1.0

    def save(self, folder: Path) -> None:
        tensors = {f"weights.{name}": tensor for name, tensor in self.weights.items()}
        for name, rows in ((_INPUT_ROWS, self.input_rows), (_OUTPUT_ROWS, self.output_rows)):
            if rows is not None:
                tensors[name] = rows
        for name, (a, b) in self.low_rank.items():
            tensors[f"low_rank.{name}.a"], tensors[f"low_rank.{name}.b"] = a, b
        metadata = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "base": self.base.name,
            "base_digest": self.base.digest,
            "token_ids": json.dumps(self.token_ids),
            "low_rank_scale": repr(self.low_rank_scale),
        }
        path = folder / FILE_NAME
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
        give_usual_mode(folder)

    @classmethod
    def load(cls, folder: Path) -> TrainedPart:
        """Raises LongVLMError where the file is damaged or of another format."""
        path = folder / FILE_NAME
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            base = _read_base(path, metadata)
            low_rank = {
                name.removeprefix("low_rank.").removesuffix(".a"): (tensor, tensors[f"{name[:-2]}.b"])
                for name, tensor in tensors.items()
                if name.startswith("low_rank.") and name.endswith(".a")
            }
            return cls(
                base,
                {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")},
                tuple(json.loads(metadata["token_ids"])),
                tensors.get(_INPUT_ROWS),
                tensors.get(_OUTPUT_ROWS),
                low_rank,
                float(metadata["low_rank_scale"]),
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise _unreadable(path, error) from error


def base_of(folder: Path) -> Base | None:
    """What the trained part in `folder` belongs to; None where the folder holds none."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            return _read_base(path, file.metadata() or {})
    except (OSError, SafetensorError, KeyError) as error:
        raise _unreadable(path, error) from error


def _read_base(path: Path, metadata: dict[str, str]) -> Base:
    if (metadata.get("format"), metadata.get("format_version")) != (_FORMAT, _FORMAT_VERSION):
        raise LongVLMError(f"{path} is no trained part of version {_FORMAT_VERSION}; train again, or update longvlm.")
    return Base(metadata["base"], metadata["base_digest"])


def _unreadable(path: Path, error: Exception) -> LongVLMError:
    return LongVLMError(f"{path} can't be read ({one_line(error)}); copy or train it again.")


def digest_checkpoint(folder: Path) -> str:
    """A hash of a checkpoint's weights: of every tensor its name, its shape, and the row in its middle.

    Of a trained part, which can be the base of another one, it is a hash of the file, which names its own base.
    """
    if (folder / FILE_NAME).is_file():
        return hashlib.sha256((folder / FILE_NAME).read_bytes()).hexdigest()
    digest, rows = hashlib.sha256(), []
    for path, names in weight_files(folder).items():
        with readable(path):
            rows += [(name, shape, row.clone()) for name, shape, row in _middle_rows(path, list(names))]
    for name, shape, row in sorted(rows, key=lambda one: one[0]):  # however they are divided into files
        digest.update(f"{name} {shape} {row.dtype}".encode())
        digest.update(row.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _middle_rows(path: Path, names: list[str]) -> list[tuple[str, list[int], torch.Tensor]]:
    if path.suffix == ".safetensors":
        rows = []
        with safe_open(str(path), framework="pt") as file:
            for name in names:
                part = file.get_slice(name)
                shape = part.get_shape()
                rows.append((name, shape, part[shape[0] // 2 : shape[0] // 2 + 1] if shape else file.get_tensor(name)))
        return [(name, shape, row.reshape(-1)) for name, shape, row in rows]
    tensors = load_mapped(path)
    found = [(name, tensors[name]) for name in names]
    return [(n, list(t.shape), (t[len(t) // 2] if t.ndim else t).reshape(-1)) for n, t in found]


def base_config(config: LongVLMConfig, vocabulary: int) -> LongVLMConfig:
    """The config of a trained model for loading its base, whose embedding has `vocabulary` rows."""
    own = copy.deepcopy(config)
    own.text_config.vocab_size = vocabulary
    own.base = None
    return own


@torch.no_grad()
def apply_part(model: LongVLMForConditionalGeneration, part: TrainedPart, vocabulary: int) -> None:
    """Change `model`, the base, in place into the trained model, with an embedding of `vocabulary` rows.

    New rows that the part does not hold are the mean of the base's, as they were in the training.
    Raises LongVLMError where a weight of the part does not fit the model.
    """
    known = len(model.get_input_embeddings().weight)
    if vocabulary != known:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        for table in (model.get_input_embeddings(), model.lm_head):
            table.weight[known:] = table.weight[:known].float().mean(0).to(table.weight)
    ids = list(part.token_ids)
    for rows, table in ((part.input_rows, model.get_input_embeddings()), (part.output_rows, model.lm_head)):
        if rows is not None:
            table.weight[ids] = rows.to(table.weight)
    parameters = dict(model.named_parameters())
    for name, weight in part.weights.items():
        require_fit(name, weight.shape, parameters)
        parameters[name].copy_(weight)
    modules = dict(model.named_modules())
    for name, (a, b) in part.low_rank.items():
        if not isinstance(linear := modules.get(name), nn.Linear):
            raise LongVLMError(f"The trained part changes {name}, which its base has not; give the right base.")
        _add_low_rank(linear, a, b, part.low_rank_scale)


def require_fit(name: str, shape: Sequence[int], of_base: Mapping[str, torch.Tensor | StoredTensor]) -> None:
    """Raise LongVLMError where the base has no tensor of this name and shape, for which a part has one."""
    own = of_base.get(name)
    if own is None or tuple(own.shape) != tuple(shape):
        found = "nothing" if own is None else f"one of shape {tuple(own.shape)}"
        raise LongVLMError(f"The trained part has {name} of shape {tuple(shape)}, its base {found}; they don't fit.")


def _add_low_rank(linear: nn.Linear, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    weight = linear.weight
    if weight.is_floating_point():
        change = scale * (b.float() @ a.float())
        weight.copy_(weight.float() + change.to(weight.device))  # rounded once, as where parts are merged
        return
    a, b = a.to(weight.device), b.to(weight.device)

    # Weights in 4 bits are too coarse to take the change in, so it is computed beside them.
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        own_a, own_b = a.to(output), b.to(output)
        return output + scale * (inputs[0].to(output) @ own_a.T @ own_b.T)

    linear.register_forward_hook(add)


def merge_stored_part(base: dict[str, StoredTensor], part: TrainedPart, vocabulary: int) -> dict[str, StoredTensor]:
    """As `apply_part`, of tensors that are read one by one: those of `base`, by their names here, without a tied head.

    Whole weights are the part's in its dtype; rows and low-rank changes are rounded once to the dtype of the base's
    tensor that they go into, so the result is exact where that is the dtype of the part.
    Raises LongVLMError where a weight of the part does not fit the base.
    """
    merged = dict(base)
    for name, rows in ((_EMBEDDINGS, part.input_rows), (_HEAD, part.output_rows)):
        if name in base:
            merged[name] = _with_rows(name, base[name], vocabulary, part.token_ids, rows)
        elif rows is not None:
            raise LongVLMError(f"The trained part has rows for {name}, its base nothing; they don't fit.")
    for name, weight in part.weights.items():
        require_fit(name, weight.shape, base)
        merged[name] = StoredTensor.held(weight)
    for layer, (a, b) in part.low_rank.items():
        name = f"{layer}.weight"
        require_fit(name, (b.shape[0], a.shape[1]), base)
        merged[name] = _with_low_rank(merged[name], a, b, part.low_rank_scale)
    return merged


def _with_rows(
    name: str, table: StoredTensor, vocabulary: int, token_ids: Sequence[int], rows: torch.Tensor | None
) -> StoredTensor:
    if table.shape[0] > vocabulary:
        known = table.shape[0]
        raise LongVLMError(f"The trained part has {vocabulary} rows in {name}, its base {known}; they don't fit.")
    grown = table.grown(vocabulary)

    def read() -> torch.Tensor:
        result = grown.read()
        if rows is not None:
            result[list(token_ids)] = rows.to(result)
        return result

    return StoredTensor(grown.shape, grown.dtype, read)


def _with_low_rank(weight: StoredTensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> StoredTensor:
    def read() -> torch.Tensor:
        return (weight.read().float() + scale * (b.float() @ a.float())).to(weight.dtype)

    return StoredTensor(weight.shape, weight.dtype, read)


def tower_weights(part: TrainedPart) -> dict[str, torch.Tensor]:
    """The part's weights of the vision tower, by their names inside the tower."""
    return {n.removeprefix(TOWER_PREFIX): t for n, t in part.weights.items() if n.startswith(TOWER_PREFIX)}


def require_same_base(base: Base, folder: Path, part_folder: Path) -> None:
    """Raise LongVLMError unless `folder` holds the weights that the part in `part_folder` was trained on."""
    found = digest_checkpoint(folder)
    if found != base.digest:
        raise LongVLMError(
            f"{part_folder} was trained on a base with digest {base.digest[:12]}, but {folder} has {found[:12]}; "
            "put the base of that training there, or give it with --base."
        )


def explain_missing_base(base: Base, part_folder: Path, error: LongVLMError) -> LongVLMError:
    return LongVLMError(
        f"{part_folder} holds the trained part of a model alone, and its base can't be had: {error} "
        "If it lies elsewhere, give it with --base."
    )


def require_part(folder: Path, base: str | Path) -> None:
    """Raise LongVLMError unless `folder` holds a trained part, which alone has a `base`."""
    if base_of(folder) is None:
        raise LongVLMError(f"{folder} holds no trained part of a model; leave its base {base} out.")
