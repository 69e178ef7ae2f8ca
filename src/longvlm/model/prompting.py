"""From a conversation about an encoded video to the prompt that a language model continues."""

from __future__ import annotations

from typing import Any

from longvlm.errors import LongVLMError
from longvlm.model.configuration import LongVLMConfig
from longvlm.model.processing import LongVLMProcessor
from longvlm.stages.answer import Prompt
from longvlm.stages.tokens import assemble
from longvlm.types import Timings
from longvlm.video_index import VideoIndex, require_known_times

Message = dict[str, Any]


def user_message(question: str, *, with_video: bool) -> Message:
    """A question; the first one of a conversation brings the video along."""
    if not question.strip():
        raise LongVLMError("The question is empty; write what you want to know.")
    if any("\ud800" <= character <= "\udfff" for character in question):  # undecodable bytes of a command line
        raise LongVLMError("The question is not valid Unicode; write it in UTF-8.")
    text = {"type": "text", "text": question}
    return {"role": "user", "content": [{"type": "video"}, text] if with_video else [text]}


def assistant_message(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def context_length(config: LongVLMConfig) -> int | None:
    """The most tokens that prompt and answer may have together; None where the language model sets no
    limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def build_prompt(
    processor: LongVLMProcessor,
    config: LongVLMConfig,
    messages: list[Message],
    index: VideoIndex | None,
    spent: Timings,
) -> Prompt:
    """The conversation as token ids, with the visual tokens of `index`; the last message is the question.

    Raises LongVLMError where the language model's context has no room for it and an answer, and for a question
    in which a token of the model's own is written out.
    """
    question: str = messages[-1]["content"][-1]["text"]
    _refuse_reserved_words(processor, question)
    token_ids = _token_ids(processor, config, messages, index)
    limit = context_length(config)
    if limit is not None and len(token_ids) >= limit:
        alone = _token_ids(processor, config, [user_message(question, with_video=index is not None)], index)
        raise _no_room(token_ids, alone, index, config, limit)
    # The prefill pauses after the video and after every earlier question, to be taken up again there.
    ends = {len(token_ids)}
    for position, message in enumerate(messages[:-1], start=1):
        if message["role"] == "user":
            earlier_ids = _token_ids(processor, config, messages[:position], index)
            if token_ids[: len(earlier_ids)] == earlier_ids:
                ends.add(len(earlier_ids))
    if index is not None:
        ends.add(len(token_ids) - token_ids[::-1].index(config.video_token_index))
    return Prompt(
        question=question,
        token_ids=token_ids,
        chunk_ends=tuple(sorted(ends)),
        visual_features=None if index is None else assemble(index).features,
        video_fingerprint="" if index is None else index.fingerprint,
        spent=spent,
    )


def require_answerable(processor: LongVLMProcessor, config: LongVLMConfig, question: str) -> None:
    """Raise LongVLMError for a question that is refused whatever the video, so that none is encoded for it."""
    build_prompt(processor, config, [user_message(question, with_video=False)], None, Timings())


def _token_ids(
    processor: LongVLMProcessor, config: LongVLMConfig, messages: list[Message], index: VideoIndex | None
) -> list[int]:
    if index is None:
        return processor.encode(processor.prompt(messages))
    if config.timestamps:
        require_known_times(index.video)
    text = processor.prompt(
        messages,
        num_segments=index.num_segments,
        compression=index.compression,
        segment_spans=index.segment_spans_seconds if config.timestamps else None,
    )
    return processor.encode(text)


def _refuse_reserved_words(processor: LongVLMProcessor, question: str) -> None:
    for token in processor.reserved_words:
        if token in question:
            raise LongVLMError(f"The question contains {token!r}, which the model reserves; write it in another way.")


def _no_room(
    token_ids: list[int], alone: list[int], index: VideoIndex | None, config: LongVLMConfig, limit: int
) -> LongVLMError:
    """What to say of a prompt that is too long; `alone` is the same question without the earlier turns."""
    visual = token_ids.count(config.video_token_index)
    said = (
        f"The prompt has {len(token_ids)} tokens, {visual} of them visual, but the language model's context "
        f"holds {limit}, the answer included."
    )
    if len(alone) < limit:
        return LongVLMError(
            f"{said} The conversation so far takes up {len(token_ids) - len(alone)}: start a new one "
            "(/new in longvlm chat; chat() in Python)."
        )
    remedy = "Ask a shorter question" if index is None else "Ask a shorter question, or about fewer frames"
    return LongVLMError(f"{said} {remedy}.")
