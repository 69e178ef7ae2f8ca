"""What a judge is asked and how its replies are read: prompts from text files, replies as JSON or Python literals.

A prompt file holds the system message, a line of three dashes, and the user's message; `$question`, `$answer`
and `$prediction` (with 1 and 2 where there are two) stand for the texts.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longvlm.errors import LongVLMError
from longvlm.evaluation.benchmark import Axis
from longvlm.evaluation.rows import Row

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
BEST_SCORE = 5
_LONGEST_REPLY = 10_000  # characters; a longer one is no small dictionary
_NUMBERS = {1: ("",), 2: ("1", "2")}  # what follows `question` and `prediction` in the names of placeholders


@dataclass(frozen=True)
class Judgement:
    """A judge's opinion: a score from 0 to 5, and where a verdict was asked for, whether the answer is right."""

    score: float
    right: bool | None = None


def parse_reply(reply: str, *, with_verdict: bool) -> Judgement | None:
    """{"score": 0-5}, with "pred": "yes" or "no" for a verdict, as JSON or a Python literal; None for all else."""
    reply = reply.strip()
    if len(reply) > _LONGEST_REPLY:
        return None
    fields = _literal(reply)
    if not isinstance(fields, dict):
        return None
    score = fields.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= BEST_SCORE:
        return None
    if not with_verdict:
        return Judgement(float(score))
    verdict = fields.get("pred")
    word = verdict.strip().lower() if isinstance(verdict, str) else None
    return Judgement(float(score), word == "yes") if word in ("yes", "no") else None


def _literal(text: str) -> object:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


@dataclass(frozen=True)
class JudgePrompt:
    """The two messages of one prompt file, with placeholders."""

    system: str
    user: str

    def fill(self, row: Row, predictions: tuple[str, ...]) -> list[dict[str, str]]:
        """The messages for one row, as a chat completion takes them."""
        numbers = _NUMBERS[len(row.questions)]
        texts = {"answer": row.answer}
        for number, question, prediction in zip(numbers, row.questions, predictions, strict=True):
            texts |= {f"question{number}": question, f"prediction{number}": prediction}
        # Half of an emoji, which JSON can hold, can't be sent.
        texts = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
        parts = {"system": self.system, "user": self.user}
        filled = {role: string.Template(part).substitute(texts) for role, part in parts.items() if part}
        return [{"role": role, "content": text} for role, text in filled.items()]


def load_prompts(axes: Iterable[Axis], replacements: Path | None) -> Mapping[str, JudgePrompt]:
    """The prompt of every axis; files in `replacements` stand in for those of the same name.

    Raises LongVLMError for a folder without any, a file of an unknown name, and wrong placeholders.
    """
    axes = list(axes)
    known = {path.name for path in PROMPTS_FOLDER.glob("*.txt")}
    if replacements is not None:
        given = {path.name for path in replacements.glob("*.txt")}
        if not given or given - known:
            found = f"has {', '.join(sorted(given - known))}" if given else "has no .txt files"
            raise LongVLMError(f"--prompts {replacements} {found}; prompts are called {', '.join(sorted(known))}.")
    prompts = {}
    for axis in axes:
        path = (replacements or PROMPTS_FOLDER) / f"{axis.prompt}.txt"
        path = path if path.is_file() else PROMPTS_FOLDER / path.name
        prompts[axis.name] = _load(path, axis.num_questions)
    return prompts


def _load(path: Path, num_questions: int) -> JudgePrompt:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise LongVLMError(f"Can't read the prompt {path}: {error}.") from error
    *first, second = re.split(r"^---[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    prompt = JudgePrompt("".join(first).strip(), second.strip())
    if not prompt.user:
        raise LongVLMError(f"The prompt {path} has no message of the user; write one behind its line of dashes.")
    numbers = _NUMBERS[num_questions]
    wanted = {"answer", *(f"{name}{number}" for name in ("question", "prediction") for number in numbers)}
    matches = [match for part in (prompt.system, prompt.user) for match in string.Template.pattern.finditer(part)]
    found = {match["named"] or match["braced"] for match in matches if not match["escaped"]}
    if found != wanted:  # a dollar sign that stands alone counts as None
        has = ", ".join(f"${name or ''}" for name in sorted(found, key=str)) or "none of them"
        shown = ", ".join(f"${name}" for name in sorted(wanted))
        raise LongVLMError(f"The prompt {path} must hold {shown}; it has {has}. A dollar sign itself is written $$.")
    return prompt
