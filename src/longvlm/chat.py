"""A conversation about one video."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from longvlm.model.prompting import Message, assistant_message, user_message
from longvlm.stages.answer import AnswerStream
from longvlm.types import Answer
from longvlm.video_index import VideoIndex

if TYPE_CHECKING:
    from longvlm.pipeline import LongVLM


class Chat:
    """A conversation about one video; every turn sees the earlier ones.

    `messages` holds the finished turns. A turn that was broken off leaves nothing behind. Words of an answer that the
    tokenizer would take for control tokens are remembered with a blank in them.
    """

    def __init__(self, model: LongVLM, index: VideoIndex | None) -> None:
        self.model = model
        self.index = index
        self.messages: list[Message] = []

    def ask(
        self, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int | None = None
    ) -> Answer:
        """Answer the next question; see `LongVLM.ask`."""
        stream = self.stream(question, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        return stream.answer

    def stream(
        self, question: str, *, max_new_tokens: int = 256, temperature: float = 0.0, seed: int | None = None
    ) -> AnswerStream:
        """Like `ask`, piece by piece."""
        message = user_message(question, with_video=self.index is not None and not self.messages)
        conversation = [*self.messages, message]
        stream = self.model._stream(self.index, conversation, max_new_tokens, temperature, seed)

        def pieces() -> Generator[str, None, Answer]:
            yield from stream
            said = self.model.processor.break_up_reserved(stream.answer.text)
            self.messages = [*conversation, assistant_message(said)]
            return stream.answer

        return AnswerStream(pieces())
