"""What a training of a part saves, for tests that need it without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longvlm.model.checkpoints import load_config, load_processor
from longvlm.model.trained_part import Base, TrainedPart, digest_checkpoint


def save_part(folder: Path, base: Path, vocabulary: int | None = None, **content: Any) -> Path:
    """`content` is that of a TrainedPart; `vocabulary` the number of rows of its embedding, the base's if None."""
    folder.mkdir()
    TrainedPart(Base(str(base), digest_checkpoint(base)), **content).save(folder)
    config = load_config(base)
    load_processor(base, config).save_pretrained(folder)
    config.text_config.vocab_size = vocabulary or config.text_config.vocab_size
    config.save_pretrained(folder)
    return folder
