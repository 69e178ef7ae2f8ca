"""What `longvlm train` is told: a YAML file and `key=value` changes, read into frozen, checked dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml

from longvlm.errors import LongVLMError
from longvlm.training.settings import build_settings, parse_yaml, read_settings
from longvlm.types import Compression, Sampling

_EITHER = {"features": "videos", "videos": "features"}
SEEDS = 2**32  # numpy takes no larger ones
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ModelChoice:
    """What training starts from.

    Args:
        base: folder or hub id of a LongVLM or LLaVA checkpoint; none is the bundled model.
        vision_tower: in place of the base's.
        new_projector: whether the projector starts from random weights, in place of the base's.
        video_marks: whether tokens are added that stand before and after a video (`<vid_start>`, `<vid_end>`), where
            the base has none.
        compression: changes to the base's settings.
        num_frames, fps, max_frames: changes to the base's sampling.
        timestamps: whether the segments' times are written; none leaves it to the base.
        load_in_4bit: the language model's weights, for QLoRA; wants CUDA.
    """

    base: str | None = None
    vision_tower: str | None = None
    new_projector: bool = False
    video_marks: bool = True
    compression: dict[str, Any] = field(default_factory=dict)
    num_frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    timestamps: bool | None = None
    load_in_4bit: bool = False

    def __post_init__(self) -> None:
        Compression.from_dict({**dataclasses.asdict(Compression()), **self.compression})
        if self.num_frames is not None or self.fps is not None:
            Sampling(num_frames=self.num_frames, fps=self.fps, max_frames=self.max_frames)
        elif self.max_frames is not None:
            raise LongVLMError("max_frames limits sampling by fps; give fps, too.")


@dataclass(frozen=True)
class DataSource:
    """Instructions and the videos they speak of; one of `features` and `videos`, or neither where none has a video.

    Args:
        instructions: JSON in Video-ChatGPT's format or in LLaVA's.
        features: folder of `.longvlm` files, one a video, called by its id.
        videos: folder of videos, called by their ids; they are encoded before the training.
        weight: how often a row is seen in an epoch; a fraction takes other rows each time.
        missing: what to do with rows whose video is not there: "refuse" them, or "drop" them and say how many.
    """

    instructions: Path
    features: Path | None = None
    videos: Path | None = None
    weight: float = 1.0
    missing: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        if self.features is not None and self.videos is not None:
            raise LongVLMError(f"{self.instructions} has both features and videos; give the one to learn from.")
        _require_positive(weight=self.weight)


@dataclass(frozen=True)
class LearningRates:
    """The highest learning rate of each part; a part without one is frozen.

    `new_tokens` are the rows of the embedding for the tokens around a video. A language model that is trained itself
    trains them, too.
    """

    encoder: float | None = None
    projector: float | None = None
    new_tokens: float | None = None
    language_model: float | None = None
    lora: float | None = None

    def __post_init__(self) -> None:
        rates = dataclasses.asdict(self)
        _require_positive(**{f"learning_rates.{name}": rate for name, rate in rates.items() if rate is not None})
        if all(rate is None for rate in rates.values()):
            raise LongVLMError(f"No part has a learning rate; give one to {_listed(rates)} in learning_rates.")
        if self.language_model is not None:
            for part in ("new_tokens", "lora"):
                if rates[part] is not None:
                    raise LongVLMError(
                        f"learning_rates has both language_model and {part}, which is a part of it; leave one out."
                    )


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank changes to the language model's linear layers (arXiv 2106.09685); used with `learning_rates.lora`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        _require_positive(**{"lora.rank": self.rank, "lora.alpha": self.alpha, "lora.targets": len(self.targets)})
        _require_share(**{"lora.dropout": self.dropout})


@dataclass(frozen=True)
class Schedule:
    """How long, and in which steps.

    Args:
        epochs: passes over the data.
        max_steps: stops earlier; the learning rate then falls to its end by that step.
        batch_size: samples on each device at a time; `accumulation` of them make a step.
        shape: of the learning rate after the warm-up.
        warmup_share: of the steps.
        max_tokens: a longer sample loses its end.
        group_lengths: samples of like length stand in one batch, so that less is padding.
    """

    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 1
    accumulation: int = 1
    shape: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_tokens: int = 2048
    group_lengths: bool = True

    def __post_init__(self) -> None:
        _require_positive(
            epochs=self.epochs, batch_size=self.batch_size, accumulation=self.accumulation, max_tokens=self.max_tokens
        )
        if self.max_steps is not None:
            _require_positive(max_steps=self.max_steps)
        _require_share(warmup_share=self.warmup_share)
        _require_at_least_0(weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm)


@dataclass(frozen=True)
class Machine:
    """Where and in which precision.

    Args:
        precision: "bf16" multiplies in bfloat16 and keeps what is trained in float32; none is bf16 on CUDA and float32
            on a CPU.
        device: "cpu" or "cuda"; none is CUDA where there is any.
        gradient_checkpointing: computes activations twice to keep fewer.
        fsdp: shards the model over the processes that torchrun started, in place of a copy in each.
        threads: of the CPU; none leaves it to torch.
        workers: processes that prepare batches.
    """

    precision: Literal["bf16", "float32"] | None = None
    device: str | None = None
    gradient_checkpointing: bool = False
    fsdp: bool = False
    threads: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None:
            _require_positive(threads=self.threads)
        _require_at_least_0(workers=self.workers)


@dataclass(frozen=True)
class Reports:
    """How often, in steps, the run says how it goes, measures itself and keeps a checkpoint.

    Args:
        evaluate_every: none measures on the held-out part at the end only.
        checkpoints_kept: the last ones.
        tensorboard: whether curves are written for it.
    """

    log_every: int = 10
    evaluate_every: int | None = None
    save_every: int = 500
    checkpoints_kept: int = 1
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _require_positive(log_every=self.log_every, save_every=self.save_every, checkpoints_kept=self.checkpoints_kept)
        if self.evaluate_every is not None:
            _require_positive(evaluate_every=self.evaluate_every)


@dataclass(frozen=True)
class Recipe:
    """A whole training run; paths are relative to the folder in which it is started.

    Args:
        output: folder for checkpoints, curves and, at the end, the trained model in `model/`.
        held_out_share: of the videos, whose rows are not trained on but measured.
    """

    output: Path
    data: tuple[DataSource, ...]
    learning_rates: LearningRates
    model: ModelChoice = field(default_factory=ModelChoice)
    lora: LoraSettings = field(default_factory=LoraSettings)
    schedule: Schedule = field(default_factory=Schedule)
    machine: Machine = field(default_factory=Machine)
    reports: Reports = field(default_factory=Reports)
    held_out_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require_share(held_out_share=self.held_out_share)
        _require_at_least_0(seed=self.seed)
        if self.seed >= SEEDS:
            raise LongVLMError(f"seed is {self.seed}; it must be less than {SEEDS}.")
        if not self.data:
            raise LongVLMError("data is empty; give at least one item with instructions.")
        if self.lora != LoraSettings() and self.learning_rates.lora is None:
            raise LongVLMError("lora has settings, but nothing trains it; give learning_rates.lora, or leave them out.")
        if self.model.new_projector and self.learning_rates.projector is None:
            raise LongVLMError(
                "model.new_projector is set, but nothing trains it; give learning_rates.projector, or leave it out."
            )
        if self.learning_rates.encoder is not None:
            stored = next((source for source in self.data if source.features is not None), None)
            if stored is not None:
                raise LongVLMError(
                    f"{stored.instructions} comes with features, from which an encoder can't learn; give videos in "
                    "their place, or leave learning_rates.encoder out."
                )
        if self.model.load_in_4bit:
            if self.learning_rates.lora is None:
                raise LongVLMError(
                    "Weights loaded in 4 bits can't be trained; give learning_rates.lora, in place of language_model."
                )
            if self.machine.fsdp:
                raise LongVLMError("Weights loaded in 4 bits can't be sharded; leave machine.fsdp out.")

    def to_dict(self) -> dict[str, Any]:
        """The recipe as YAML and JSON can hold it."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def bundled_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by file name; those of the bundled model are of another kind."""
    folder = Path(str(files("longvlm.training") / "recipes"))
    return {path.name: path for path in sorted(folder.glob("*.yaml")) if not path.name.startswith("default_model")}


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe: a file, or the name of a bundled one; `changes` are texts such as "schedule.epochs=3".

    Raises LongVLMError, naming the key and the known ones, for an unknown or missing key, or a value of another kind.
    """
    found = Path(path) if Path(path).is_file() else bundled_recipes().get(str(path))
    if found is None:
        raise LongVLMError(f"No such recipe: {path}. Give a YAML file, or one of {', '.join(bundled_recipes())}.")
    content = read_settings(found)
    for change in changes:
        _apply_change(content, change)
    return build_settings(Recipe, content, found.name)


def _apply_change(content: dict[str, Any], change: str) -> None:
    """Set one value in place: "data.0.features=DIR" in the first item of the list `data`.

    Features take the place of videos, and videos that of features.
    """
    key, equals, text = change.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise LongVLMError(f"{change!r} is no change to a recipe; write key=value, such as schedule.epochs=3.")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise LongVLMError(f"The value of {key} is no valid YAML: {text!r}.") from error
    place: Any = content
    for name in names[:-1]:
        place = _step_into(place, name, key)
    takes_its_place = len(names) == 3 and names[0] == "data" and names[2] in _EITHER and value is not None
    if takes_its_place and isinstance(place, dict):
        place.pop(_EITHER[names[2]], None)
    if isinstance(place, list):
        place[_position(place, names[-1], key)] = value
    else:
        place[names[-1]] = value


def _step_into(place: Any, name: str, key: str) -> Any:
    inner = place[_position(place, name, key)] if isinstance(place, list) else place.setdefault(name, {})
    if inner is None and isinstance(place, dict):
        inner = place[name] = {}
    if not isinstance(inner, dict | list):
        raise LongVLMError(f"{key} can't be set: {name} holds {inner!r}, not keys.")
    return inner


def _position(items: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise LongVLMError(f"{key} can't be set: {name!r} is no position in a list of {len(items)}, counted from 0.")
    return int(name)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise LongVLMError(f"{name} is {value}; it must be above 0.")


def _require_at_least_0(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise LongVLMError(f"{name} is {value}; it must be at least 0.")


def _require_share(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise LongVLMError(f"{name} is {value}; it must be at least 0 and below 1.")


def _listed(names: Mapping[str, Any]) -> str:
    return " or ".join([", ".join(list(names)[:-1]), list(names)[-1]])
