"""Have a language model put the template captions of a data folder into other words, without a change of facts.

    python data_prep/rewrite_captions.py --data data/boxes --out data/boxes_rewritten --model NAME \\
        --base_url http://127.0.0.1:8000/v1

Any server of the OpenAI protocol. A rewrite that loses, changes, adds or blurs a number, class, place or relation is
refused and listed in rewrites.jsonl; docs/rewriting.md says how that is told. The same command goes on after any stop.
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.chat_client import find_model
from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import exit_on_bad_input
from sarlang_sft.records import DATA_FOLDER, print_manifest
from sarlang_sft.reply_cache import ReplyCache
from sarlang_sft.rewriting.asking import RewritingArguments, ask_rewrites
from sarlang_sft.rewriting.folders import open_source, print_rewriting, write_rewritten
from sarlang_sft.whole_output import check_replaceable


@dataclass
class FolderArguments:
    data: str = field(metadata={"help": "Data folder with template captions."})
    out: str = field(metadata={"help": "Data folder to write."})
    wording: str | None = field(
        default=None, metadata={"help": "Words that the captions are made of; default: wording.yaml of --data."}
    )


def main() -> None:
    folders, rewriting = parse_arguments([FolderArguments, RewritingArguments], __doc__)
    out = Path(folders.out)
    check_replaceable(out, DATA_FOLDER)
    source = open_source(Path(folders.data), folders.wording, rewriting.splits, rewriting.styles)
    server = find_model(rewriting.server())
    cache = ReplyCache(Path(rewriting.cache or f"{out}.replies.jsonl"))
    rewrites = ask_rewrites(server, cache, source.captions.values(), source.lexicon, rewriting)
    manifest = write_rewritten(out, source, rewrites, server, rewriting)
    print_manifest(manifest)
    print_rewriting(manifest)
    print(f"Data folder: {out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
