"""Questions answered per second: one by one, batched, with a shared trunk.

    python benchmarks/generation.py                           # a small model on a CPU
    python benchmarks/generation.py --shape qwen2_5_vl_7b --images 8 --out FILE

The model has random weights and never stops by itself, so every answer is cut at the sample's mean answer length. The
same greedy answers are asserted for all three ways, in float32.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.imagery import load_picture
from sarlang_sft.inference import Asked, TunedModel, answer_each
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.shared_trunk import answer_together


def ask(tuned: TunedModel, way: str, images: list[list[Asked]], new_tokens: int, batch: int) -> list[str]:
    """The answers to all questions of all images."""
    asked = [item for image in images for item in image]
    if way == "one_by_one":
        batches, answer = [[item] for item in asked], answer_each
    elif way == "batched":
        batches, answer = [asked[start : start + batch] for start in range(0, len(asked), batch)], answer_each
    else:
        per_batch = max(1, batch // len(images[0]))
        groups = [images[start : start + per_batch] for start in range(0, len(images), per_batch)]
        batches, answer = [[item for image in group for item in image] for group in groups], answer_together
    return [text for one in batches for text, _ in answer(tuned, one, new_tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=setting.SHAPES, default="qwen_cpu", help="model, with random weights")
    parser.add_argument("--turns", type=int, default=9, help="questions per image")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--batch", type=int, default=9, help="questions answered together")
    parser.add_argument("--real_processor", type=Path, help="folder of Qwen2.5-VL's own tokenizer, for its counts")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    on_cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        data = setting.make_data(Path(scratch), max(60, 3 * options.images))
        groups = setting.draw_images(data, options.turns, options.images)
        processor = setting.make_processor(options.shape, setting.texts_of(data), options.real_processor)
        table = read_mixture([DataSource(str(data))], "train")
        images = []
        for group in groups:
            rows = [table.slice(int(number), 1).to_pylist()[0] for number in group]
            picture = load_picture(Path(rows[0]["image_root"]) / rows[0]["images"][0], [])
            images.append([Asked([picture], row["turns"]) for row in rows])
    lengths = [
        len(processor.tokenizer(turn["answer"])["input_ids"]) + 1
        for image in images
        for item in image
        for turn in item.turns
    ]
    new_tokens = round(sum(lengths) / len(lengths))
    dtype = torch.bfloat16 if on_cuda else torch.float32
    model, backbone = setting.make_model(options.shape, processor, "sdpa", dtype)
    tuned = TunedModel(model.eval(), processor, backbone, [])
    runs: list[dict[str, Any]] = []
    answers: dict[str, list[str]] = {}
    for way in ("one_by_one", "batched", "shared_trunk"):
        ask(tuned, way, images[:1], new_tokens, options.batch)
        start = time.perf_counter()
        answers[way] = ask(tuned, way, images, new_tokens, options.batch)
        if on_cuda:
            torch.cuda.synchronize()
        runs.append(
            {
                "name": way,
                "shape": options.shape,
                "turns_per_image": options.turns,
                "new_tokens": new_tokens,
                "questions_per_s": len(answers[way]) / (time.perf_counter() - start),
                "same_answers": sum(a == b for a, b in zip(answers[way], answers["one_by_one"], strict=True))
                / len(answers[way]),
            }
        )
        one = runs[-1]
        ratio = one["questions_per_s"] / runs[0]["questions_per_s"]
        speed, same = one["questions_per_s"], one["same_answers"]
        print(f"{way:14} {speed:8.2f} questions/s  {ratio:5.2f}x  same answers {same:.0%}")
    if not on_cuda and any(one["same_answers"] < 1 for one in runs):
        raise SystemExit("the answers differ")
    tokenizer = "Qwen2.5-VL's, cut to the words used" if options.real_processor else "trained on the sample"
    result = {"hardware": setting.hardware(), "versions": setting.versions(), "tokenizer": tokenizer, "runs": runs}
    setting.write_result(options.out, result)


if __name__ == "__main__":
    main()
