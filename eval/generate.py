r"""Answer every question of a split, greedily.

    python eval/generate.py --model Qwen/Qwen2.5-VL-7B-Instruct --adapter runs/qwen --data data/sarlang \
        --out runs/qwen/eval
    torchrun --nproc_per_node 8 eval/generate.py --model ...   # the same on eight GPUs
    python eval/generate.py --engine openai --base_url http://127.0.0.1:8000/v1 --served_model merged \
        --model runs/merged --data data/sarlang --out runs/merged/eval      # by a server, see docs/serving.md

Writes predictions.jsonl when all is answered; until then each process writes a part beside it. The same command goes
on after any stop, with any number of processes. Baselines, what is known without seeing: `--exchange_images` shows
every question another scene's image, `--without_images` none.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.eval_questions import exchange_images, leave_out_images, read_questions
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.imagery import load_ops
from sarlang_sft.inference import load_tuned
from sarlang_sft.predict import Asking, open_predictions, predict_to_file
from sarlang_sft.prediction_files import answered_ids
from sarlang_sft.quantisation import bits_of
from sarlang_sft.records import file_hash, image_root_of
from sarlang_sft.served_answers import ServerArguments, open_served, predict_by_server
from sarlang_sft.shards import DEFAULT_CACHE, data_folder
from sarlang_sft.signals import leave_at_once

MADE_WITH = (
    "model",
    "adapter",
    "data",
    "image_root",
    "split",
    "exchange_images",
    "without_images",
    "max_new_tokens",
    "dtype",
    "max_pixels",
    "engine",
)  # options without which answers are others


@dataclass
class GenerateArguments:
    data: str = field(metadata={"help": "Data folder, or the URL of one in shards (docs/scale.md)."})
    out: str = field(metadata={"help": "Folder for predictions.jsonl."})
    model: str | None = field(
        default=None,
        metadata={"help": "Folder or hub name of the model; a server's may go without if it is none of our families."},
    )
    engine: str = field(default="hf", metadata={"help": "hf (answer here) or openai (ask a server, e.g. vLLM)."})
    adapter: str | None = field(default=None, metadata={"help": "Folder of the adapter."})
    split: str = field(default="test", metadata={"help": "train, val or test."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )
    shard_cache: str | None = field(
        default=None, metadata={"help": f"Folder for shards fetched from a URL; default: {DEFAULT_CACHE}."}
    )
    subsets: list[str] = field(default_factory=list, metadata={"help": "Only these, e.g. vqa1 vqa2; default: all."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "Only these applications; default: all."})
    limit: int | None = field(default=None, metadata={"help": "Only the first N questions."})
    exchange_images: bool = field(default=False, metadata={"help": "Show every question another scene's image."})
    without_images: bool = field(default=False, metadata={"help": "Ask every question without its image."})
    name: str = field(default="predictions", metadata={"help": "Name of the file, without .jsonl."})
    batch_size: int = field(default=32, metadata={"help": "Questions answered together."})
    shared_trunk: bool = field(
        default=True, metadata={"help": "Encode an image once for all its questions; false: every prompt whole."}
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Longest answer."})
    dtype: str = field(default="auto", metadata={"help": "bfloat16, float16, float32, or as stored (auto)."})
    max_pixels: int | None = field(default=None, metadata={"help": "Pixel budget; default: the processor's own."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the language model as QLoRA does."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantise the language model to 8-bit integers."})


def main() -> None:
    args, server_args = parse_arguments([GenerateArguments, ServerArguments], __doc__)
    if args.engine not in ("hf", "openai") or (args.engine == "hf" and args.model is None):
        raise InputError(f"--engine {args.engine}: must be hf, which needs --model, or openai")
    if min(args.batch_size, args.max_new_tokens, 1 if args.limit is None else args.limit) < 1:
        raise InputError("--batch_size, --max_new_tokens and --limit must be at least 1")
    if args.exchange_images and args.without_images:
        raise InputError("--exchange_images and --without_images exclude each other: choose one")
    leave_at_once(lambda: None)
    crew = Crew()
    bits = bits_of(args.load_in_4bit, args.load_in_8bit)
    if args.engine == "openai" and (bits or args.dtype != "auto" or crew.ranks.count > 1):
        raise InputError("--engine openai: the server chooses --dtype and --load_in_*; one process asks, not torchrun")
    data = data_folder(args.data, args.shard_cache)
    image_root = image_root_of(data, args.image_root)
    questions = read_questions(data, args.split, args.subsets, args.tasks, args.limit)
    if args.exchange_images:
        questions = exchange_images(questions)
    if args.without_images:
        questions = leave_out_images(questions)
    path = Path(args.out) / f"{args.name}.jsonl"
    adapted = args.adapter is not None and Path(args.adapter).is_dir()
    content = {  # names stay when what they name is trained anew
        "model_fingerprint": base_fingerprint(args.model) if args.model else None,
        "adapter_fingerprint": base_fingerprint(args.adapter) if adapted else None,
        "image_ops": load_ops(Path(args.adapter or args.model)) if args.model else [],
        "questions": file_hash(data / f"{args.split}.parquet"),
        # which scene is shown instead depends on which there are
        "exchanged_among": [args.subsets, args.tasks, args.limit] if args.exchange_images else None,
    }
    settings = {name: vars(args)[name] for name in MADE_WITH} | {"bits": bits} | content
    if args.engine == "openai":
        server, preparation = open_served(server_args.server(), args.model, args.adapter, args.max_pixels)
        lock = open_predictions(path, settings | server.facts(), crew.ranks)
        count, unusable = predict_by_server(server, preparation, questions, image_root, path, args.max_new_tokens)
    else:
        lock = open_predictions(path, settings, crew.ranks)
        tuned = load_tuned(args.model, args.adapter, args.dtype, args.max_pixels, bits)
        asking = Asking(args.batch_size, args.max_new_tokens, args.shared_trunk)
        count, unusable = predict_to_file(tuned, questions, image_root, path, asking, crew)
    lock.close()
    if crew.ranks.first:
        for why, number in Counter(unusable.values()).most_common():
            name = next(name for name in unusable if unusable[name] == why)
            print(f"{number} images or questions stay unanswered, such as {name}: {why}")
        answered = len(answered_ids(path, questions))
        print(f"{count} prompts answered for {len(questions)} questions, {answered} of which have an answer: {path}")
        if not answered:
            raise InputError(f"{path}: none of the questions could be answered, see above")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
