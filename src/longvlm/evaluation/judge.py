"""A judge: a language model behind an OpenAI-compatible endpoint, asked many things at once, patiently.

Every judgement is written as soon as it is there, under a hash of what was asked and of whom, so that nothing is
asked twice. A reply that can't be read is asked for again and then counts as unjudged, never as zero.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from longvlm.errors import LongVLMError, one_line
from longvlm.evaluation.jsonl import JsonLines
from longvlm.evaluation.judging import Judgement, parse_reply
from longvlm.evaluation.rows import content_hash
from longvlm.stages.video_access import display_name

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
TIMEOUT_SECONDS = 120.0  # for a reply, from a server that is there
CONNECT_TIMEOUT_SECONDS = 10.0
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 60.0  # and up to a quarter more, at random
TRIES = 8  # of one request, before the judge counts as failing: two minutes of delays and more
TRIES_TO_CONNECT = 3  # while nothing has been judged yet: the address is wrong, rather than the line bad
REPLIES = 3  # that can't be read, before a question counts as unjudged
FAILURES_IN_A_ROW = 3  # of requests, all their tries used up, before the rest is given up
_HOPELESS = {401: f"check {KEY_VARIABLE}", 403: f"check {KEY_VARIABLE}", 404: "check --judge-url and --judge-model"}
Item = TypeVar("Item")
_LATER = "run the same command again later"
_REMINDER = "That could not be read. Reply again with the dictionary alone: no other words, no code fence."


@dataclass(frozen=True)
class JudgeRequest:
    """One thing to ask: the messages of a chat completion, about one row and axis."""

    row_key: str
    axis: str
    messages: Sequence[dict[str, str]]
    with_verdict: bool


class _GaveUp(Exception):
    """One request failed for good; the others may still succeed.

    `is_refusal`: the judge answered, but not to this (too long, say, or filtered); else it did not answer in all tries.
    """

    def __init__(self, reason: str, *, is_refusal: bool = False) -> None:
        super().__init__(reason)
        self.is_refusal = is_refusal
        # for where all requests fail
        self.remedy = "see to what it complains of, or choose another judge" if is_refusal else _LATER


class Judge:
    """A model at an endpoint, and the file of its judgements; one object for one run.

    `url` is the address as it may be shown and stored, without the user and password it may have been given with.
    `unreached` counts requests that failed for good in this run; they are asked again in the next one.
    Raises LongVLMError where the client isn't installed, there is no key that can be sent, or `url` is no address.
    """

    def __init__(self, model: str, url: str | None, kept: JsonLines, *, concurrency: int = 8) -> None:
        require_client()
        self.model = model
        address = url or OPENAI_URL
        if not _is_address(address):
            shown = address.rpartition("@")[2]  # what comes before may be a password
            raise LongVLMError(f"--judge-url is {shown!r}; give an address such as http://localhost:8000/v1.")
        self._address = address.rstrip("/")
        _require_usable_proxy(self._connection())
        self.url = display_name(self._address)
        self.concurrency = concurrency
        self.unreached = 0
        self._kept = kept
        self._by_content = {line.get("content_key"): line for line in kept.lines}
        self._has_judged = any(line.get("judge") == model for line in kept.lines)
        self._failures_in_a_row = 0

    def content_key(self, request: JudgeRequest) -> str:
        return content_hash([self.url, self.model, list(request.messages)])

    def has_reply(self, request: JudgeRequest) -> bool:
        """Whether the judge has replied, be it readable or not: such a request is not sent again."""
        return self.content_key(request) in self._by_content

    def find(self, request: JudgeRequest) -> Judgement | None:
        """The judgement there is; None if the request is not asked yet, or its replies could not be read."""
        line = self._by_content.get(self.content_key(request))
        if line is None or line.get("score") is None:
            return None
        return Judgement(float(line["score"]), line["pred"] == "yes" if request.with_verdict else None)

    def versions(self, requests: Sequence[JudgeRequest]) -> list[str]:
        """What the endpoint said it is, in the judgements of these requests."""
        lines = [self._by_content.get(self.content_key(request), {}) for request in requests]
        return sorted({line["version"] for line in lines if line.get("version")})

    def require_reachable(self) -> None:
        """Raise LongVLMError, at once, where nothing answers at the address or the key is refused there.

        Any other status tells that a server is there: many list no models, and judge all the same.
        """
        import openai

        refused = openai.AuthenticationError, openai.PermissionDeniedError
        try:
            with openai.OpenAI(**self._connection()) as client:
                try:
                    client.models.with_raw_response.list()
                except refused:  # a key may be good for chats alone
                    hello = _messages("user", "Hello")
                    chats = client.chat.completions.with_raw_response
                    chats.create(model=self.model, messages=hello, max_tokens=1)  # type: ignore[arg-type]
        except refused as error:
            raise self._stop(_status_reason(error), _HOPELESS[error.status_code]) from error
        except openai.APIConnectionError as error:
            remedy = "check --judge-url, and that it is running, or leave --judge-model out and judge later"
            raise self._stop(_connection_reason(error), remedy) from error
        except openai.APIStatusError:  # whatever it says of its models, it may judge
            return

    def _connection(self) -> dict[str, Any]:
        import openai

        timeout = openai.Timeout(TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
        return {"api_key": os.environ[KEY_VARIABLE], "base_url": self._address, "timeout": timeout, "max_retries": 0}

    def complete(self, requests: Sequence[JudgeRequest], on_progress: Callable[[float, str], None] | None) -> None:
        """Ask whatever is not in the file yet. Raises LongVLMError where the judge can't be asked (any more)."""
        waiting = {self.content_key(request): request for request in requests}
        waiting = {key: request for key, request in waiting.items() if key not in self._by_content}
        if waiting:
            asyncio.run(self._ask_all(waiting, on_progress))

    async def _ask_all(
        self, waiting: dict[str, JudgeRequest], on_progress: Callable[[float, str], None] | None
    ) -> None:
        import openai

        pending, done = iter(_spread(list(waiting.items()), FAILURES_IN_A_ROW)), itertools.count(1)

        async def work(items: Iterator[tuple[str, JudgeRequest]]) -> None:
            for key, request in items:
                await self._judge(client, key, request)
                if on_progress is not None:
                    count = next(done)
                    on_progress(count / len(waiting), f"Judged {count:,} of {len(waiting):,}")

        async with openai.AsyncOpenAI(**self._connection()) as client:
            # One alone, until one is judged: a wrong key or address shows before hundreds of requests do.
            while not self._has_judged and (first := list(itertools.islice(pending, 1))):
                await work(iter(first))
            workers = [asyncio.ensure_future(work(pending)) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _judge(self, client: openai.AsyncOpenAI, key: str, request: JudgeRequest) -> None:
        replies: list[str] = []
        version, judgement = "", None
        messages = list(request.messages)
        try:
            while judgement is None and len(replies) < REPLIES:
                reply, version = await self._ask(client, messages)
                replies.append(reply)
                judgement = parse_reply(reply, with_verdict=request.with_verdict)
                messages = [*request.messages, *_reminder_of(reply)]
        except _GaveUp as failure:
            if replies and failure.is_refusal:  # it replied, and takes no reminder of that
                self._keep(key, request, replies, version, None)
                return
            self.unreached += 1
            self._failures_in_a_row += 1
            if self._is_of_no_use(failure):
                raise self._stop(str(failure), failure.remedy) from failure
            return
        self._keep(key, request, replies, version, judgement)

    def _keep(
        self, key: str, request: JudgeRequest, replies: list[str], version: str, judgement: Judgement | None
    ) -> None:
        self._has_judged, self._failures_in_a_row = True, 0
        line: dict[str, Any] = {"content_key": key, "row_key": request.row_key, "axis": request.axis}
        line |= {"judge": self.model, "version": version, "score": judgement.score if judgement else None}
        if request.with_verdict:
            line["pred"] = None if judgement is None else "yes" if judgement.right else "no"
        line |= {"replies": replies}
        self._kept.append(line)
        self._by_content[key] = line

    def _is_of_no_use(self, latest: _GaveUp) -> bool:
        """Whether to stop: who has judged may refuse this or that; who never has, and is silent, is not there."""
        keeps_failing = self._failures_in_a_row >= FAILURES_IN_A_ROW
        if latest.is_refusal:
            return keeps_failing and not self._has_judged
        return keeps_failing or not self._has_judged

    async def _ask(self, client: openai.AsyncOpenAI, messages: list[dict[str, str]]) -> tuple[str, str]:
        """The reply, and the model and version that it says it is from. Raises _GaveUp after all tries."""
        import openai

        for attempt in itertools.count(1):
            try:
                answer: Any = await client.chat.completions.create(
                    model=self.model,
                    messages=messages,  # type: ignore[arg-type]  # plain dictionaries are what it documents
                    temperature=0,
                )
                return _text_of(answer.choices[0].message.content), _version(answer)
            except openai.APIStatusError as error:
                reason, header = _status_reason(error), error.response.headers.get("retry-after")
                # Once the key has been good, 403 is about this request: so gateways tell what their filters stopped.
                is_filtered = error.status_code == 403 and self._has_judged
                if (error.status_code in _HOPELESS and not is_filtered) or error.code == "insufficient_quota":
                    raise self._stop(reason, _HOPELESS.get(error.status_code, "see to its quota")) from error
                if error.status_code not in (408, 409, 425, 429) and error.status_code < 500:
                    raise _GaveUp(reason, is_refusal=True) from error
            except openai.APIConnectionError as error:
                reason, header = _connection_reason(error), None
                if not self._has_judged and attempt >= TRIES_TO_CONNECT:
                    raise self._stop(reason, "check --judge-url, and that it is running") from error
            except (openai.APIResponseValidationError, AttributeError, IndexError, TypeError, ValueError) as error:
                reason, header = f"what it sends is no chat completion ({_quote(error)})", None
            if attempt >= TRIES:
                raise _GaveUp(reason)
            await asyncio.sleep(_delay(attempt, header))
        raise AssertionError("unreachable")

    def _stop(self, reason: str, remedy: str) -> LongVLMError:
        kept = f" What was judged is kept in {self._kept.path}." if self._kept.lines else ""
        return LongVLMError(f"The judge {self.model} at {self.url} failed: {reason}; {remedy}.{kept}")


def _text_of(content: Any) -> str:
    """A message's content as text; servers also send none, or lists of parts, which the client hands on as they are."""
    return content if isinstance(content, str) else "" if content is None else json.dumps(content)


def require_client() -> None:
    """Raise LongVLMError, before any work is done, where the judge's client or a key that can be sent is missing."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise LongVLMError("A judge needs the openai client; install it with: pip install 'longvlm[eval]'.") from error
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise LongVLMError(
            f"There is no key for the judge: set the environment variable {KEY_VARIABLE} (any word will do for a "
            "local server that asks for none), or leave --judge-model out."
        )
    if not re.fullmatch("[!-~]+", key):  # an HTTP header takes no other, and errors about headers quote them
        raise LongVLMError(
            f"The key in the environment variable {KEY_VARIABLE} has a blank, a line break or another character that "
            "no key has; set it again, to the letters, digits and signs of the key alone."
        )


def _require_usable_proxy(connection: dict[str, Any]) -> None:
    """The client reads the environment's proxies when it is made, and tells then what it can't use."""
    import openai

    try:
        openai.OpenAI(**connection).close()
    except (ImportError, ValueError) as error:
        raise LongVLMError(
            f"The judge can't be asked through the proxy that the environment names: {one_line(error)} Set or unset "
            "ALL_PROXY, HTTP_PROXY and HTTPS_PROXY."
        ) from error


def _is_address(url: str) -> bool:
    if not re.fullmatch("[!-~]+", url):  # a line break, a dash that is none; an international host has its xn-- form
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


def _spread(items: list[Item], count: int) -> list[Item]:
    """The items, but for `count` from all over that come first: neighbours are mostly about one video, which a judge
    may refuse to hear of.
    """
    places = {place * (len(items) - 1) // (count - 1) for place in range(count)}
    return [items[place] for place in sorted(places)] + [i for place, i in enumerate(items) if place not in places]


def _reminder_of(reply: str) -> list[dict[str, str]]:
    """What to say of a reply that can't be read; nothing of a blank one, which many servers don't take back."""
    if not reply.strip():
        return []
    sendable = reply.encode("utf-8", "replace").decode()  # half of an emoji is not
    return [*_messages("assistant", sendable), *_messages("user", _REMINDER)]


def _messages(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _version(answer: Any) -> str:
    fingerprint = getattr(answer, "system_fingerprint", None)
    return f"{answer.model} ({fingerprint})" if fingerprint else str(answer.model)


def _delay(attempt: int, retry_after: str | None) -> float:
    """Seconds to wait: twice as long each time, or longer if the judge asks for it; a little more at random."""
    is_number = retry_after is not None and retry_after.replace(".", "", 1).isdecimal()
    asked_for = float(retry_after or 0) if is_number else 0.0
    wait = max(FIRST_DELAY_SECONDS * 2 ** (attempt - 1), asked_for)
    return min(wait, LONGEST_DELAY_SECONDS) * random.uniform(1.0, 1.25)


def _status_reason(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    message = body.get("message") or error.message
    return f"status {error.status_code}, {_quote(message)}"


def _connection_reason(error: openai.APIConnectionError) -> str:
    return f"no answer from it ({_quote(error.__cause__ or error)})"


def _quote(reason: object) -> str:
    return one_line(reason)[:200].rstrip(".")
