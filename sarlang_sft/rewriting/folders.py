"""Data folders whose template captions are rewritten: what is read of them, and how they are written anew."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from sarlang_sft.chat_protocol import ChatServer
from sarlang_sft.class_folders import FOLDERS
from sarlang_sft.errors import InputError
from sarlang_sft.language.captions import CAPTIONS
from sarlang_sft.language.recheck import WORDING
from sarlang_sft.language.things import name_things
from sarlang_sft.language.wording import Wording, read_wording
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
from sarlang_sft.rewriting.asking import PROMPT_VERSION, Rewrites, RewritingArguments
from sarlang_sft.rewriting.diversity import diversity
from sarlang_sft.rewriting.words import Lexicon, make_lexicon

REWRITES, REWRITTEN = "rewrites.jsonl", "rewriting"
CARRIED = (WORDING, "card.md", "annotations.jsonl")  # of the folder that is rewritten
_BASIC = {"read", "accepted", "rejected", "counts", "image_root", "inputs"}  # of a manifest, written anew


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
