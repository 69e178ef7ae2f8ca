"""`longvlm train`: a recipe to a trained model, on `transformers.Trainer`, alone or under torchrun, resumable."""

from __future__ import annotations

import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from longvlm.errors import LongVLMError
from longvlm.model.checkpoints import require_four_bits, resolve_model
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.model.trained_part import Base, digest_checkpoint
from longvlm.pipeline import LongVLM
from longvlm.training.checkpointing import (
    PartsTrainer,
    complete_checkpoints,
    naming_rows_in_workers,
    naming_what_is_not_written,
    remove_half_written,
    require_undamaged,
    restore_weights,
)
from longvlm.training.conversations import (
    BatchMaker,
    Sample,
    VideoConversations,
    hold_out,
)
from longvlm.training.curves import Lines, Say, require_tensorboard, table_of_parts, tensorboard_callback
from longvlm.training.parameters import (
    add_video_marks,
    describe_parts,
    prepare_parts,
    require_parts,
    require_peft,
    video_token_ids,
)
from longvlm.training.recipe import Recipe
from longvlm.training.run_folder import (
    CHECKPOINTS,
    CURVES,
    HISTORY_FILE,
    MODEL,
    claim_output,
    claim_samples,
)
from longvlm.training.sample_order import plan_samples
from longvlm.training.samples import gather_samples
from longvlm.training.sharding import shard_model
from longvlm.whole_files import locked, make_folder, write_whole

_LONGEST_ENCODING_SECONDS = 7 * 24 * 3600  # while the first process encodes videos, the others wait
# As transformers called it up to 5.20.
_ACTIVATION_CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)
_SHAPES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def train(recipe: Recipe, say: Say = print) -> Path:
    """Train as the recipe says; the folder of the trained model, which `LongVLM.from_pretrained` takes.

    What lies in the recipe's output folder already is gone on from: a finished run is not run again.
    Raises LongVLMError where the recipe, the data or the model can't be used, or the disk is full.
    """
    set_seed(recipe.seed)
    if recipe.machine.threads is not None:
        torch.set_num_threads(recipe.machine.threads)
    say = say if _rank() == 0 else _say_nothing
    arguments = _make_arguments(recipe)
    _require_packages(recipe)  # before hours of encoding
    make_folder(recipe.output)
    with locked(recipe.output) if _rank() == 0 else nullcontext():
        with arguments.main_process_first(local=False):
            claim_output(recipe, arguments.world_size)
        if (recipe.output / MODEL).is_dir():
            say(f"{recipe.output / MODEL} is trained already; for another training choose another output.")
            return recipe.output / MODEL
        start = _open_start(recipe, arguments)
        samples = gather_samples(recipe, _encoding_model(recipe, arguments, start.opened), arguments, say)
        with arguments.main_process_first(local=False):
            claim_samples(recipe.output, [sample.place for sample in samples])
        return _run(recipe, arguments, start, samples, say)


def check(recipe: Recipe) -> None:
    """Raise LongVLMError where `train` would, before any data is read or anything written: for packages that are not
    there, a base or a device that can't be used, settings that don't fit it.
    """
    arguments = _make_arguments(recipe)
    _require_packages(recipe)
    _open_start(recipe, arguments)


def _require_packages(recipe: Recipe) -> None:
    if recipe.learning_rates.lora is not None:
        require_peft()
    if recipe.model.load_in_4bit:
        require_four_bits()
    if recipe.reports.tensorboard:
        require_tensorboard()


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _say_nothing(text: str) -> None:
    pass


@dataclass(frozen=True)
class _Start:
    """The model that a training starts from, opened, and what is known of it."""

    opened: LongVLM
    base: Base
    tower: str | None


def _open_start(recipe: Recipe, arguments: TrainingArguments) -> _Start:
    name, fsdp = recipe.model.base, recipe.machine.fsdp
    folder = resolve_model(name)
    # A language model that learns does so in float32, and is not rounded before; it is sharded from the CPU.
    is_rounded = arguments.bf16 and not fsdp and recipe.learning_rates.language_model is None
    dtype = torch.bfloat16 if is_rounded else torch.float32
    opened = _open(recipe, torch.device("cpu") if fsdp else arguments.device, dtype)
    config = opened.config
    if recipe.learning_rates.encoder is not None and config.default_num_frames is None:
        raise LongVLMError(
            "An encoder learns from videos of one number of frames alone, and the base samples by time; "
            "set model.num_frames."
        )
    require_parts(recipe, config, opened.processor)
    tower = config.vision_tower
    if tower is not None and Path(tower).is_dir():
        tower = str(Path(tower).absolute())
    recorded = "" if name is None else str(folder.absolute()) if Path(name).is_dir() else name
    return _Start(opened, Base(recorded, digest_checkpoint(folder)), tower)


def _open(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> LongVLM:
    choice = recipe.model
    opened = LongVLM.from_pretrained(
        choice.base,
        vision_tower=choice.vision_tower,
        device=device,
        dtype=dtype,
        load_in_4bit=choice.load_in_4bit,
        compression=choice.compression or None,
        timestamps=choice.timestamps,
    )
    if choice.num_frames is not None or choice.fps is not None:
        opened.config.default_num_frames, opened.config.default_fps = choice.num_frames, choice.fps
        opened.config.default_max_frames = choice.max_frames
    return opened


def _encoding_model(recipe: Recipe, arguments: TrainingArguments, opened: LongVLM) -> LongVLM:
    """What videos are encoded with: the same model, on the device and in the numbers that are fast."""
    device, dtype = arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32
    return opened if (opened.device, opened.dtype) == (device, dtype) else _open(recipe, device, dtype)


def _run(recipe: Recipe, arguments: TrainingArguments, start: _Start, samples: list[Sample], say: Say) -> Path:
    model, processor = start.opened.language_model, start.opened.processor
    if recipe.model.video_marks:
        add_video_marks(model, processor)
    if recipe.model.new_projector:
        torch.manual_seed(recipe.seed)
        model.model.multi_modal_projector.reset_parameters()
    prepare_parts(model, recipe.learning_rates, recipe.lora, video_token_ids(processor), recipe.seed)
    training, held_out = hold_out(samples, recipe.held_out_share, recipe.seed)
    dataset, order = _plan_data(recipe, arguments, start.opened, model, training, say)
    max_tokens = recipe.schedule.max_tokens
    measured = VideoConversations(held_out, processor, model.config, max_tokens=max_tokens) if held_out else None
    if measured is not None:
        measured.require_room(measured.estimate_lengths())
    say(
        f"{len(samples)} samples, {len(held_out)} of them held out; {arguments.max_steps} steps of "
        f"{_samples_per_step(arguments)} samples each"
    )
    say(table_of_parts(describe_parts(model, recipe.learning_rates)))
    folder = Path(arguments.output_dir)
    with arguments.main_process_first(local=False):
        if _rank() == 0:
            remove_half_written(folder)
    checkpoints = complete_checkpoints(folder)
    if checkpoints:
        say(f"going on from {checkpoints[-1]}")
        require_undamaged(checkpoints[-1])
        restore_weights(model, checkpoints[-1], start.base)
    if recipe.machine.fsdp:
        shard_model(model, arguments.device, arguments.world_size, bf16=arguments.bf16)
    trainer = PartsTrainer(
        model=model,
        args=arguments,
        train_dataset=Subset(dataset, order),
        eval_dataset=measured,
        data_collator=BatchMaker(processor),
        callbacks=_make_callbacks(recipe, checkpoints, say),
        rates=recipe.learning_rates,
        processor=processor,
        base=start.base,
        tower=start.tower,
        checkpoints_kept=recipe.reports.checkpoints_kept,
    )
    trainer.remove_callback(PrinterCallback)
    with naming_rows_in_workers():
        trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)
        if held_out and not _is_measured(trainer):
            trainer.evaluate()
    return _finish(recipe, trainer)


def _is_measured(trainer: Trainer) -> bool:
    """Whether the held-out part was measured after the last step."""
    state = trainer.state
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _plan_data(
    recipe: Recipe,
    arguments: TrainingArguments,
    opened: LongVLM,
    model: LongVLMForConditionalGeneration,
    training: list[Sample],
    say: Say,
) -> tuple[VideoConversations, list[int]]:
    """The data set and the order of its samples; sets the number of steps in `arguments`."""
    schedule = recipe.schedule
    if not training:
        raise LongVLMError(
            f"held_out_share={recipe.held_out_share:g} of so few videos leaves nothing to learn from; give more of "
            "them, or leave it out."
        )
    dataset = VideoConversations(training, opened.processor, model.config, max_tokens=schedule.max_tokens)
    lengths = dataset.estimate_lengths()
    num_cut = dataset.require_room(lengths)
    if num_cut:
        say(f"{num_cut} of {len(training)} samples may be longer than {schedule.max_tokens} tokens and lose their end")
    order = plan_samples(
        lengths,
        [sample.weight for sample in training],
        epochs=schedule.epochs,
        batch_size=_samples_per_step(arguments),
        group_lengths=schedule.group_lengths,
        seed=recipe.seed,
    )
    if not order:
        raise LongVLMError("epochs and weights are so small that not a single sample is learned from; raise them.")
    steps = math.ceil(len(order) / _samples_per_step(arguments))
    arguments.max_steps = min(steps, schedule.max_steps or steps)
    arguments.warmup_steps = math.ceil(schedule.warmup_share * arguments.max_steps)
    # No longer than the run: the Trainer would take a step more on being started again after the last one.
    return dataset, order[: arguments.max_steps * _samples_per_step(arguments)]


def _samples_per_step(arguments: TrainingArguments) -> int:
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size


def _make_arguments(recipe: Recipe) -> TrainingArguments:
    schedule, machine, reports, rates = recipe.schedule, recipe.machine, recipe.reports, recipe.learning_rates
    on_cpu = _is_cpu(machine.device)
    precision = machine.precision or ("float32" if on_cpu else "bf16")
    if machine.fsdp and "RANK" not in os.environ:
        raise LongVLMError(
            "machine.fsdp shards a model over processes, and there is one; start them with torchrun -m longvlm train."
        )
    measured = reports.evaluate_every is not None and recipe.held_out_share > 0
    arguments = TrainingArguments(
        output_dir=str(recipe.output / CHECKPOINTS),
        num_train_epochs=1,  # the order of the samples holds all epochs
        max_steps=1,  # set when the data are known
        per_device_train_batch_size=schedule.batch_size,
        per_device_eval_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        learning_rate=max(rate for rate in vars(rates).values() if rate is not None),
        lr_scheduler_type=_SHAPES[schedule.shape],
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.max_grad_norm,
        bf16=precision == "bf16",  # of a sharded model, the sharding sees to it
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        ddp_timeout=_LONGEST_ENCODING_SECONDS,
        # An encoder's last layers and its last norm are not read.
        ddp_find_unused_parameters=rates.encoder is not None,
        train_sampling_strategy="sequential",
        dataloader_num_workers=machine.workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        save_steps=reports.save_every,
        logging_steps=reports.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if measured else "no",
        eval_steps=reports.evaluate_every if measured else None,
        prediction_loss_only=True,
        report_to=[],
        disable_tqdm=True,
        use_cache=True,  # False would be saved with the model, and make its answers slow
        seed=recipe.seed,
        data_seed=recipe.seed,
        **{_ACTIVATION_CHECKPOINTING: machine.gradient_checkpointing},
    )
    if "RANK" not in os.environ:
        # One process trains on one device: the Trainer would deal flat visual tokens out over all of them.
        arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _is_cpu(device: str | None) -> bool:
    if device not in (None, "cpu", "cuda"):
        raise LongVLMError(
            f"machine.device is {device!r}; choose cpu or cuda, and CUDA_VISIBLE_DEVICES for one of them."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise LongVLMError("machine.device is cuda, and there is none; leave it out, or set it to cpu.")
    return device == "cpu" or not torch.cuda.is_available()


class _ReportsOfNow(TrainerCallback):
    """A run that goes on saves, logs and measures as often as its recipe says now, not as often as it did before."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)


def _make_callbacks(recipe: Recipe, checkpoints: list[Path], say: Say) -> list[TrainerCallback]:
    if _rank() != 0:
        return [_ReportsOfNow()]
    callbacks: list[TrainerCallback] = [_ReportsOfNow(), Lines(say)]
    if recipe.reports.tensorboard:
        first_step = int(checkpoints[-1].name.rpartition("-")[2]) + 1 if checkpoints else 0
        callbacks.append(tensorboard_callback(recipe.output / CURVES, first_step))
    return callbacks


def _finish(recipe: Recipe, trainer: Trainer) -> Path:
    """Write the trained model; it gets its name when it is whole."""
    folder = recipe.output / MODEL
    unfinished = folder.with_name(f"{MODEL}.unfinished")
    with naming_what_is_not_written(unfinished):
        trainer.save_model(str(unfinished))
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            history = json.dumps(trainer.state.log_history, indent=1)
            write_whole(recipe.output / HISTORY_FILE, history.encode())
            unfinished.replace(folder)
    return folder
