"""The client against a real server that misbehaves: every request is answered once, or counted with its reason."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import FAULTS, IMPATIENT, KEY, MODEL, MisbehavingServer, misbehaving_server, text_of

from sarlang_sft.chat_client import HOPELESS_IN_A_ROW, ask_all, find_model
from sarlang_sft.chat_protocol import ChatRequest, ChatServer, Failure, Reply
from sarlang_sft.errors import InputError
from sarlang_sft.reply_cache import ReplyCache

MENDED = ["delay", "429", "429 after", "429 after date", "500", "503", "garbage", "deep", "truncated", "no choices"]
MENDED += ["list", "no text", "no message", "html", "closed"]


@pytest.fixture
def served() -> Iterator[MisbehavingServer]:
    with misbehaving_server() as server:
        server.say = lambda body: f"you said {text_of(body)}"
        yield server


def requests(count: int) -> list[ChatRequest]:
    return [ChatRequest(str(n), [{"role": "user", "content": f"number {n}"}], 8) for n in range(count)]


def ask(
    server: ChatServer, asked: list[ChatRequest], cache: ReplyCache | None = None
) -> dict[str, list[Reply | Failure]]:
    """Outcomes by the requests' ids, each request a group of its own."""
    outcomes: dict[str, list[Reply | Failure]] = {}
    ask_all(server, ([one] for one in asked), lambda one, got: outcomes.setdefault(one.id, []).append(got), cache)
    return outcomes


def texts(outcomes: dict[str, list[Reply | Failure]]) -> dict[str, str]:
    """The texts of outcomes that are one reply each."""
    return {name: reply.text for name, [reply] in outcomes.items()}


@pytest.mark.parametrize("faults", [MENDED, list(reversed(MENDED)), ["plain"] * 5])
def test_every_request_is_answered_once_whatever_befalls_some_tries(
    served: MisbehavingServer, faults: list[str]
) -> None:
    served.plan = list(faults)
    outcomes = ask(served.client(tries=40, timeout=IMPATIENT), requests(60))
    assert texts(outcomes) == {str(n): f"you said number {n}" for n in range(60)}
    assert len(served.received) >= 60 + len([fault for fault in faults if fault != "plain"])


def test_a_request_that_fails_in_the_end_is_named_with_its_reason_and_stops_no_other(
    served: MisbehavingServer,
) -> None:
    served.plan = ["400", "500", "500", "garbage", "garbage", "delay", "delay", "closed", "closed"]
    outcomes = ask(served.client(tries=2, concurrency=1, timeout=IMPATIENT), requests(12))
    reasons = {name: one.reason for name, [one] in outcomes.items() if isinstance(one, Failure)}
    expected = ["HTTP 400", "HTTP 500", "unreadable reply", "timed out", "no connection"]
    assert reasons == dict(zip("01234", expected, strict=True)), "HTTP 400 is not tried again"
    assert texts({name: got for name, got in outcomes.items() if name not in reasons}) == {
        str(n): f"you said number {n}" for n in range(5, 12)
    }


@pytest.mark.parametrize(
    ("fault", "said"), [("401", "refuses"), ("404", f"knows no model `{MODEL}`"), ("no money", "no money left")]
)
def test_what_every_request_would_meet_stops_at_once_with_one_clear_line(
    served: MisbehavingServer, fault: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    served.plan = ["plain"] * 5 + [fault] * 200
    answered: list[str] = []
    with pytest.raises(InputError, match=said) as error:
        ask_all(
            served.client(key_variable="MY_KEY"),
            ([one] for one in requests(200)),
            lambda one, outcome: answered.append(one.id),
        )
    assert served.url in str(error.value) and "\n" not in str(error.value) and KEY not in str(error.value)
    assert len(served.received) < 20 and len(answered) <= 5


def test_a_server_that_has_died_is_not_asked_to_the_end() -> None:
    with misbehaving_server() as server:
        gone = server.client(tries=1)
    outcomes: list[Reply | Failure] = []
    with pytest.raises(InputError, match=f"{HOPELESS_IN_A_ROW} requests in a row failed, the last: no connection"):
        ask_all(gone, ([one] for one in requests(1000)), lambda one, outcome: outcomes.append(outcome))
    assert len(outcomes) < HOPELESS_IN_A_ROW + gone.concurrency
    with pytest.raises(InputError, match=r"gives no list of models \(no connection"):
        find_model(gone)


def test_no_more_requests_are_under_way_or_in_memory_than_allowed(served: MisbehavingServer) -> None:
    made, done = [], []

    def lazily() -> Iterator[list[ChatRequest]]:
        for one in requests(300):
            made.append(one.id)
            assert len(made) - len(done) <= 5
            yield [one]

    ask_all(served.client(concurrency=5), lazily(), lambda one, outcome: done.append(one.id))
    assert len(done) == 300 and served.most_at_once <= 5


def test_requests_of_a_group_follow_each_other_and_groups_run_side_by_side(served: MisbehavingServer) -> None:
    groups = [
        [ChatRequest(f"{g}.{n}", [{"role": "user", "content": f"{g} {n}"}], 8) for n in range(5)] for g in range(9)
    ]
    outcomes: list[str] = []
    ask_all(served.client(concurrency=3), map(iter, groups), lambda one, outcome: outcomes.append(one.id))
    order = [text_of(body) for body in served.received]
    for number in range(9):
        assert [text for text in order if text.startswith(f"{number} ")] == [f"{number} {n}" for n in range(5)]
    assert sorted(outcomes) == sorted(one.id for group in groups for one in group)
    for place, text in enumerate(order):  # at most three groups are begun and not done
        begun = {one.split()[0] for one in order[: place + 1]}
        assert len([group for group in begun if f"{group} 4" not in order[:place]]) <= 3, text


def test_greedy_requests_hold_what_they_should_and_logprobs_are_summed(served: MisbehavingServer) -> None:
    messages = [{"role": "user", "content": "hello"}]
    asked = [ChatRequest("a", messages, 7), ChatRequest("b", messages, 9, logprobs=True, extra={"top_k": 1})]
    outcomes = ask(served.client(concurrency=1), asked)
    assert served.received == [
        {"model": MODEL, "messages": messages, "max_tokens": 7, "temperature": 0},
        {"model": MODEL, "messages": messages, "max_tokens": 9, "temperature": 0, "logprobs": True, "top_k": 1},
    ]
    assert outcomes == {"a": [Reply("you said hello", None, 20, 3)], "b": [Reply("you said hello", -1.5, 20, 3)]}


def test_the_list_of_models_names_what_is_served(served: MisbehavingServer) -> None:
    served.models += [{"id": "radar", "root": "/runs/radar", "parent": MODEL}]
    found = find_model(ChatServer(served.url, "radar"))
    assert (found.root, found.parent) == ("/runs/radar", MODEL)
    with pytest.raises(InputError, match=f"serves no model `other`; it serves {MODEL}, radar"):
        find_model(ChatServer(served.url, "other"))
    with pytest.raises(InputError, match="most addresses end in /v1"):
        find_model(ChatServer(served.url.removesuffix("/v1"), MODEL))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x/v1", "http://", "http://x:port/v1", "", "http://me:secret@x/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is no URL of a server") as error:
        find_model(ChatServer(url, MODEL))
    assert "secret" not in str(error.value)


def test_the_key_goes_to_openai_or_where_it_is_named_for_and_into_no_file_or_message(
    served: MisbehavingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-openai")
    find_model(served.client())
    assert served.headers >= {"authorization"} and not served.headers & {"openai-organization", "openai-project"}
    assert served.keys == {"Bearer none"}, "another server does not get to see OpenAI's key"
    served.keys.clear()
    served.plan = ["500"] * 6
    cache = ReplyCache(tmp_path / "replies.jsonl")
    outcomes = ask(find_model(served.client(key_variable="MY_KEY", concurrency=1, tries=6)), requests(3), cache)
    assert served.keys == {f"Bearer {KEY}"}
    assert outcomes["0"] == [Failure("HTTP 500", "Authorization was: Bearer ***")]
    assert KEY not in cache.path.read_text()
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(InputError, match="environment variable MY_KEY must hold its key"):
        find_model(served.client(key_variable="MY_KEY"))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="environment variable OPENAI_API_KEY must hold its key"):
        find_model(ChatServer("https://api.openai.com/v1", MODEL))


def test_replies_are_remembered_by_everything_that_is_sent_and_failures_are_not(
    served: MisbehavingServer, tmp_path: Path
) -> None:
    server, path = find_model(served.client()), tmp_path / "deep" / "replies.jsonl"
    served.plan = ["400"]
    assert Counter(type(one) for [one] in ask(server, requests(9), ReplyCache(path)).values()) == {
        Reply: 8,
        Failure: 1,
    }
    assert len(set(texts(ask(server, requests(9), ReplyCache(path))).values())) == 9
    assert len(served.received) == 10, "the failed one is asked again, the others are not"
    longer = [ChatRequest(one.id, one.messages, 9) for one in requests(9)]
    ask(server, longer, ReplyCache(path))
    assert len(served.received) == 19, "another length is another request"
    served.models[0]["root"] = "/models/another"
    ask(find_model(server), longer, ReplyCache(path))
    assert len(served.received) == 28, "another model behind the same name"
    with misbehaving_server() as other:
        for root in (None, MODEL):
            served.models[0]["root"] = other.models[0]["root"] = root
            for one in (served, other):
                ask(find_model(one.client()), requests(2), ReplyCache(path))
    assert (len(served.received), len(other.received)) == (30, 2), "servers that do not say what stands behind a name"


def test_a_torn_line_costs_its_own_reply_alone(served: MisbehavingServer, tmp_path: Path) -> None:
    server, path = find_model(served.client(concurrency=1)), tmp_path / "replies.jsonl"
    ask(server, requests(5), ReplyCache(path))
    whole = path.read_bytes()
    path.write_bytes(b'{"key": 3}\n\xff\xfe\n[]\n' + whole[:-20])
    ask(server, requests(5), ReplyCache(path))
    assert len(served.received) == 6
    ask(server, requests(5), ReplyCache(path))
    assert len(served.received) == 6, "the line after the torn one is whole"


def test_two_processes_may_share_a_cache(served: MisbehavingServer, tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    first, second = ReplyCache(path), ReplyCache(path)
    for number, cache in enumerate([first, second] * 20):
        cache.add("m", {"number": number}, Reply("x" * 5000, None, 1, 1))
    both = ReplyCache(path)
    assert all(both.find("m", {"number": number}) for number in range(40))


def test_half_characters_and_refusals_are_replies(served: MisbehavingServer, tmp_path: Path) -> None:
    served.say = lambda body: "half \ud800 character"
    cache = ReplyCache(tmp_path / "replies.jsonl")
    [[reply]] = ask(served.client(), requests(1), cache).values()
    assert reply.text == "half ? character"
    assert json.loads(cache.path.read_text())["reply"]["text"] == reply.text


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot keep replies"):
        ReplyCache(tmp_path / "folder")


def test_every_fault_of_the_server_is_tested() -> None:
    assert set(FAULTS) <= {*MENDED, "400", "401", "404", "no money", "plain"}
