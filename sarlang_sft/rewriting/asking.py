"""Template captions put into other words by a language model behind any server of the OpenAI protocol.

One request per distinct caption asks for several rewrites; those that the guard lets pass are dealt out to the images.
The prompt is our own; its version is in the manifest.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tqdm import tqdm

from sarlang_sft.chat_client import ask_all
from sarlang_sft.chat_costs import check_prices, estimate_cost
from sarlang_sft.chat_protocol import ChatRequest, ChatServer, Failure, Reply, check_requests_per_minute
from sarlang_sft.errors import InputError
from sarlang_sft.language.wording import CAPTION_FAMILIES
from sarlang_sft.records import (
    SPLITS,
)
from sarlang_sft.reply_cache import ReplyCache
from sarlang_sft.rewriting.folding import fold
from sarlang_sft.rewriting.guard import Fault, fault_of, read_caption
from sarlang_sft.rewriting.reading import UnreadError
from sarlang_sft.rewriting.words import Lexicon

PROMPT_VERSION = 1
PROMPT = """You put captions of radar images into other words. You do not see the images: the caption is all you know.

Write {variants} different rewrites of the caption below, in the language of the caption, one per line.
- Keep every number, every kind of object, every place and every relation exactly as it is, and what belongs to what.
- Where the caption gives no number, give none: a plural stays a plural.
- Add nothing: no other objects, no adjectives, no guesses, no doubts, no purpose, no weather, no surroundings.
- Each rewrite is one whole sentence that ends as the caption does. Vary the words and the order, not the facts.
- Reply with the {variants} lines alone: no numbering, no quotes, no remarks.

The caption: {caption}"""
DEFAULT_SPLITS = ("train", "val")
NOT_READ, NONE_ACCEPTED = "the caption is not read for sure", "no rewrite was accepted"
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"(?:\d+[.)]|[-*•])\s+")  # in front of an item of a list
_QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»", "「": "」"}


@dataclass
class RewritingArguments:
    """Who rewrites, what, and at what cost."""

    model: str = field(metadata={"help": "Name of the model at its server."})
    base_url: str = field(metadata={"help": "Server of the OpenAI protocol, such as http://127.0.0.1:8000/v1."})
    key_variable: str | None = field(
        default=None,
        metadata={"help": "Environment variable with its key; default: OPENAI_API_KEY for OpenAI, none elsewhere."},
    )
    variants: int = field(default=5, metadata={"help": "Rewrites asked for of every distinct caption."})
    temperature: float = field(default=0.8, metadata={"help": "Of the model's draws; 0: greedy."})
    max_tokens: int = field(default=1000, metadata={"help": "Longest reply; more for a model that thinks first."})
    splits: list[str] = field(
        default_factory=lambda: list(DEFAULT_SPLITS),
        metadata={"help": "Splits to rewrite; test is as it was unless it is named.", "choices": list(SPLITS)},
    )
    styles: list[str] = field(
        default_factory=lambda: list(CAPTION_FAMILIES),
        metadata={"help": "Families of captions to rewrite.", "choices": list(CAPTION_FAMILIES)},
    )
    seed: int = field(default=0, metadata={"help": "Deals the rewrites out to the images."})
    concurrency: int = field(default=32, metadata={"help": "Requests under way at once."})
    timeout: float = field(default=180.0, metadata={"help": "Seconds for a reply, after which it is asked again."})
    tries: int = field(default=6, metadata={"help": "Attempts at a request before its caption stays as it is."})
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "Send no more requests a minute, retries included; default: no limit."}
    )
    prices: list[float] = field(
        default_factory=list,
        metadata={"help": "Two prices per million tokens: sent, received. To show the cost first."},
    )
    max_cost: float | None = field(default=None, metadata={"help": "Ask nothing if it may cost more, by --prices."})
    cache: str | None = field(
        default=None, metadata={"help": "File of replies, never asked for twice; default: OUT.replies.jsonl."}
    )

    def __post_init__(self) -> None:
        check_prices(self.prices, self.max_cost)
        check_requests_per_minute(self.requests_per_minute)
        if min(self.variants, self.max_tokens, self.concurrency, self.tries) < 1 or self.timeout <= 0:
            raise ValueError("--variants, --max_tokens, --concurrency, --tries and --timeout must be positive")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"--temperature {self.temperature:g}: must be from 0 to 2")
        if not self.splits or not self.styles:
            raise ValueError("--splits and --styles must name something")

    def server(self) -> ChatServer:
        """The server that is asked."""
        return ChatServer(
            self.base_url,
            self.model,
            self.key_variable,
            self.concurrency,
            self.timeout,
            self.tries,
            requests_per_minute=self.requests_per_minute,
        )


class Rejected(NamedTuple):
    """A line of `rewrites.jsonl`."""

    caption: str
    rewrite: str
    reason: str
    detail: str


@dataclass
class Rewrites:
    """What came of asking.

    Attributes:
        accepted: Rewrites by their caption.
        kept: Why a caption has none.
        rejected: Rewrites that the guard refused.
        requests: How many had which end.
    """

    accepted: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)


def ask_rewrites(
    server: ChatServer, cache: ReplyCache, captions: Collection[str], lexicon: Lexicon, arguments: RewritingArguments
) -> Rewrites:
    """Ask for rewrites of every distinct caption that the guard can read; says what it costs before it asks.

    Raises:
        InputError: It may cost more than `--max_cost`, and nothing was asked, or see `ask_all`.
    """
    rewrites = Rewrites()
    read = {}
    for caption in dict.fromkeys(captions):
        try:
            read[caption] = read_caption(caption, lexicon)
        except UnreadError:
            rewrites.kept[caption] = NOT_READ
    requests = [_request(caption, arguments) for caption in read]
    cost = estimate_cost(server, cache, requests, arguments.prices)
    print(
        f"Rewriting by {server.model}: {len(captions):,} captions, {len(read) + len(rewrites.kept):,} of them "
        f"different, {cost}",
        flush=True,
    )
    if arguments.max_cost is not None and cost.money > arguments.max_cost:
        raise InputError(
            f"--max_cost {arguments.max_cost:g}: rewriting may cost up to {cost.money:.2f}; nothing was asked"
        )
    with tqdm(total=len(requests), desc="rewriting", unit=" captions") as progress:

        def note(request: ChatRequest, outcome: Reply | Failure) -> None:
            caption = request.id
            if isinstance(outcome, Failure):
                end = rewrites.kept[caption] = f"failed: {outcome.reason}"
                if not rewrites.requests[end]:
                    progress.write(f"{end}: {outcome.detail}")
            else:
                end = "replied"
                good, bad = sift(rewrites_in(outcome.text), caption, arguments.variants, lexicon)
                rewrites.rejected += bad
                if good:
                    rewrites.accepted[caption] = good
                else:
                    rewrites.kept[caption] = NONE_ACCEPTED
            rewrites.requests[end] += 1
            progress.update()

        ask_all(server, ([request] for request in requests), note, cache)
    rewrites.rejected.sort()  # replies come in any order
    return rewrites


def _request(caption: str, arguments: RewritingArguments) -> ChatRequest:
    said = PROMPT.format(variants=arguments.variants, caption=json.dumps(caption, ensure_ascii=False))
    return ChatRequest(
        caption,
        [{"role": "user", "content": said}],
        arguments.max_tokens,
        extra={"temperature": arguments.temperature},
    )


def rewrites_in(reply: str) -> list[str]:
    """The lines of a reply without thoughts, numbering and quotes around them; a JSON list of texts is read too."""
    said = _THOUGHTS.sub("", reply).rpartition("</think>")[2].strip()
    try:
        listed = json.loads(said)
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(line, str) for line in listed):
        return [line.strip() for line in listed]
    lines = (
        _MARK.sub("", line.strip(), count=1) if _MARK.match(line.strip()) else line.strip()
        for line in said.split("\n")
    )
    return [_unquoted(line) for line in lines if line]


def _unquoted(line: str) -> str:
    return line[1:-1].strip() if len(line) > 1 and _QUOTES.get(line[0]) == line[-1] else line


def sift(lines: Iterable[str], caption: str, variants: int, lexicon: Lexicon) -> tuple[list[str], list[Rejected]]:
    """Up to `variants` rewrites of a caption that say the same in other words, and all other lines with the reason.

    Raises:
        UnreadError: The caption itself cannot be read.
    """
    read = read_caption(caption, lexicon)
    good: dict[str, str] = {}
    bad: list[Rejected] = []
    for line in lines:
        fault = fault_of(line, read, lexicon)
        if fault is None and fold(line) in good:
            fault = Fault("the same as another rewrite")
        if fault is None and len(good) == variants:
            fault = Fault("more than were asked for")
        if fault is None:
            good[fold(line)] = line
        else:
            bad.append(Rejected(caption, line, *fault))
    return list(good.values()), bad
