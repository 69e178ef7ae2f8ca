"""The bundled model before its training, and the study's: shape, words, and how gently segments are merged."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.modeling import LongVLMForConditionalGeneration
from longvlm.training.auxiliary_losses import LOOKUP_HEADS
from longvlm.world.wordings import vocabulary

FPS = 1.0
CONTEXT_TOKENS = 16384

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class ModelShape:
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    rope_theta: float  # high: names are looked up by content at any distance, in the pairs that hardly turn
    frames_per_segment: int
    tokens_per_segment: int
    merged_share: float  # of the tokens left, that one level of merging removes
    merge_heads: int
    frame_code: float  # one that keeps apart what moves: a token then shows 1.4 frames in place of 2.5
    global_layers: int
    timestamps: bool  # between the segments' tokens
    # Of the language model; here it tells, in training, what it has seen so far, and what it knows of a named object.
    state_layer: int
    recall_layer: int

    def __post_init__(self) -> None:
        if not 2 <= self.state_layer < self.recall_layer - 1 < self.text_layers - 1:
            raise LongVLMError(
                f"state_layer is {self.state_layer} and recall_layer {self.recall_layer} of {self.text_layers} text "
                "layers; choose 2 <= state_layer < recall_layer - 1 < text_layers - 1."
            )
        if self.text_heads < LOOKUP_HEADS:
            raise LongVLMError(f"text_heads is {self.text_heads}; {LOOKUP_HEADS} at least look names up.")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: the world's words are few, and a small model need not learn to spell."""
    special = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        "<user>",
        "<assistant>",
        "<vid_patch>",
        "<vid_start>",
        "<vid_end>",
    ]
    ids = {word: i for i, word in enumerate([*special, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[a-z]+|\d|[^\w\s]"), "isolated")]
    )
    # Words apart, punctuation close, and the digits of a number or a time together.
    close_up = decoders.Replace(Regex(r"(?<=[\d:]) (?=[\d:])"), "")
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=True), decoders.Fuse(), close_up])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[4:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        padding_side="left",
    )


def build_model(shape: ModelShape, tokenizer: PreTrainedTokenizerFast) -> LongVLMForConditionalGeneration:
    """The untrained model."""
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=3 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_width,
        intermediate_size=8 * shape.text_width // 3 // 32 * 32,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LongVLMConfig(
        vision_config=vision,
        text_config=text,
        projector_num_layers=2,
        video_token_index=tokenizer.convert_tokens_to_ids("<vid_patch>"),
        tie_word_embeddings=False,
        compression={
            "frames_per_segment": shape.frames_per_segment,
            "tokens_per_segment": shape.tokens_per_segment,
            "global_layers": shape.global_layers,
            "merge_heads": shape.merge_heads,
            "merge_order": "temporal",
            "frame_code": shape.frame_code,
            "merge_schedule": plan_by_share(
                shape.frames_per_segment * (shape.image_size // shape.patch_size) ** 2,
                shape.tokens_per_segment,
                shape.merged_share,
            ),
        },
        timestamps=shape.timestamps,
        default_num_frames=None,
        default_fps=FPS,
    )
    return LongVLMForConditionalGeneration(config)


def plan_by_share(num_patches: int, num_tokens: int, merged_share: float) -> list[int]:
    """Reductions that remove a share of the tokens per level; halving would force small objects into background."""
    tokens, reductions = num_patches, []
    while tokens > num_tokens:
        reductions.append(min(max(1, int(merged_share * tokens)), tokens - num_tokens))
        tokens -= reductions[-1]
    return reductions
