"""One stage of training: any module that returns a loss, any data set, on `transformers.Trainer`, resumable.

A small model's products are too small for several threads to share. Where batches come in parts, each part is learned
from in a thread of its own, by a replica that has the module's own parameters.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from longvlm.errors import LongVLMError
from longvlm.training.muon import MuonAndAdamW, group_parameters
from longvlm.training.rounded_products import rounded_products

PARTS = "parts"
_AVERAGE_NAME = "average.safetensors"  # beside a checkpoint's own weights


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast one stage learns.

    `averaged_steps`: a stage leaves the moving average of its weights over about so many last steps (exponential, with
    a decay of 1 - 1 / averaged_steps; after Polyak and Juditsky, 1992); the last weights where it is 0.
    `matrix_learning_rate`: of the hidden layers' matrices, by Muon (`muon.py`); where it is 0, AdamW steps them as it
    does all else, with `learning_rate`.
    """

    steps: int
    learning_rate: float
    warmup_steps: int
    averaged_steps: int = field(default=0, kw_only=True)
    matrix_learning_rate: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.averaged_steps <= self.steps:
            raise LongVLMError(
                f"averaged_steps is {self.averaged_steps}; give 0, or a number up to that of the steps, {self.steps}."
            )


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and seconds of processors in this process; other ones draw for it."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        """By this process; only differences mean anything."""
        return cls(time.monotonic(), time.process_time())

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall_seconds + other.wall_seconds, self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall_seconds - other.wall_seconds, self.cpu_seconds - other.cpu_seconds)


class _Stopwatch(TrainerCallback):
    """Writes what was spent so far into the Trainer's log, which checkpoints keep for the process that goes on."""

    earlier = Spent()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        last = state.log_history[-1] if state.log_history else {}
        self.earlier = Spent(last.get("wall_seconds", 0.0), last.get("cpu_seconds", 0.0))
        self._began = Spent.now()

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        state.log_history[-1] |= asdict(self.earlier + (Spent.now() - self._began))


class _MovingAverage(TrainerCallback):
    """Of the parameters that learn; begins with what they were before the first step."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self._learning = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self._learning.items()}
        self._update = get_ema_multi_avg_fn(1 - 1 / steps)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._update([self.weights[name] for name in self._learning], list(self._learning.values()), 0)

    def save(self, folder: Path) -> None:
        save_file(self.weights, folder / _AVERAGE_NAME)

    def load(self, folder: Path) -> None:
        self.weights = load_file(folder / _AVERAGE_NAME)

    @torch.no_grad()
    def apply(self) -> None:
        for name, weight in self._learning.items():
            weight.copy_(self.weights[name])


class _SideBySideTrainer(Trainer):
    """Learns from batches as they are, and from {PARTS: batches}, of whose gradients it takes the mean: each in one of
    torch's threads, or a single one with all of them.

    Two gradients have the same sum in either order, so that with two threads a run always ends with the same weights.
    """

    def __init__(
        self,
        *arguments: Any,
        average: _MovingAverage | None,
        matrix_learning_rate: float,
        rounded: bool,
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self._average, self._matrix_learning_rate, self._rounded = average, matrix_learning_rate, rounded
        if average is not None:
            self.add_callback(average)
        module, self._threads = cast(nn.Module, self.model), torch.get_num_threads()
        shared = {id(parameter): parameter for parameter in module.parameters()}
        others = [copy.deepcopy(module, dict(shared)) for _ in range(self._threads - 1)]
        self._replicas = [module, *others]
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))

    def close(self) -> None:
        """End the threads; what their products were set to holds for some of the caller's too."""
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if not self._matrix_learning_rate:
            return super().create_optimizer(model)
        given = self.args
        self.optimizer = MuonAndAdamW(
            group_parameters(cast(nn.Module, self.model), self._matrix_learning_rate),
            rounded=self._rounded,
            lr=given.learning_rate,
            betas=(given.adam_beta1, given.adam_beta2),
            weight_decay=given.weight_decay,
        )
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self._average is not None:
            self._average.save(Path(output_dir or self.args.output_dir))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if PARTS not in inputs:
            return super().training_step(model, inputs, num_items_in_batch)
        parts = inputs[PARTS]
        if len(parts) > len(self._replicas):
            raise ValueError(f"a batch in {len(parts)} parts is more than {len(self._replicas)} threads learn from")
        for replica in self._replicas:
            replica.train()
        if len(parts) == 1:
            return _learn(model, parts[0], 1)
        return torch.stack([*self._pool.map(_learn, self._replicas, parts, repeat(len(parts)))]).sum()


def _learn(module: nn.Module, batch: dict[str, torch.Tensor], num_parts: int) -> torch.Tensor:
    loss = module(**batch)["loss"] / num_parts
    loss.backward()
    return loss.detach()


def run_stage(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable[[list[Any]], dict[str, Any]],
    settings: StageSettings,
    folder: Path,
    *,
    seed: int,
    batch_size: int = 1,
    rounded: bool = False,
) -> Spent:
    """Train `module` in place; `batch_size` examples a step, taken in the data set's order, and collated to a batch or
    to {PARTS: batches}, which threads learn from side by side; `rounded`: see `rounded_products`.

    Checkpoints lie in `folder`; the last one is taken up if there is any, so that a stopped run goes on. Returns what
    earlier processes spent up to it.
    """
    logging_steps = max(1, settings.steps // 60)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        max_grad_norm=1.0,
        adam_beta2=0.98,
        train_sampling_strategy="sequential",
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        remove_unused_columns=False,
        save_steps=max(1, settings.steps // 20 // logging_steps) * logging_steps,  # what was spent is logged before
        save_total_limit=1,
        logging_steps=logging_steps,
        logging_nan_inf_filter=False,
        report_to=[],
        use_cpu=True,
        seed=seed,
        data_seed=seed,
    )
    stopwatch, last = _Stopwatch(), _last_whole_checkpoint(folder)
    average = _MovingAverage(module, settings.averaged_steps) if settings.averaged_steps else None
    if average is not None and last is not None:
        average.load(Path(last))
    with rounded_products(module) if rounded else nullcontext():
        trainer = _SideBySideTrainer(
            model=module,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[stopwatch],
            average=average,
            matrix_learning_rate=settings.matrix_learning_rate,
            rounded=rounded,
        )
        with redirect_stdout(sys.stderr):  # where the Trainer would print its losses
            trainer.train(resume_from_checkpoint=last)
    trainer.close()
    if average is not None:
        average.apply()
    return stopwatch.earlier


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that the Trainer had finished; one that a kill left unfinished is removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))) is not None:
        if _holds_json(Path(last) / TRAINER_STATE_NAME):  # written last
            return last
        shutil.rmtree(last)
    return None


def _holds_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return True
