"""Trains the bundled default model from nothing, stage by stage; every stage resumes where it was stopped.

    python -m longvlm.training.default_model [RECIPE.yaml] [--runs DIR] [--output DIR]

The encoder learns to see single frames; a bank of encoded blocks is made with it; projector and language model learn
from videos joined from blocks, the short ones first; single segments teach no order, and so have no stage of their own.
Model class and collation are those of every model; the loss adds what the world knows (`ModelWithAuxiliaryLosses`), and
weighs every answer alike in each of the parts into which a batch is dealt, one a thread. Where the processor multiplies
bfloat16, learning does so (`rounded_products`); the log says whether it did. The bank is encoded in float32.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from longvlm.differences import first_difference
from longvlm.errors import LongVLMError
from longvlm.heap import keep_heaps_of_threads
from longvlm.model.placement import multiplies_bfloat16_fast
from longvlm.model.processing import LongVLMProcessor
from longvlm.stages.vision import VisionEncoder
from longvlm.training.auxiliary_losses import LOSS_WEIGHTS, ModelWithAuxiliaryLosses
from longvlm.training.checkpointing import naming_what_is_not_written
from longvlm.training.drawn_blocks import plan_blocks, plan_whole_scenes
from longvlm.training.encoder_heads import CrowdedFrames, EncoderWithHeads, init_as_cosine_transform, measure
from longvlm.training.examples import ComposedBatches, Lesson
from longvlm.training.segment_bank import SegmentBank
from longvlm.training.settings import build_settings, read_settings, require_known
from longvlm.training.stage import PARTS, Spent, StageSettings, run_stage
from longvlm.training.untrained_model import FPS, ModelShape, build_model, build_tokenizer
from longvlm.whole_files import give_usual_mode, hidden_beside, locked, make_folder, write_whole
from longvlm.world.wordings import TIMED_KINDS

IMAGE_MEAN, IMAGE_STD = (0.45, 0.45, 0.45), (0.25, 0.25, 0.25)
BLOCKS_PER_PART = 1000  # of the bank; a stopped run takes up the parts that are done
RECIPE = Path(str(files("longvlm.training") / "recipes" / "default_model.yaml"))

# Seeds of one purpose each; evaluation uses none of them (longvlm.world takes its own from 1,000,000,000).
FRAME_SEED, HELD_OUT_FRAME_SEED, BLOCK_SEED, SCENE_SEED = 0, 400_000, 500_000, 550_000

KIND_WEIGHTS = {
    "first": 1.0,
    "last": 1.0,
    "after": 2.0,
    "before": 3.0,
    "count": 3.0,
    "exists": 0.7,
    "direction": 1.0,
    "action": 2.5,
    "order": 2.5,
    "when": 1.0,
    "at": 1.0,
    "start": 0.7,
    "duration": 0.7,
    "describe": 2.0,
}


@dataclass(frozen=True)
class BankSettings:
    """Of `blocks` blocks, each with one of the numbers of segments, drawn evenly; and of whole `scenes`, with numbers
    of segments in a range, drawn log-uniformly.
    """

    blocks: int
    segments_per_block: tuple[int, ...]
    scenes: int = 0
    segments_per_scene: tuple[int, int] = (3, 12)

    def __post_init__(self) -> None:
        if min(self.segments_per_block, default=0) < 1:
            raise LongVLMError(f"segments_per_block is {list(self.segments_per_block)}; give some numbers from 1 up.")
        least, most = self.segments_per_scene
        if not 2 <= least <= most:
            raise LongVLMError(f"segments_per_scene is {[least, most]}; give the least, from 2 up, and the most.")


@dataclass(frozen=True)
class FrameStage(StageSettings):
    """A stage on single frames."""

    batch_size: int


@dataclass(frozen=True)
class LessonStage(StageSettings):
    """A stage of projector and language model on videos composed from the bank.

    `loss_weights`: in place of the usual LOSS_WEIGHTS.
    """

    name: str
    lesson: Lesson
    loss_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self.loss_weights, LOSS_WEIGHTS, "loss_weights")


@dataclass(frozen=True)
class Recipe:
    seed: int
    threads: int
    model: ModelShape
    encoder: FrameStage
    bank: BankSettings
    lessons: tuple[LessonStage, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.lessons]
        if twice := [name for name in names if names.count(name) > 1 or name in ("encoder", "bank")]:
            raise LongVLMError(f"lessons has {twice[0]!r} twice, or by a name that is taken; call it otherwise.")
        if self.model.timestamps and any(stage.lesson.shown_segments for stage in self.lessons):
            raise LongVLMError(
                "shown_segments leaves segments out, whose times (timestamps) would need places; have only one."
            )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe. Raises LongVLMError for a missing, unknown or wrong key, naming it."""
    return build_settings(Recipe, read_settings(path), path.name)


class Course:
    """The stages in order; what a stage made lies in the run's folder and is not made twice."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self._spent_earlier = recipe, folder, Spent()
        self._earlier: dict[str, str] = {}  # the stage before, and a hash of what decided it and those before it
        folder.mkdir(parents=True, exist_ok=True)
        set_seed(recipe.seed)
        torch.set_num_threads(recipe.threads)
        self.tokenizer = build_tokenizer()
        self.model = build_model(recipe.model, self.tokenizer)
        self.learner = ModelWithAuxiliaryLosses(
            self.model,
            state_layer=recipe.model.state_layer,
            recall_layer=recipe.model.recall_layer,
            frames_per_segment=recipe.model.frames_per_segment,
        )
        self.rounded = multiplies_bfloat16_fast(torch.device("cpu"))
        self.processor = LongVLMProcessor(
            self.tokenizer,
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
            image_size=recipe.model.image_size,
            compression=self.model.config.compression,
        )
        self.log_path = folder / "log.json"
        self.log: dict[str, Any] = json.loads(self.log_path.read_text()) if self.log_path.is_file() else {}

    def run(self) -> None:
        recipe = self.recipe
        self._stage("encoder", self.train_encoder, recipe.encoder)
        self._stage("bank", self.make_bank, recipe.bank)
        shutil.rmtree(self.folder / "bank", ignore_errors=True)  # its parts, which a stop would have needed
        for stage in recipe.lessons:
            self._stage(stage.name, partial(self.train_language, stage), stage, kind_weights=self.kind_weights)

    def _stage(self, name: str, work: Callable[[], dict[str, float] | None], settings: Any, **more: Any) -> None:
        """Run a stage unless it was finished before; then take up its weights.

        Raises LongVLMError where it was begun or finished by another recipe.
        """
        weights, begun = self.folder / f"{name}.pt", self.folder / f"{name}.begun.json"
        recipe = self.recipe
        decides = {"seed": recipe.seed, "threads": recipe.threads, "model": asdict(recipe.model)}
        decides |= {name: asdict(settings)} | more
        decides |= {"after": self._earlier} if self._earlier else {}
        self._earlier = {name: hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]}
        decides = json.loads(json.dumps(decides))  # as the log gives it back
        finished = self.log.get(name, {"recipe": decides}).get("recipe")
        found = json.loads(begun.read_bytes()) if begun.is_file() else finished
        if (differing := first_difference(found, decides)) is not None:
            raise LongVLMError(
                f"{self.folder} holds the stage {name!r} of another recipe, or after other stages ({differing[0]} "
                "differs); choose another folder with --runs, or remove that one."
            )
        if name not in self.log:
            write_whole(begun, json.dumps(decides).encode())
            began, self._spent_earlier = Spent.now(), Spent()
            report = work() or {}
            torch.save(self.learner.state_dict(), weights)
            spent = asdict(Spent.now() - began + self._spent_earlier)
            spent = {key: round(value, 1) for key, value in spent.items()}
            self.log[name] = {**report, **spent, "rounded_products": self.rounded, "recipe": decides}
            write_whole(self.log_path, json.dumps(self.log, indent=1).encode())
            begun.unlink()
            print(f"{name}: {report | spent}")
        self.learner.load_state_dict(torch.load(weights, weights_only=True))

    @property
    def kind_weights(self) -> dict[str, float]:
        """How often each kind of question is asked; those about times only of a model that is given times."""
        timestamps = self.recipe.model.timestamps
        return {kind: weight for kind, weight in KIND_WEIGHTS.items() if timestamps or kind not in TIMED_KINDS}

    def train_encoder(self) -> dict[str, float]:
        settings, shape = self.recipe.encoder, self.recipe.model
        size = {"image_size": shape.image_size, "patch_size": shape.patch_size}
        init_as_cosine_transform(self.model.model.vision_tower.embeddings.patch_embedding)
        learner = EncoderWithHeads(self.model.model.vision_tower, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
        frames = CrowdedFrames(settings.steps * settings.batch_size, **size, first_seed=FRAME_SEED)
        folder, seed = self.folder / "encoder", self.recipe.seed
        batch_size = settings.batch_size
        stack = partial(_stack, parts=self.recipe.threads)
        self._spent_earlier = run_stage(
            learner,
            frames,
            stack,
            settings,
            folder,
            seed=seed,
            batch_size=batch_size,
            rounded=self.rounded,
        )
        return measure(learner.eval(), CrowdedFrames(512, **size, first_seed=HELD_OUT_FRAME_SEED))

    def make_bank(self) -> None:
        settings, config = self.recipe.bank, self.model.config
        compression = config.compression_settings
        tower = self.model.model.vision_tower
        encoder = VisionEncoder(
            copy.deepcopy(tower),
            feature_layer=config.vision_feature_layer,
            select_strategy=config.vision_feature_select_strategy,
            global_layers=compression.global_layers,
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
        )
        seconds = compression.frames_per_segment / FPS
        plans = plan_blocks(
            settings.blocks, settings.segments_per_block, first_seed=BLOCK_SEED, segment_seconds=seconds
        )
        plans += plan_whole_scenes(
            settings.scenes, settings.segments_per_scene, first_seed=SCENE_SEED, segment_seconds=seconds
        )
        parts = self.folder / "bank"
        parts.mkdir(exist_ok=True)
        banks = []
        for first in range(0, len(plans), BLOCKS_PER_PART):
            part, log = parts / f"{first}.safetensors", parts / f"{first}.json"
            if log.is_file() and part.is_file():
                self._spent_earlier += Spent(**json.loads(log.read_bytes()))
            else:
                began = Spent.now()
                some = plans[first : first + BLOCKS_PER_PART]
                print(f"bank: blocks {first:,} to {first + len(some):,} of {len(plans):,}")
                SegmentBank.encode(some, encoder, compression, fps=FPS).save(part)
                write_whole(log, json.dumps(asdict(Spent.now() - began)).encode())
            banks.append(SegmentBank.load(part))
        SegmentBank.join(banks).save(self.folder / "bank.safetensors")

    def train_language(self, stage: LessonStage) -> None:
        """Train projector and language model; the encoder, whose features the bank holds, stays as it is."""
        self.model.model.vision_tower.requires_grad_(False)
        batches = ComposedBatches(
            SegmentBank.load(self.folder / "bank.safetensors"),
            self.processor,
            stage.lesson,
            num_batches=stage.steps,
            kinds=self.kind_weights,
            timestamps=self.recipe.model.timestamps,
            seed=f"{self.recipe.seed} {stage.name}",
            parts=self.recipe.threads,
        )
        folder, seed = self.folder / stage.name, self.recipe.seed
        self.learner.loss_weights = LOSS_WEIGHTS | stage.loss_weights
        self._spent_earlier = run_stage(
            self.learner, batches, take_only, stage, folder, seed=seed, rounded=self.rounded
        )

    def export(self, output: Path) -> None:
        """Write model and processor, the weights in bfloat16; what was there is replaced when all of it is written."""
        output.mkdir(parents=True, exist_ok=True)
        with hidden_beside(output) as folder:
            self.model.eval().to(torch.bfloat16).save_pretrained(folder)
            self.processor.save_pretrained(folder)
            give_usual_mode(folder)
            for path in sorted(folder.glob("[!.]*.*")):
                path.replace(output / path.name)


def _stack(items: list[dict[str, torch.Tensor]], parts: int) -> dict[str, list[dict[str, torch.Tensor]]]:
    dealt = [items[part::parts] for part in range(min(parts, len(items)))]
    return {PARTS: [{key: torch.stack([item[key] for item in some]) for key in some[0]} for some in dealt]}


def take_only(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The collation of data sets whose items are whole batches already."""
    (batch,) = batches
    return batch


def main() -> int:
    assets = Path(str(files("longvlm") / "assets"))
    parser = argparse.ArgumentParser(description="Train the bundled default model from nothing.")
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--runs", type=Path, default=Path("runs/default_model"), help="checkpoints, bank and log")
    parser.add_argument("--output", type=Path, default=assets / "default_model", help="where the model is written")
    arguments = parser.parse_args()
    keep_heaps_of_threads()
    torch.set_flush_denormal(True)  # sharp attention has many, a hundred times as slow; threads begun later do so too
    try:
        recipe = load_recipe(arguments.recipe)
        for folder in (arguments.runs, arguments.output):
            make_folder(folder)
        with locked(arguments.runs), naming_what_is_not_written(arguments.runs):
            course = Course(recipe, arguments.runs)
            course.run()
        with naming_what_is_not_written(arguments.output):
            course.export(arguments.output)
    except LongVLMError as mistake:
        print(f"Error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    print(f"wrote {arguments.output}. A card that lies there is that of the model before;")
    print("`python scripts/write_model_card.py --help` tells how to measure a model and write its card.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
