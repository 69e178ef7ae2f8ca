"""The Trainer of a recipe: parts learn at their own rates, and a checkpoint is whole or does not count.

A checkpoint is a model's folder, with what is needed to go on beside it. The mark that it is complete is written last,
so that a run killed at any moment leaves either a whole checkpoint or one that is thrown away.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from longvlm.errors import LongVLMError, one_line
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.processing import LongVLMProcessor
from longvlm.model.trained_part import FILE_NAME, Base, TrainedPart
from longvlm.model.weight_files import weight_files
from longvlm.training.parameters import collect_part, is_trained, parameter_groups, restore_part
from longvlm.training.recipe import LearningRates
from longvlm.training.sharding import gather_optimizer, gather_weights, is_sharded, scatter_optimizer
from longvlm.whole_files import as_os_errors, give_usual_mode

COMPLETE = "complete"
OPTIMIZER_FILE, SCHEDULER_FILE = "optimizer.pt", "scheduler.pt"  # transformers' names
CALMER = "lower learning_rates, or set schedule.max_grad_norm=1, and choose another output."
_DEFECTS = (errno.EBADF, errno.EMFILE, errno.ENFILE)  # of ours, not of the disk
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")


class PartsTrainer(Trainer):
    """Trains the parts of a prepared model; saves the model whole if its language model learns, else what learns.

    Args:
        base: what the model was before the training.
        tower: the `vision_tower` that the base's config names beside its own weights.
    """

    optimizer: Any  # accelerate's wrapper takes its place

    def __init__(
        self,
        *arguments: Any,
        rates: LearningRates,
        processor: LongVLMProcessor,
        base: Base,
        tower: str | None,
        checkpoints_kept: int,
        **settings: Any,
    ) -> None:
        self._rates = rates
        self._processor = processor
        self._base = base
        self._tower = tower
        self._checkpoints_kept = checkpoints_kept
        super().__init__(*arguments, **settings)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(self.model if model is None else model, self._rates, self.args.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, betas=(self.args.adam_beta1, self.args.adam_beta2))
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **settings: Any) -> Any:
        # The language model would keep keys and values for a next token that never comes.
        return super().compute_loss(model, {**inputs, "use_cache": False}, *arguments, **settings)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with naming_what_is_not_written(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                _flush_to_disk(folder)
                (folder / COMPLETE).touch()
                for older in complete_checkpoints(Path(self.args.output_dir))[: -self._checkpoints_kept]:
                    remove_checkpoint(older)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A folder for `LongVLM.from_pretrained`; every process has to come here."""
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        is_whole = self._rates.language_model is not None
        state = gather_weights(
            self.model, lambda name: is_whole or is_trained(name, self._rates), keep=self.args.should_save
        )
        if not self.args.should_save:
            return
        _require_finite(state, self.state.global_step)
        folder.mkdir(parents=True, exist_ok=True)
        if is_whole:
            generation = self.model.generation_config
            if generation is not None and (generation.temperature, generation.top_p) != (None, None):
                generation.do_sample = True  # older models have both without it, which transformers doesn't write
            # Other tools know LLaVA's names; a run goes on from its own.
            self.model.save_pretrained(folder, state_dict=state, save_original_format=not self.is_in_train)
        else:
            collect_part(state, self.model, self._base).save(folder)
            config_of_part(self.model.config, self._tower).save_pretrained(folder)
        self._processor.save_pretrained(folder)
        give_usual_mode(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        pass  # `restore_weights` did, before the model was sharded

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gather_optimizer(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_FILE)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint) / OPTIMIZER_FILE, weights_only=True, mmap=True)
        scatter_optimizer(self.model, self.optimizer.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_FILE, weights_only=True))

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _require_finite(weights: dict[str, torch.Tensor], step: int) -> None:
    """Raise LongVLMError for weights that are lost, before they take a checkpoint's place."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise LongVLMError(f"At step {step} {name} holds values that are no numbers any more; {CALMER}")


def config_of_part(config: LongVLMConfig, tower: str | None) -> LongVLMConfig:
    """The config to keep with a trained part: its base is stored in full, whether it was trained in 4 bits or not."""
    own = copy.deepcopy(config)
    own.vision_tower = tower
    if hasattr(own, "quantization_config"):
        del own.quantization_config
    return own


def restore_weights(model: LongVLMForConditionalGeneration, folder: Path, base: Base) -> None:
    """Put a checkpoint's weights into a model that was prepared as the one that was saved, on the same base."""
    if (folder / FILE_NAME).is_file():
        part = TrainedPart.load(folder)
        if part.base.digest != base.digest:
            raise LongVLMError(
                f"{folder} was trained on another base than the {base.name or 'bundled'} of now: its weights have "
                "changed since. Choose another output, or put the base back."
            )
        restore_part(model, part)
        return
    differing = set(model.state_dict()) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    for path in weight_files(folder):
        weights = load_file(path)
        differing = (differing - weights.keys()) | set(model.load_state_dict(weights, strict=False).unexpected_keys)
    if differing:
        raise LongVLMError(
            f"{folder} and the model differ in {min(differing)}; choose another output folder for this recipe."
        )
    model.tie_weights()


def require_undamaged(checkpoint: Path) -> None:
    """Raise LongVLMError, naming the file, for a whole checkpoint that a disk or another hand has damaged since."""
    readers: dict[str, Callable[[Path], Any]] = {
        "*.safetensors": _open_tensors,
        "*.json": lambda path: json.loads(path.read_bytes()),
        "*.pt": lambda path: torch.load(path, weights_only=True, mmap=True),
    }
    for pattern, read in readers.items():
        for path in sorted(checkpoint.glob(pattern)):
            with naming_what_is_damaged(path, removed=checkpoint):
                read(path)


def _open_tensors(path: Path) -> None:
    with safe_open(str(path), framework="pt"):  # its header says how long the file has to be
        pass


def complete_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, the oldest first."""
    found = {path: match for path in folder.glob("*") if (match := _CHECKPOINT.match(path.name))}
    return sorted((p for p in found if (p / COMPLETE).is_file()), key=lambda path: int(found[path][1]))


def remove_half_written(folder: Path) -> None:
    """Throw away the checkpoints that a killed run left unfinished, and nothing that merely has a like name."""
    whole = complete_checkpoints(folder)
    for path in folder.glob("*"):
        if _CHECKPOINT.match(path.name) and path.is_dir() and path not in whole:
            shutil.rmtree(path)


def _flush_to_disk(folder: Path) -> None:
    """Have the disk itself hold the files, so that the mark, written next, is true after a power cut, too."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def remove_checkpoint(folder: Path) -> None:
    (folder / COMPLETE).unlink()  # first, so that one removed by half is not taken for whole
    shutil.rmtree(folder)


@contextmanager
def naming_what_is_not_written(folder: Path) -> Iterator[None]:
    """Turn a full disk, or one that may not be written to, into a message about what could not be written."""
    try:
        with as_os_errors():
            yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch.save has no exception of its own
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        if isinstance(error, OSError) and error.errno in _DEFECTS:
            raise
        reason = one_line(error)
        raise LongVLMError(
            f"Can't write {folder} ({reason}); make room and start the same command again: it goes on from the last "
            "complete checkpoint."
        ) from error


@contextmanager
def naming_what_is_damaged(path: Path, *, removed: Path | None = None) -> Iterator[None]:
    """Turn what reading a file of ours fails with, after a crash or by another hand, into a message that names it.

    `removed`: what is to be made anew, if more than the file.
    """
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, EOFError, UnpicklingError) as error:
        raise LongVLMError(
            f"{path} is damaged ({one_line(error)}); remove {removed or 'it'}, and the same command makes it anew."
        ) from error


@contextmanager
def naming_rows_in_workers() -> Iterator[None]:
    """Raise what a process that prepares batches complains of as the complaint itself, without that process's trace."""
    try:
        yield
    except LongVLMError as error:
        raise LongVLMError(str(error).strip().splitlines()[-1].removeprefix(f"{_qualified(LongVLMError)}: ")) from error


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
