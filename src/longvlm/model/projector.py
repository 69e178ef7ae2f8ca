"""The reference's `mm_projector.bin`: what training the projector alone has saved, merged into its base.

It holds `model.mm_projector.*` and the whole `model.embed_tokens.weight`, in which the rows of the new tokens
`<vid_patch>`, `<vid_start>` and `<vid_end>` follow the base's own. There is nothing in it for the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.llava_config import VIDEO_TOKENS, follow_the_paper
from longvlm.model.weight_files import StoredTensor, open_file
from longvlm.model.weight_names import ORIGINAL_PROJECTOR, is_projector

FILE_NAME = "mm_projector.bin"


@dataclass(frozen=True)
class ReferenceProjector:
    """layers: weights and biases by their names in the file; embeddings (R, width), or None where it holds none."""

    path: Path
    layers: dict[str, StoredTensor]
    embeddings: StoredTensor | None

    @classmethod
    def open(cls, path: str | Path) -> ReferenceProjector:
        """Raises LongVLMError for a file that is no projector; a folder stands for the mm_projector.bin in it."""
        path = Path(path)
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise LongVLMError(f"There is no projector file {file}; give the path of an {FILE_NAME}.")
        tensors = open_file(file)
        layers = {name: tensor for name, tensor in tensors.items() if name.startswith(ORIGINAL_PROJECTOR)}
        projector = cls(file, layers, tensors.get("model.embed_tokens.weight"))
        for name in projector._wanted_names():
            if name not in layers:
                raise LongVLMError(f"{file} lacks {name}; give the {FILE_NAME} that training a projector saves.")
        return projector

    @property
    def num_layers(self) -> Literal[1, 2]:
        return 2 if f"{ORIGINAL_PROJECTOR}0.weight" in self.layers else 1

    def _wanted_names(self) -> list[str]:
        inside = [""] if self.num_layers == 1 else ["0.", "2."]
        return [f"{ORIGINAL_PROJECTOR}{layer}{kind}" for layer in inside for kind in ("weight", "bias")]

    def adapt_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Add the video's tokens if the embeddings have rows for just them behind the tokenizer's own.

        Tells whether they have. The reference sizes its table like this: by its tokenizer, new tokens last.
        """
        missing = [token for token in VIDEO_TOKENS if token not in tokenizer.get_vocab()]
        if self.embeddings is None or self.embeddings.shape[0] != len(tokenizer) + len(missing):
            return False
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
        return True

    def adapt_config(self, config: LongVLMConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the base's config describe the model with this projector.

        With rows for the video's tokens, those stand in the prompt, and videos are compressed as in the paper, which
        the projector was trained for. Raises LongVLMError where it belongs to another base.
        """
        self._require_fit(config)
        config.projector = str(self.path)
        config.projector_num_layers = self.num_layers
        config.multimodal_projector_bias = True
        if self.embeddings is None:
            return
        num_rows, base_rows = self.embeddings.shape[0], config.text_config.vocab_size
        if self.adapt_tokenizer(tokenizer):
            follow_the_paper(config, tokenizer)
        elif num_rows != base_rows:
            raise LongVLMError(
                f"{self.path} has embeddings of {num_rows} tokens, but the base has {base_rows} and its tokenizer "
                f"{len(tokenizer)}, {len(VIDEO_TOKENS)} video tokens not counted; give the base that it belongs to."
            )
        config.text_config.vocab_size = num_rows

    def _require_fit(self, config: LongVLMConfig) -> None:
        first, width = self.layers[self._wanted_names()[0]], config.text_config.hidden_size
        wanted = (width, config.visual_width)
        if first.shape != wanted:
            raise LongVLMError(
                f"The projector in {self.path} has the shape {first.shape}, but the base's language model and vision "
                f"tower need {wanted}; give the base that it belongs to."
            )
        if self.embeddings is not None and self.embeddings.shape[1:] != (width,):
            raise LongVLMError(
                f"The embeddings in {self.path} have the shape {self.embeddings.shape}, but the base's language model "
                f"is {width} wide; give the base that it belongs to."
            )

    def merge_into(self, tensors: dict[str, StoredTensor], *, tied: bool) -> dict[str, StoredTensor]:
        """A checkpoint's tensors with this file's in the place of theirs, in the checkpoint's own dtype.

        The projector has the original layout's names. A tied head is the embeddings; another one gets the mean of
        its rows for every new token, as in LLaVA's own code, so that none of them is ever the likeliest.
        """
        merged = {
            name: tensor
            for name, tensor in tensors.items()
            if not is_projector(name) and not (tied and name.endswith("lm_head.weight"))
        }
        embeddings = next((name for name in merged if name.endswith("embed_tokens.weight")), None)
        if embeddings is None:
            raise LongVLMError(
                "The base lacks embed_tokens.weight, and can take no projector; give a complete checkpoint."
            )
        dtype = merged[embeddings].dtype
        merged |= {name: _as_dtype(tensor, dtype) for name, tensor in self.layers.items()}
        if self.embeddings is not None:
            merged[embeddings] = _as_dtype(self.embeddings, dtype)
            num_rows = self.embeddings.shape[0]
            for name in [name for name in merged if name.endswith("lm_head.weight")]:
                if merged[name].shape[0] != num_rows:  # rows behind the words, which some bases have, go first
                    merged[name] = merged[name].cut(num_rows - len(VIDEO_TOKENS)).grown(num_rows)
        return merged


def _as_dtype(tensor: StoredTensor, dtype: torch.dtype) -> StoredTensor:
    return StoredTensor(tensor.shape, dtype, lambda: tensor.read().to(dtype))
