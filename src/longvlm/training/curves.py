"""How a training goes, for people: the table of parts, a line every few steps, a curve at the end, TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longvlm.errors import LongVLMError
from longvlm.stages.tokens import format_timestamp
from longvlm.training.checkpointing import CALMER
from longvlm.training.parameters import PartRow

Say = Callable[[str], None]
_LOSSES = {"loss": "loss", "eval_loss": "held-out loss"}
_BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60


def table_of_parts(rows: Sequence[PartRow]) -> str:
    """The parts with their parameters, as lines of text."""
    cells = [("part", "parameters", "trained", "learning rate", "stored as")]
    for row in rows:
        rate = "frozen" if row.learning_rate is None else f"{row.learning_rate:g}"
        cells.append((row.part.replace("_", " "), f"{row.parameters:,}", f"{row.trained:,}", rate, row.dtype))
    total = (sum(row.parameters for row in rows), sum(row.trained for row in rows))
    cells.append(("all", f"{total[0]:,}", f"{total[1]:,}", "", ""))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    texts = []
    for part, *numbers, dtype in cells:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)]
        texts.append("  ".join([part.ljust(widths[0]), *aligned, dtype]).rstrip())
    return "\n".join(texts)


def draw_curve(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """Values as a row of bars, at most `width`; each of them is the mean of its share of the values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(_BARS[round((mean - low) / (high - low or 1) * (len(_BARS) - 1))] for mean in means)


class Lines(TrainerCallback):
    """A line whenever the Trainer logs, and the curve of the losses when it is done."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._started, self._first_step = time.monotonic(), 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        for key, name in _LOSSES.items():
            if not math.isfinite(logs.get(key, 0.0)):
                raise LongVLMError(f"At step {state.global_step} the {name} is {logs[key]}; {CALMER}")
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            pace = (time.monotonic() - self._started) / max(1, state.global_step - self._first_step)
            left = format_timestamp(pace * (state.max_steps - state.global_step))
            words = [f"loss {logs['loss']:.4f}", f"learning rate {logs['learning_rate']:.2e}", f"{left} left"]
            self._say("  ".join([where, *words]))
        elif "eval_loss" in logs:
            self._say(f"{where}  held-out loss {logs['eval_loss']:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for key, name in _LOSSES.items():
            values = [entry[key] for entry in state.log_history if key in entry]
            if len(values) > 1:
                self._say(f"{name} {values[0]:.3f} {draw_curve(values)} {values[-1]:.3f}")


def require_tensorboard() -> None:
    """Raise LongVLMError where curves for TensorBoard can't be written."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise LongVLMError(
            "Curves for TensorBoard need tensorboard: pip install 'longvlm[train]', or set reports.tensorboard=false."
        ) from error


def tensorboard_callback(folder: Path, first_step: int) -> TrainerCallback:
    """Curves for TensorBoard in `folder`; what a killed run wrote from `first_step` on is superseded."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback(SummaryWriter(str(folder), purge_step=first_step))
    callback.logging_dir = str(folder)  # where it opens a writer again for what is measured after the last step
    return callback
