"""What is said to a server of the OpenAI protocol, and how a single request is sent until it is answered.

The package `openai` sends it. Its own retries are off: they pass over bodies that are no chat completion.
"""

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, Omit

from sarlang_sft.errors import InputError

OPENAI_HOST, OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
LONGEST_BACK_OFF = 30.0  # seconds
LONGEST_RETRY_AFTER = 120.0  # seconds; a server that asks for more is asked again after these
TRY_AGAIN = {408, 409, 425, 429}  # and all from 500 on


@dataclass(frozen=True)
class ChatServer:
    """A model at a server.

    Attributes:
        base_url: As in `http://127.0.0.1:8000/v1`.
        model: The name that it is served under.
        key_variable: Environment variable that holds the key. By default `OPENAI_API_KEY` for OpenAI's own server, and
            no key for any other, which should not get to see it.
        concurrency: Requests under way at once.
        timeout: Seconds for a reply.
        tries: How often a request is sent until it counts as failed.
        first_wait: Seconds before the second try; doubled after each, unless the server says how long (Retry-After).
        requests_per_minute: No more are sent, every try counted; None: no limit.
        root: What the server says stands behind the name; set by `find_model`.
        parent: The model that the server says this one is an adapter on; set by `find_model`.
    """

    base_url: str
    model: str
    key_variable: str | None = None
    concurrency: int = 32
    timeout: float = 180.0
    tries: int = 6
    first_wait: float = 1.0
    requests_per_minute: float | None = None
    root: str | None = None
    parent: str | None = None

    @property
    def stands_for(self) -> str:
        """What tells the model from others of its name: its root, or where it is served if that says no more."""
        return self.base_url if self.root in (None, self.model) else self.root

    def facts(self) -> dict[str, str | None]:
        """Which model answers, to be kept with its answers; not where, which may change."""
        return {"served_model": self.model, "served_root": self.root, "served_parent": self.parent}


@dataclass(frozen=True)
class ChatRequest:
    """Messages to be answered, greedily unless `extra` says otherwise.

    Attributes:
        id: Tells it from the others of its run; not sent.
        max_tokens: Longest reply.
        logprobs: Ask for the log-probability of the reply.
        extra: Fields that are sent too and that not every server knows.
    """

    id: str
    messages: list[dict[str, Any]]
    max_tokens: int
    logprobs: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self, model: str) -> dict[str, Any]:
        """What is sent."""
        fixed = {"model": model, "messages": self.messages, "max_tokens": self.max_tokens, "temperature": 0}
        return fixed | ({"logprobs": True} if self.logprobs else {}) | self.extra


@dataclass(frozen=True)
class Reply:
    """What a server replied.

    Attributes:
        logprob: Sum over its tokens; None where the server gave none, or no finite one.
        input_tokens, output_tokens: As the server counts them; 0 where it does not say.
    """

    text: str
    logprob: float | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Failure:
    """Why a request has no reply: a `reason` to be counted, and what the server said."""

    reason: str
    detail: str = ""


def open_client(server: ChatServer) -> AsyncOpenAI:
    """A connection to a server; raises [`InputError`] if its URL is none, or its key is missing."""
    try:
        url = urlsplit(server.base_url)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0 and "@" not in url.netloc
    except ValueError:
        usable = False
    if not usable:
        shown = server.base_url.rpartition("@")[2]  # what stands before may be a password
        raise InputError(f"{shown}: is no URL of a server; give one like http://127.0.0.1:8000/v1, without a password")
    key = _key(server) or "none"  # servers without keys ignore it
    # of the environment, which the package would tell any server
    private = {} if _of_openai(server) else {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
    return AsyncOpenAI(
        base_url=server.base_url, api_key=key, max_retries=0, timeout=server.timeout, default_headers=private
    )


def _of_openai(server: ChatServer) -> bool:
    return urlsplit(server.base_url).hostname == OPENAI_HOST


def _key_variable(server: ChatServer) -> str | None:
    return server.key_variable or (OPENAI_KEY if _of_openai(server) else None)


def _key(server: ChatServer) -> str | None:
    variable = _key_variable(server)
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"{server.base_url}: the environment variable {variable} must hold its key")
    return key


def check_requests_per_minute(number: float | None, prefix: str = "") -> None:
    """Raise a `ValueError` unless `ChatServer.requests_per_minute` can be this; `prefix` of the option's name."""
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"--{prefix}requests_per_minute must be above 0; leave it out for no limit")


def paced(requests_per_minute: float | None) -> Callable[[], Awaitable[None]]:
    """A wait before every request of an event loop, which spaces them evenly: a minute never sees more."""
    space = 60 / requests_per_minute if requests_per_minute else 0.0
    next_turn = -math.inf

    async def wait() -> None:
        nonlocal next_turn
        now = time.monotonic()
        turn = max(next_turn, now)
        next_turn = turn + space
        await asyncio.sleep(turn - now)

    return wait


async def until_read(
    server: ChatServer,
    call: Callable[[], Awaitable[Any]],
    read: Callable[[Any], Any],
    turn: Callable[[], Awaitable[None]],
) -> Any:
    """What `read` makes of the reply's JSON, or a [`Failure`] after the last try.

    Args:
        call: Sends the request; called anew for every try.
        turn: Awaited before every try, see [`paced`].
        read: Raises a `LookupError`, `TypeError`, `ValueError` or `AttributeError` on JSON that is no such reply.

    Raises:
        InputError: The server refuses the key or does not know the model, or the account has no money left.
    """
    outcome = Failure("never asked")
    wait = 0.0
    for number in range(server.tries):
        await asyncio.sleep(wait)
        await turn()
        back_off = min(server.first_wait * 2**number, LONGEST_BACK_OFF)
        wait = back_off * random.uniform(0.5, 1)  # so that requests that failed together do not come back together
        try:
            async with asyncio.timeout(server.timeout):  # the package's own begins anew with every byte
                reply = await call()
        except (TimeoutError, APITimeoutError):
            outcome = Failure("timed out", f"after {server.timeout:g} s")
        except APIConnectionError as error:
            outcome = Failure("no connection", _one_line(server, str(error.__cause__ or error)))
        except APIStatusError as error:
            _check_hope(server, error)
            outcome = Failure(f"HTTP {error.status_code}", _one_line(server, error.response.text))
            if error.status_code not in TRY_AGAIN and error.status_code < 500:
                return outcome
            wait = max(wait, _retry_after(error.response.headers.get("retry-after", "")))
        else:
            try:
                return read(json.loads(reply.content))
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                outcome = Failure("unreadable reply", _one_line(server, reply.content.decode("utf-8", "replace")))
    return outcome


def _check_hope(server: ChatServer, error: APIStatusError) -> None:
    """Raise [`InputError`] on what no other request would meet differently."""
    if error.status_code in (401, 403):
        variable = _key_variable(server)
        way_out = f"the key in {variable}" if variable else "requests without a key; name the variable that holds one"
        raise InputError(f"{server.base_url}: refuses {way_out} (HTTP {error.status_code})")
    if error.status_code == 404:
        raise InputError(
            f"{server.base_url}: knows no model `{server.model}`, or speaks no OpenAI protocol there, HTTP 404; most "
            f"addresses end in /v1 ({_one_line(server, error.response.text)})"
        )
    if error.code == "insufficient_quota":
        raise InputError(f"{server.base_url}: the account has no money left; replies so far are kept")


def _retry_after(header: str) -> float:
    """Seconds that a server asks to wait, in RFC 9110's two forms; 0 if it does not."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER))


def _one_line(server: ChatServer, said: str) -> str:
    """The beginning of what a server says, without the key, which some repeat."""
    key = _key(server)
    return " ".join((said.replace(key, "***") if key else said).split())[:200]


def read_reply(content: Any) -> Reply:
    """A reply from a chat completion; a message without content (a refusal) is an empty text.

    Raises:
        LookupError, TypeError, ValueError: It is none.
    """
    choice = content["choices"][0]
    text = choice["message"]["content"]
    if text is not None and not isinstance(text, str):
        raise TypeError("content")
    scored = (choice.get("logprobs") or {}).get("content")
    logprob = None if scored is None else float(sum(token["logprob"] for token in scored))
    usage = content.get("usage") or {}
    return Reply(
        text=(text or "").encode("utf-8", "replace").decode().strip(),  # JSON may hold halves of characters
        logprob=logprob if logprob is not None and math.isfinite(logprob) else None,
        input_tokens=int(usage.get("prompt_tokens") or 0),
        output_tokens=int(usage.get("completion_tokens") or 0),
    )
