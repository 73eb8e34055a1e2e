r"""Caption every image of a split with a CoCa, and write the captions as eval/score_caption.py takes them.

    python eval/caption.py --model runs/sarcap --data data/sarlang --split test --out runs/sarcap/eval
    python eval/score_caption.py --predictions runs/sarcap/eval/predictions.jsonl --data data/sarlang --split test \
        --protocol standard --out runs/sarcap/eval/caption_standard.json

The search is the published one (6 beams in 3 groups, at least 5 tokens); `--beams 1` takes the likeliest token each
time. All captions that a split has of an image, concise or complex, are answered with the one that the model writes.
Captions are in lower case, as CLIP's tokenizer reads them: `--protocol official`, which compares capitals, counts each
as another word. The same command goes on after any stop.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.beam_search import DecodingArguments
from sarlang_sft.contrastive.captioning import caption_to_file, check_captioner
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.eval_questions import read_questions
from sarlang_sft.fingerprints import base_fingerprint
from sarlang_sft.prediction_files import answered_ids, keep_settings, lock_predictions
from sarlang_sft.records import file_hash, image_root_of
from sarlang_sft.scoring.predictions import CAPTION_TASK
from sarlang_sft.shards import data_folder
from sarlang_sft.signals import leave_at_once


@dataclass
class CaptionArguments:
    """What to caption with what."""

    data: str = field(metadata={"help": "Data folder, or the URL of one in shards (docs/scale.md)."})
    out: str = field(metadata={"help": "Folder for predictions.jsonl."})
    split: str = field(default="test", metadata={"help": "train, val or test."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder of the images; default: the data folder's."}
    )
    subsets: list[str] = field(default_factory=list, metadata={"help": "Only captions of these; default: all."})
    limit: int | None = field(default=None, metadata={"help": "Only the first N captions."})
    name: str = field(default="predictions", metadata={"help": "Name of the file, without .jsonl."})
    batch_size: int = field(default=32, metadata={"help": "Images captioned together."})


def main() -> None:
    choice, args, decoding = parse_arguments([ModelChoice, CaptionArguments, DecodingArguments], __doc__)
    if min(args.batch_size, 1 if args.limit is None else args.limit) < 1:
        raise InputError("--batch_size and --limit must be at least 1")
    leave_at_once(lambda: None)
    data, path = data_folder(args.data), Path(args.out) / f"{args.name}.jsonl"
    image_root = image_root_of(data, args.image_root)
    questions = read_questions(data, args.split, args.subsets, [CAPTION_TASK], args.limit)
    model = choice.load()
    check_captioner(model)
    settings = {name: vars(args)[name] for name in ("data", "image_root", "split")}
    settings |= {"model": choice.model, "weights": choice.weights, "resize_mode": model.preprocess.resize_mode}
    settings |= vars(decoding) | {
        "model_fingerprint": base_fingerprint(choice.model) if Path(choice.model).is_dir() else None,
        "weights_hash": file_hash(Path(choice.weights)) if choice.weights else None,
        "questions": file_hash(data / f"{args.split}.parquet"),
        "image_ops": model.image_ops,
    }
    lock = lock_predictions(path)
    keep_settings(path, settings)
    count, unusable = caption_to_file(model, questions, image_root, path, decoding, args.batch_size)
    lock.close()
    for why, number in Counter(unusable.values()).most_common():
        name = next(name for name in unusable if unusable[name] == why)
        print(f"{number} images or captions stay unanswered, such as {name}: {why}")
    answered = len(answered_ids(path, questions))
    print(f"{count} images captioned for {len(questions)} captions, {answered} of which have an answer: {path}")
    if not answered:
        raise InputError(f"{path}: none of the images could be captioned, see above")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
