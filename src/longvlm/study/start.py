"""What all rows of the study start from: a language model that has learned to read from videos that are spelled out."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, set_seed

from longvlm.model.processing import LongVLMProcessor
from longvlm.study.rows import StudySettings
from longvlm.study.spelling import spell_bank
from longvlm.training import default_model
from longvlm.training.auxiliary_losses import ModelWithAuxiliaryLosses
from longvlm.training.checkpointing import naming_what_is_damaged
from longvlm.training.drawn_blocks import plan_blocks
from longvlm.training.examples import ComposedBatches
from longvlm.training.stage import run_stage
from longvlm.training.untrained_model import ModelShape, build_model
from longvlm.whole_files import replacing

_SEED = 1_000  # that no run has
_BLOCK_SEED, _SEGMENTS_PER_BLOCK, _SEGMENT_SECONDS = 650_000, (1, 1, 2, 2, 3, 4, 6), 10
_OWN = ("model.model.vision_tower.", "model.model.multi_modal_projector.")


def build_learner(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> ModelWithAuxiliaryLosses:
    """The untrained model with its heads; features are stored, so that its encoder learns nothing."""
    model = build_model(shape, tokenizer)
    model.model.vision_tower.requires_grad_(False)
    return ModelWithAuxiliaryLosses(model, state_layer=shape.state_layer, recall_layer=shape.recall_layer)


def load_start(
    folder: Path, shape: ModelShape, tokenizer: PreTrainedTokenizerFast, settings: StudySettings
) -> dict[str, torch.Tensor]:
    """The tensors of the language model and its heads, trained and put into `folder` unless they lie there.

    Encoder and projector are not among them: each row has a projector of its own. Raises LongVLMError for a damaged
    file.
    """
    path, checkpoints = folder / "start.safetensors", folder / "start"
    if not path.is_file():
        set_seed(_SEED)
        learner, lessons = build_learner(shape, tokenizer), make_lessons(shape.vision_width, tokenizer, settings)
        run_stage(learner, lessons, default_model.take_only, settings.start, checkpoints, seed=_SEED)
        shared = {name: tensor for name, tensor in learner.state_dict().items() if not name.startswith(_OWN)}
        with replacing(path) as whole:
            save_file(shared, whole)
    shutil.rmtree(checkpoints, ignore_errors=True)
    with naming_what_is_damaged(path):
        return load_file(path)


def make_lessons(width: int, tokenizer: PreTrainedTokenizerFast, settings: StudySettings) -> ComposedBatches:
    """Batches about spelled videos, the short ones first; their tokens are `width` numbers wide."""
    stage, size = settings.start, _SEGMENT_SECONDS
    plans = plan_blocks(stage.blocks, _SEGMENTS_PER_BLOCK, first_seed=_BLOCK_SEED, segment_seconds=size)
    each_a_second = {"frames_per_segment": size, "tokens_per_segment": size, "global_layers": 0}
    return ComposedBatches(
        spell_bank(plans, width, segment_seconds=size),
        LongVLMProcessor(tokenizer, compression=each_a_second),
        stage.lesson,
        num_batches=stage.steps,
        kinds=settings.kinds,
        timestamps=False,
        seed="start",
    )
