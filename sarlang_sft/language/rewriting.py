"""Template captions put into other words by a language model behind any server of the OpenAI protocol.

One request per distinct caption asks for several rewrites; those that the guard lets pass are dealt out to the images.
The prompt is our own; its version is in the manifest.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from tqdm import tqdm

from sarlang_sft.chat_client import ask_all
from sarlang_sft.chat_costs import check_prices, estimate_cost
from sarlang_sft.chat_protocol import ChatRequest, ChatServer, Failure, Reply, check_requests_per_minute
from sarlang_sft.errors import InputError
from sarlang_sft.language.diversity import diversity
from sarlang_sft.language.rewrite_guard import Fault, fault_of, read_caption
from sarlang_sft.language.rewrite_reading import UnreadError
from sarlang_sft.language.rewrite_words import Lexicon, fold, make_lexicon
from sarlang_sft.language.things import name_things
from sarlang_sft.language.wording import CAPTION_FAMILIES, Wording, read_wording
from sarlang_sft.records import (
    SPLITS,
    Dialogue,
    Record,
    Rejection,
    Turn,
    check_not_in_shards,
    read_manifest,
    read_records,
    to_table,
    write_data_folder,
)
from sarlang_sft.reply_cache import ReplyCache

PROMPT_VERSION = 1
PROMPT = """You put captions of radar images into other words. You do not see the images: the caption is all you know.

Write {variants} different rewrites of the caption below, in the language of the caption, one per line.
- Keep every number, every kind of object, every place and every relation exactly as it is, and what belongs to what.
- Where the caption gives no number, give none: a plural stays a plural.
- Add nothing: no other objects, no adjectives, no guesses, no doubts, no purpose, no weather, no surroundings.
- Each rewrite is one whole sentence that ends as the caption does. Vary the words and the order, not the facts.
- Reply with the {variants} lines alone: no numbering, no quotes, no remarks.

The caption: {caption}"""
WORDING, REWRITES, REWRITTEN = "wording.yaml", "rewrites.jsonl", "rewriting"
CARRIED = (WORDING, "card.md", "annotations.jsonl")  # of the folder that is rewritten
CAPTIONS, FOLDERS = "boxes_caption", "folders"  # subsets
DEFAULT_SPLITS = ("train", "val")
NOT_READ, NONE_ACCEPTED = "the caption is not read for sure", "no rewrite was accepted"
_BASIC = {"read", "accepted", "rejected", "counts", "image_root", "inputs"}  # of a manifest, written anew
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
    tries: int = field(default=6, metadata={"help": "How often a request is sent until its caption is kept."})
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


@dataclass(frozen=True)
class Source:
    """The folder to rewrite.

    Attributes:
        captions: Texts of the chosen template captions by the ids of their dialogues, in stored order.
    """

    data: Path
    wording: Wording
    lexicon: Lexicon
    captions: Mapping[str, str]


def open_source(data: Path, wording: str | None, splits: Sequence[str], styles: Sequence[str]) -> Source:
    """The template captions of a data folder, and what is needed to read them.

    Args:
        wording: Name or path of the words that they are made of; None: the folder's own.

    Raises:
        InputError: There are none, the folder has been rewritten before, lies in shards, or has no wording.
    """
    check_not_in_shards(data)
    if REWRITTEN in read_manifest(data):
        raise InputError(f"--data {data}: its captions are rewritten; give the folder that they were built in")
    own = data / WORDING
    if wording is None and not own.is_file():
        raise InputError(f"--data {data}: has no {WORDING}; name the words of its captions with --wording")
    words = read_wording(wording or str(own))
    if not words.content.get("reading", {}).get("refused"):
        raise InputError(
            f"--wording {words.name}: has no `reading.refused`, without which no rewrite can be judged; see en.yaml"
        )
    labels: dict[str, None] = {}
    captions: dict[str, str] = {}
    for split in SPLITS:
        for record in read_records(data, split):
            labels |= dict.fromkeys(_labels_of(record))
            if split in splits:
                captions |= {one.id: one.turns[0].answer for one in record.dialogues if _is_template(one, styles)}
    if not captions:
        raise InputError(
            f"--data {data}: holds no template captions of the styles {', '.join(styles)} in {', '.join(splits)}; "
            "data_prep/build_from_boxes.py makes them"
        )
    things = name_things(sorted(labels), words).values()
    return Source(data, words, make_lexicon(things, words), captions)


def _labels_of(record: Record) -> Iterator[str]:
    """The classes of a record: those of its boxes, or the folder of its image, `<split>/<class>/...`."""
    yield from (box.label for box in record.boxes)
    if any(dialogue.subset == FOLDERS for dialogue in record.dialogues):
        yield from PurePath(record.images[0]).parts[1:2]


def _is_template(dialogue: Dialogue, styles: Sequence[str]) -> bool:
    return (
        dialogue.task == "description"
        and dialogue.subset in (CAPTIONS, FOLDERS)
        and dialogue.style in styles
        and len(dialogue.turns) == 1
    )


def ask_rewrites(server: ChatServer, cache: ReplyCache, source: Source, arguments: RewritingArguments) -> Rewrites:
    """Ask for rewrites of every distinct caption that the guard can read; says what it costs before it asks.

    Raises:
        InputError: It may cost more than `--max_cost`, and nothing was asked, or see `ask_all`.
    """
    rewrites = Rewrites()
    read = {}
    for caption in dict.fromkeys(source.captions.values()):
        try:
            read[caption] = read_caption(caption, source.lexicon)
        except UnreadError:
            rewrites.kept[caption] = NOT_READ
    requests = [_request(caption, arguments) for caption in read]
    cost = estimate_cost(server, cache, requests, arguments.prices)
    print(
        f"Rewriting by {server.model}: {len(source.captions):,} captions, {len(read) + len(rewrites.kept):,} of them "
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
                good, bad = sift(rewrites_in(outcome.text), caption, arguments.variants, source.lexicon)
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


def deal(captions: Mapping[str, str], accepted: Mapping[str, list[str]], seed: int) -> dict[str, str]:
    """The rewrite that each dialogue gets, by its id; none where its caption has none."""
    return {name: _choose(accepted[text], f"{seed}/{name}") for name, text in captions.items() if text in accepted}


def _choose(texts: Sequence[str], key: str) -> str:
    return texts[int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(texts)]


def write_rewritten(
    out: Path, source: Source, rewrites: Rewrites, server: ChatServer, arguments: RewritingArguments
) -> dict[str, Any]:
    """Write the folder anew with accepted rewrites in the place of their captions; returns its manifest.

    Raises:
        InputError: See `write_data_folder`.
    """
    dealt = deal(source.captions, rewrites.accepted, arguments.seed)
    kept = Counter(rewrites.kept[text] for text in source.captions.values() if text in rewrites.kept)
    facts = {
        "model": server.model,
        "root": server.root,
        "prompt_version": PROMPT_VERSION,
        "temperature": arguments.temperature,
        "variants": arguments.variants,
        "seed": arguments.seed,
        "splits": arguments.splits,
        "styles": arguments.styles,
        "wording": source.wording.hash,
        "distinct_captions": len({*source.captions.values()}),
        "captions": len(source.captions),
        "rewritten": len(dealt),
        "kept": dict(sorted(kept.items())),
        "requests": dict(sorted(rewrites.requests.items())),
        "accepted_rewrites": sum(map(len, rewrites.accepted.values())),
        "rejected_rewrites": dict(sorted(Counter(one.reason for one in rewrites.rejected).items())),
        "diversity": {"before": diversity(source.captions), "after": diversity({**source.captions, **dealt})},
    }
    manifest = read_manifest(source.data)
    records = (_rewritten(record, dealt) for split in SPLITS for record in read_records(source.data, split))
    listed = "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in rewrites.rejected)
    carried = {name: path.read_text(encoding="utf-8") for name in CARRIED if (path := source.data / name).is_file()}
    return write_data_folder(
        out,
        to_table(records),
        _read_rejections(source.data),
        Path(manifest["image_root"]),
        manifest["inputs"],
        {key: value for key, value in manifest.items() if key not in _BASIC} | {REWRITTEN: facts},
        carried | {WORDING: source.wording.dump(), REWRITES: listed},
    )


def _rewritten(record: Record, dealt: Mapping[str, str]) -> Record:
    return replace(
        record,
        dialogues=[
            replace(one, turns=[Turn(one.turns[0].question, dealt[one.id])]) if one.id in dealt else one
            for one in record.dialogues
        ],
    )


def _read_rejections(data: Path) -> list[Rejection]:
    path = data / "rejected.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Rejection(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is no list of rejections ({error}); build the folder again") from error


def print_rewriting(manifest: Mapping[str, Any]) -> None:
    """What became of the captions, and how varied they were and are."""
    facts = manifest[REWRITTEN]
    print(
        f"  captions {facts['captions']:,} = rewritten {facts['rewritten']:,} + kept {sum(facts['kept'].values()):,}"
    )
    for reason, count in facts["kept"].items():
        print(f"  kept: {reason} {count:,}")
    refused = sum(facts["rejected_rewrites"].values())
    print(f"  rewrites accepted {facts['accepted_rewrites']:,}, rejected {refused:,} (see {REWRITES})")
    for reason, count in facts["rejected_rewrites"].items():
        print(f"  rejected: {reason} {count:,}")
    for name in ("before", "after"):
        print(f"  {name:6} {_diversity_line(facts['diversity'][name])}")
    if "test" not in facts["splits"]:
        print("  captions of test are as they were built; --splits train val test rewrites them, too")


def _diversity_line(found: Mapping[str, Any]) -> str:
    distinct = " ".join("-" if share is None else f"{share:.4f}" for share in found["distinct"].values())
    bleu = "-" if found["self_bleu_4"] is None else f"{found['self_bleu_4']:.3f}"
    return (
        f"{found['different']:,} different captions, distinct-1..4 {distinct}, "
        f"self-BLEU-4 {bleu} (of {found['sample']:,} captions)"
    )
