"""The official client against an endpoint that is slow, refuses, breaks off and talks nonsense: nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import pytest
from stub_judge import Outcome, StubJudge, completion
from waiting import wait_until

from longvlm import LongVLMError
from longvlm.evaluation import judge as judge_module
from longvlm.evaluation.jsonl import JsonLines
from longvlm.evaluation.judge import Judge, JudgeRequest
from longvlm.evaluation.judging import Judgement

LIMIT = (429, json.dumps({"error": {"message": "slow down", "code": "rate_limit"}}))
BROKEN = (500, "<html>oops</html>")
TROUBLES: tuple[tuple[Outcome, ...], ...] = (
    (),
    (LIMIT, LIMIT),
    (BROKEN, (503, "{}"), BROKEN),
    ("I would say 4.",),
    ("", "{'score': 9, 'pred': 'yes'}"),
    ((200, "no json"), (200, "{}"), (200, '{"choices": []}')),
    tuple((200, completion("?").replace('"?"', content)) for content in ('[{"text": "4"}]', "4")),
    (None, None),
    (3.0,),
    (LIMIT, "garbage", None, BROKEN, "{'score'"),
)


def requests(count: int) -> list[JudgeRequest]:
    messages = [[{"role": "user", "content": f"prompt {number}"}] for number in range(count)]
    return [JudgeRequest(f"row{number}", "answer", one, with_verdict=True) for number, one in enumerate(messages)]


def truth(number: int) -> Judgement:
    return Judgement(float(number % 6), number % 2 == 0)


def good_reply(prompt: str) -> str:
    one = truth(int(prompt.split()[-1]))
    return str({"pred": "yes" if one.right else "no", "score": int(one.score)})


def troubled(prompt: str, attempt: int) -> Outcome:
    troubles = TROUBLES[int(prompt.split()[-1]) % len(TROUBLES)]
    return troubles[attempt] if attempt < len(troubles) else good_reply(prompt)


def open_judge(stub: StubJudge, path: Path) -> Judge:
    return Judge("stub", stub.url, JsonLines(path), concurrency=6)


def test_no_judgement_is_lost_and_none_is_asked_for_twice(
    stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module, "TIMEOUT_SECONDS", 1.5)
    stub.script = troubled
    asked, path, told = requests(45), tmp_path / "judgements.jsonl", []
    judge = open_judge(stub, path)
    judge.complete(asked, lambda fraction, words: told.append((fraction, words)))
    assert [judge.find(one) for one in asked] == [truth(number) for number in range(45)]
    assert judge.unreached == 0 and 2 <= stub.most_at_once <= 6
    assert told[-1] == (1.0, "Judged 45 of 45")
    assert all(body["temperature"] == 0 and body["model"] == "stub" for body in stub.bodies)
    assert judge.versions(asked) == ["stub-2026-01-01"]

    before = len(stub.prompts)
    again = open_judge(stub, path)
    again.complete(asked, None)
    assert len(stub.prompts) == before, "a second run asks nothing"
    assert [again.find(one) for one in asked] == [judge.find(one) for one in asked]
    for other in (Judge("other", stub.url, JsonLines(path)), Judge("stub", "http://localhost:9/v1", JsonLines(path))):
        assert not any(map(other.has_reply, asked)), "another judge's replies are not this one's"
    changed = JudgeRequest("row0", "answer", [{"role": "user", "content": "another prompt 0"}], True)
    again.complete([changed, *asked], None)
    assert stub.prompts[before:] == ["another prompt 0"]


def test_an_unreadable_reply_is_asked_again_and_then_counts_as_unjudged(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: "No idea." if prompt.endswith("1") else good_reply(prompt)
    asked = requests(3)
    judge = open_judge(stub, tmp_path / "j.jsonl")
    assert [judge.has_reply(one) for one in asked] == [False, False, False]
    judge.complete(asked, None)
    assert [judge.find(one) for one in asked] == [truth(0), None, truth(2)]
    assert [judge.has_reply(one) for one in asked] == [True, True, True]
    assert stub.prompts.count("prompt 1") == judge_module.REPLIES
    reminded = [body["messages"] for body in stub.bodies if len(body["messages"]) > 1]
    assert [message["role"] for message in reminded[0]] == ["user", "assistant", "user"]
    assert judge.unreached == 0
    open_judge(stub, tmp_path / "j.jsonl").complete(asked, None)
    assert stub.prompts.count("prompt 1") == judge_module.REPLIES, "it is not asked for ever"


def test_hopeless_requests_come_first_and_stop_no_other(stub: StubJudge, tmp_path: Path) -> None:
    hopeless = ("0", "1", "5", "6", "7")
    stub.script = lambda prompt, attempt: (
        (400, '{"error": {"message": "too long"}}') if prompt.endswith(hopeless) else good_reply(prompt)
    )
    asked = requests(8)
    for _ in range(2):  # in the second run only the hopeless are left
        judge = open_judge(stub, tmp_path / "j.jsonl")
        judge.complete(asked, None)
        assert [judge.find(one) for one in asked] == [truth(i) if 2 <= i < 5 else None for i in range(8)]
        assert judge.unreached == 5


def test_a_video_that_the_judge_refuses_to_hear_of_stops_no_other(stub: StubJudge, tmp_path: Path) -> None:
    refused = [f"prompt {number}" for number in range(4)]
    stub.script = lambda prompt, attempt: (
        (400, '{"error": {"code": "content_filter"}}') if prompt in refused else good_reply(prompt)
    )
    asked, judge = requests(20), open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(asked, None)
    assert [judge.find(one) for one in asked] == [None] * 4 + [truth(number) for number in range(4, 20)]
    assert judge.unreached == 4


def test_what_a_gateway_forbids_of_a_good_key_stops_no_other(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: (
        (403, '{"error": {"message": "flagged"}}') if prompt == "prompt 3" else good_reply(prompt)
    )
    asked, judge = requests(12), open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(asked, None)
    assert [judge.find(one) for one in asked] == [None if number == 3 else truth(number) for number in range(12)]
    assert judge.unreached == 1 and stub.prompts.count("prompt 3") == 1


def test_a_blank_reply_is_not_sent_back(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: ("", " \n", good_reply(prompt))[attempt]
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(requests(1), None)
    assert judge.find(requests(1)[0]) == truth(0)
    assert [len(body["messages"]) for body in stub.bodies] == [1, 1, 1]


def test_half_an_emoji_is_sent_back_as_far_as_it_can_be(stub: StubJudge, tmp_path: Path) -> None:
    half = (200, completion("?").replace("?", "\\ud83d oh"))
    stub.script = lambda prompt, attempt: half if attempt == 0 else good_reply(prompt)
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(requests(1), None)
    assert judge.find(requests(1)[0]) == truth(0)
    assert stub.bodies[1]["messages"][1]["content"] == "? oh"


def test_a_reply_that_can_not_be_reminded_of_counts_as_unjudged(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: "No idea." if attempt == 0 else (400, '{"error": {"message": "roles"}}')
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(requests(1), None)
    assert judge.has_reply(requests(1)[0]) and judge.find(requests(1)[0]) is None and judge.unreached == 0
    assert JsonLines(tmp_path / "j.jsonl").lines[0]["replies"] == ["No idea."]


def test_one_hopeless_request_does_not_stop_the_others(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: (
        (400, '{"error": {"message": "too long"}}') if prompt.endswith("2") else good_reply(prompt)
    )
    asked = requests(8)
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(asked, None)
    assert judge.unreached == 1 and stub.prompts.count("prompt 2") == 1
    assert sum(judge.find(one) is not None for one in asked) == 7
    again = open_judge(stub, tmp_path / "j.jsonl")
    again.complete(asked, None)  # the one alone: the judge is known to work
    assert again.unreached == 1 and stub.prompts.count("prompt 2") == 2
    stub.script = lambda prompt, attempt: good_reply(prompt)
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(asked, None)
    assert judge.find(asked[2]) == truth(2), "a request that failed is asked in the next run"


@pytest.mark.parametrize(
    ("outcome", "words", "most_requests"),
    [
        ((401, '{"error": {"message": "bad key"}}'), "status 401, bad key; check OPENAI_API_KEY", 1),
        ((404, '{"error": {"message": "no model stub"}}'), "no model stub; check --judge-url and --judge-model", 1),
        ((429, '{"error": {"message": "paid up?", "code": "insufficient_quota"}}'), "see to its quota", 1),
        (
            (400, '{"error": {"message": "temperature"}}'),
            "status 400, temperature; see to what it complains of",
            judge_module.FAILURES_IN_A_ROW,
        ),
        (None, "check --judge-url, and that it is running", judge_module.TRIES_TO_CONNECT),
        (BROKEN, "status 500", judge_module.TRIES),
    ],
)
def test_a_judge_that_never_works_is_one_clear_line(
    stub: StubJudge, tmp_path: Path, outcome: Outcome, words: str, most_requests: int
) -> None:
    stub.script = lambda prompt, attempt: outcome
    with pytest.raises(LongVLMError) as caught:
        open_judge(stub, tmp_path / "j.jsonl").complete(requests(20), None)
    assert words in str(caught.value) and stub.url in str(caught.value) and "\n" not in str(caught.value)
    assert len(stub.prompts) == most_requests, "not a request more than needed to know"


@pytest.mark.parametrize(
    ("attempt", "retry_after", "seconds"),
    [(1, None, 1), (3, None, 4), (20, None, 60), (1, "7", 7), (3, "0", 4), (2, "0.5", 2), (1, "3600", 60), (1, "?", 1)],
)
def test_delays_grow_whatever_the_judge_asks_for(attempt: int, retry_after: str | None, seconds: float) -> None:
    delays = [judge_module._delay(attempt, retry_after) for _ in range(20)]
    assert all(seconds <= delay <= 1.25 * seconds for delay in delays) and len(set(delays)) > 1


def test_a_judge_that_dies_is_given_up_and_what_it_said_kept(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: good_reply(prompt) if len(stub.prompts) <= 10 else BROKEN
    asked = requests(60)
    with pytest.raises(LongVLMError, match=r"status 500.* kept in .*j\.jsonl"):
        open_judge(stub, tmp_path / "j.jsonl").complete(asked, None)
    kept = len(JsonLines(tmp_path / "j.jsonl").lines)
    assert 5 <= kept <= 10 and len(stub.prompts) < 60 * judge_module.TRIES / 4
    stub.script = lambda prompt, attempt: good_reply(prompt)
    before = len(stub.prompts)
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.complete(asked, None)
    # A request that was given up may be read late, so that a prompt can be seen twice.
    assert len(set(stub.prompts[before:])) == 60 - kept
    assert [judge.find(one) for one in asked] == [truth(number) for number in range(60)]


@pytest.mark.parametrize("status", [200, 404, 405, 429, 500])
def test_a_server_that_is_there_is_reachable(stub: StubJudge, tmp_path: Path, status: int) -> None:
    stub.listing = (status, "{}")
    open_judge(stub, tmp_path / "j.jsonl").require_reachable()
    assert (stub.listed, stub.prompts) == (1, [])


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_may_not_list_models_is_refused_where_it_may_not_chat_either(
    stub: StubJudge, tmp_path: Path, status: int
) -> None:
    stub.listing = (status, '{"error": {"message": "no scope"}}')
    open_judge(stub, tmp_path / "j.jsonl").require_reachable()
    assert stub.prompts == ["Hello"]
    stub.script = lambda prompt, attempt: (status, '{"error": {"message": "bad key"}}')
    with pytest.raises(LongVLMError) as caught:
        open_judge(stub, tmp_path / "j.jsonl").require_reachable()
    said = f"The judge stub at {stub.url} failed: status {status}, bad key; check OPENAI_API_KEY."
    assert str(caught.value) == said


def test_an_address_where_nothing_listens_is_told_at_once(stub: StubJudge, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(LongVLMError) as caught:
            Judge("stub", url, JsonLines(tmp_path / "j.jsonl")).require_reachable()
    assert str(caught.value) == (
        f"The judge stub at {url} failed: no answer from it "
        f"([Errno {errno.ECONNREFUSED}] Connection refused); check --judge-url, and "
        "that it is running, or leave --judge-model out and judge later."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets connections wait for a full queue")
def test_a_host_that_does_not_answer_is_not_waited_for_as_long_as_a_reply(
    stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_module, "CONNECT_TIMEOUT_SECONDS", 0.3)
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())  # all that the queue holds
        judge = Judge("stub", f"http://127.0.0.1:{full.getsockname()[1]}/v1", JsonLines(tmp_path / "j.jsonl"))
        for ask in (judge.require_reachable, lambda: judge.complete(requests(1), None)):
            began = time.monotonic()
            with pytest.raises(LongVLMError, match=r"no answer from it .*; check --judge-url, and that it is running"):
                ask()
            assert time.monotonic() - began < 20 < judge_module.TIMEOUT_SECONDS


def test_no_key_and_wrong_addresses_are_refused(
    stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["localhost:8000", "http://", "http://localhost:port/v1", "http://localhost:123456/v1"]
    for url in (*wrong, "http://localhost:8000/v1\r", "http://my\u2013host:8000/v1"):
        with pytest.raises(LongVLMError, match="give an address such as"):
            Judge("stub", url, JsonLines(tmp_path / "j.jsonl"))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(LongVLMError, match="set the environment variable OPENAI_API_KEY"):
        open_judge(stub, tmp_path / "j.jsonl")


@pytest.mark.parametrize("key", ["schlüssel", "two words", "sk-1\n", " ", "sk-\x01", "sk\u20111"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(
    stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(LongVLMError) as caught:
        open_judge(stub, tmp_path / "j.jsonl")
    assert str(caught.value) == (
        "The key in the environment variable OPENAI_API_KEY has a blank, a line break or another character that no key "
        "has; set it again, to the letters, digits and signs of the key alone."
    )


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "gopher://127.0.0.1:1"])
def test_a_proxy_that_the_client_can_not_use_is_told_at_once(
    stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(LongVLMError, match=r"through the proxy that the environment names: .*Set or unset ALL_PROXY"):
        open_judge(stub, tmp_path / "j.jsonl")


def test_the_key_of_the_environment_is_sent(stub: StubJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    judge = open_judge(stub, tmp_path / "j.jsonl")
    judge.require_reachable()
    judge.complete(requests(2), None)
    assert set(stub.authorizations) == {"Bearer sk-of-the-environment"}


def test_the_password_in_an_address_is_used_and_never_shown(stub: StubJudge, tmp_path: Path) -> None:
    path, address = tmp_path / "j.jsonl", stub.url.replace("://", "://someone:secret@")
    asked = requests(3)
    judge = Judge("stub", address, JsonLines(path))
    judge.require_reachable()
    judge.complete(asked, None)
    assert stub.authorizations == {f"Basic {b64encode(b'someone:secret').decode()}"}
    assert judge.url == stub.url and "secret" not in path.read_text()
    assert all(open_judge(stub, path).has_reply(one) for one in asked), "it is the same judge without the password"

    stub.script = lambda prompt, attempt: (404, '{"error": {"message": "no model stub"}}')
    with pytest.raises(LongVLMError) as caught:
        Judge("stub", address, JsonLines(tmp_path / "other.jsonl")).complete(asked, None)
    assert str(caught.value).startswith(f"The judge stub at {stub.url} failed: status 404, no model stub; check")
    for wrong in ("ftp://someone:secret@host:port", "someone:secret@host:port", "http://someone:secret@host:port"):
        with pytest.raises(LongVLMError) as caught:
            Judge("stub", wrong, JsonLines(path))
        assert str(caught.value) == "--judge-url is 'host:port'; give an address such as http://localhost:8000/v1."


JUDGE_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_judge import Judge, JsonLines, requests
Judge("stub", sys.argv[1], JsonLines(Path(sys.argv[2])), concurrency=6).complete(requests(60), None)
"""


def test_killed_half_way_it_goes_on_where_it_was(stub: StubJudge, tmp_path: Path) -> None:
    stub.script = lambda prompt, attempt: good_reply(prompt) if len(stub.prompts) <= 30 else 5.0
    path = tmp_path / "j.jsonl"
    modules = [str(folder) for folder in Path(__file__).parents[:2]]
    command = [sys.executable, "-c", JUDGE_IN_ANOTHER_PROCESS, stub.url, str(path), *modules]
    process = subprocess.Popen(command, env={**os.environ, "OPENAI_API_KEY": "any"})
    try:
        wait_until(lambda: len(stub.prompts) > 30 or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    kept = path.read_bytes().count(b"\n")
    assert 20 <= kept <= 30, "only what was in flight is lost"
    stub.script = lambda prompt, attempt: good_reply(prompt)
    before = len(stub.prompts)
    judge = open_judge(stub, path)
    judge.complete(requests(60), None)
    # What the killed process had sent may be read late, so that a prompt can be seen twice.
    assert len(set(stub.prompts[before:])) == 60 - kept
    assert [judge.find(one) for one in requests(60)] == [truth(number) for number in range(60)]
