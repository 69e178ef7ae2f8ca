"""One stage of training: any module that returns a loss, any data set, on `transformers.Trainer`, resumable."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast one stage learns."""

    steps: int
    learning_rate: float
    warmup_steps: int


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


def run_stage(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable[[list[Any]], dict[str, Any]],
    settings: StageSettings,
    folder: Path,
    *,
    seed: int,
    batch_size: int = 1,
) -> Spent:
    """Train `module` in place; `batch_size` examples a step, taken in the data set's order.

    Checkpoints lie in `folder`; the last one is taken up if there is any, so that a stopped run goes on. Returns what
    earlier processes spent up to it.
    """
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
        save_steps=max(1, settings.steps // 20),
        save_total_limit=1,
        logging_steps=max(1, settings.steps // 50),
        logging_nan_inf_filter=False,
        report_to=[],
        use_cpu=True,
        seed=seed,
        data_seed=seed,
    )
    stopwatch = _Stopwatch()
    trainer = Trainer(model=module, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[stopwatch])
    with redirect_stdout(sys.stderr):  # where the Trainer would print its losses
        trainer.train(resume_from_checkpoint=_last_whole_checkpoint(folder))
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
