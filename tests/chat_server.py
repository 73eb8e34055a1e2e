"""A server of the OpenAI protocol on 127.0.0.1 that misbehaves by plan, and keeps what it was asked."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

from sarlang_sft.chat_protocol import ChatServer

MODEL = "tiny"
KEY = "sk-secret"
DELAY, IMPATIENT = 2.0, 1.0  # seconds of `delay`, and of clients that do not wait for it

# How a request is answered instead: status, headers, body; `{}` is the whole right reply.
FAULTS: dict[str, tuple[int, dict[str, str], str]] = {
    "429": (429, {}, '{"error": {"message": "slow down"}}'),
    "429 after": (429, {"Retry-After": "0.01"}, '{"error": {"message": "slow down"}}'),
    "429 after date": (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "{}"),
    "no money": (429, {}, '{"error": {"message": "pay", "code": "insufficient_quota"}}'),
    "500": (500, {}, "Authorization was: Bearer sk-secret"),
    "503": (503, {"Content-Type": "text/html"}, "<html>busy</html>"),
    "400": (400, {}, '{"error": {"message": "too long"}}'),
    "401": (401, {}, '{"error": {"message": "Incorrect API key provided: sk-secret"}}'),
    "404": (404, {}, '{"error": {"message": "The model does not exist"}}'),
    "garbage": (200, {}, "\x00\x01 no json"),
    "deep": (200, {}, "[" * 100_000),
    "html": (200, {"Content-Type": "text/html"}, "<html>login</html>"),
    "no choices": (200, {}, '{"choices": []}'),
    "list": (200, {}, "[1, 2]"),
    "no text": (200, {}, '{"choices": [{"message": {"content": 5}}]}'),
    "no message": (200, {}, '{"choices": [{}]}'),
    "plain": (200, {"Content-Type": "text/plain"}, "{}"),
}


class MisbehavingServer(ThreadingHTTPServer):
    """Replies to chats.

    Attributes:
        models: Entries of its list.
        say: The text of a reply, from the request's body.
        plan: What befalls the next requests, in the order of their arrival: a name of `FAULTS`, or `delay`,
            `truncated`, `closed`; then all are answered.
        stop_after: After so many replies it holds every request until `released`.
        received: Bodies in the order of their arrival.
        replied: How often each body got its right reply.
        spans: Image (a data URL), start and end of every right reply.
        most_at_once: Requests under way together.
        keys: `Authorization` headers.
        headers: Names of all headers, in lower case.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[dict[str, Any]] = [{"id": MODEL, "object": "model", "root": "/models/tiny"}]
        self.say: Callable[[dict[str, Any]], str] = lambda body: "1"
        self.plan: list[str] = []
        self.stop_after: int | None = None
        self.held, self.released = Event(), Event()
        self.received: list[dict[str, Any]] = []
        self.replied: Counter[str] = Counter()
        self.spans: list[tuple[str, float, float]] = []
        self.most_at_once = self.at_once = 0
        self.keys: set[str | None] = set()
        self.headers: set[str] = set()
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def client(self, model: str = MODEL, **options: Any) -> ChatServer:
        """How tests ask it: again after a moment."""
        quick = {"concurrency": 4, "timeout": 60, "first_wait": 0.01}
        return ChatServer(self.url, model, **{**quick, **options})

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have left are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: MisbehavingServer

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The list of models."""
        self.server.keys.add(self.headers["Authorization"])
        self.server.headers |= {name.lower() for name in self.headers}
        found = self.path == "/v1/models"
        self.send(200 if found else 404, {}, json.dumps({"object": "list", "data": self.server.models}))

    def do_POST(self) -> None:
        """A chat completion, or what the plan says."""
        server, begin = self.server, time.monotonic()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            server.received.append(body)
            fault = server.plan.pop(0) if server.plan else ""
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            holds = server.stop_after is not None and sum(server.replied.values()) >= server.stop_after
            if not fault and not holds:
                server.replied[json.dumps(body)] += 1
        if holds:
            server.held.set()
            server.released.wait()
            return
        whole = json.dumps(completion(server.say(body), "logprobs" in body))
        time.sleep(DELAY if fault == "delay" else 0)
        with server.lock:  # before the reply, which brings the next request
            server.at_once -= 1
            if not fault:
                server.spans.append((image_of(body), begin, time.monotonic()))
        self.answer(whole, fault)

    def answer(self, whole: str, fault: str) -> None:
        """Send the right reply, or a wrong one in this way."""
        if fault in FAULTS:
            status, headers, text = FAULTS[fault]
            self.send(status, headers, whole if status == 200 and text == "{}" else text)
        elif fault == "closed":
            self.close_connection = True
        elif fault == "truncated":
            self.send(200, {"Content-Length": str(len(whole) + 100)}, whole)
            self.close_connection = True
        else:
            self.send(200, {}, whole)

    def send(self, status: int, headers: dict[str, str], text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def completion(text: str, logprobs: bool) -> dict[str, Any]:
    """A chat completion as servers send it; every token's log-probability is -0.5."""
    tokens = text.split()
    scored = {"content": [{"token": token, "logprob": -0.5} for token in tokens]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": len(tokens), "total_tokens": 20 + len(tokens)}
    return {
        "object": "chat.completion",
        "choices": [choice | ({"logprobs": scored} if logprobs else {})],
        "usage": usage,
    }


def text_of(body: dict[str, Any]) -> str:
    """The words of the last message of a request."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def image_of(body: dict[str, Any]) -> str:
    """The first image of a request, a data URL; empty if there is none."""
    content = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if "image_url" in part] if isinstance(content, list) else []
    return urls[0] if urls else ""


@contextmanager
def misbehaving_server() -> Iterator[MisbehavingServer]:
    """A running server."""
    with MisbehavingServer() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
