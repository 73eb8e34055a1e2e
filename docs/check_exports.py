"""Read an export with the project that it is for, and compare what that sees with what was written.

    python docs/check_exports.py swift exports/sarlang_swift [--processor MODEL]
    python docs/check_exports.py llamafactory exports/sarlang_llamafactory [--processor MODEL]
    python docs/check_exports.py vlmevalkit exports/sarlang_vlmevalkit

Run it with the Python of an environment that has that project (nothing of this repository is imported).
Rows, roles, texts, image paths and boxes must be equal. With --processor, a folder with the processor and config.json
of Qwen2.5-VL, every row is also tokenised as for training: it must hold image tokens if and only if it has images,
every answer must be found in its labels, and no tag of the format may be left. (ms-swift loads it with
trust_remote_code: name a folder that you trust.) VLMEvalKit also asks every question, of a stand-in that answers with
the question, and its result must hold every answer beside its id.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = -100
TAGS = ("<image>", "<bbox>", "<ref-object>")


def written_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list, or of JSON lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]


def check_tokens(row: dict[str, Any], encoded: dict[str, Any], processor: Any) -> None:
    """Compare one tokenised row with what was written; `encoded` holds `input_ids` and `labels`."""
    tokenizer = processor.tokenizer
    text = tokenizer.decode(encoded["input_ids"])
    learnt = tokenizer.decode([token for token in encoded["labels"] if token != IGNORED])
    if (processor.image_token in text) != bool(row["images"]):
        raise SystemExit(f"image tokens and images differ: {row}")
    if any(tag in text for tag in TAGS):
        raise SystemExit(f"a tag is left in {text!r}")
    for message in row["messages"]:
        if message["role"] == "assistant" and "<bbox>" not in message["content"] and message["content"] not in learnt:
            raise SystemExit(f"{message['content']!r} is not among the labels {learnt!r}")


def read_swift(folder: Path, processor: str | None) -> Iterator[tuple[str, int]]:
    """Every file through `swift.dataset.load_dataset`, and `Template.encode`; yields its name and rows."""
    from swift.dataset import load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    template = None
    if processor:
        template = get_template(get_processor(processor), template_type="qwen2_5_vl")
        template.set_mode("train")
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")]):
        if path.name == "export.json":
            continue
        rows = written_rows(path)
        seen, _ = load_dataset([str(path)], split_dataset_ratio=0.0, strict=True, load_from_cache_file=False)
        if len(seen) != len(rows):
            raise SystemExit(f"{path}: {len(rows)} rows written, {len(seen)} read")
        for row, read in zip(rows, seen, strict=True):
            images = [image["path"] for image in read["images"] or []]
            objects = read.get("objects")
            if (read["messages"], images, objects) != (row["messages"], row["images"], row.get("objects")):
                raise SystemExit(f"{path}: written {row}, read {read}")
            if template:
                check_tokens(row, template.encode(read), template.processor)
        yield path.name, len(rows)


def read_llamafactory(folder: Path, processor: str | None) -> Iterator[tuple[str, int]]:
    """Every entry of `dataset_info.json` through LLaMA-Factory's loader, and its supervised processor."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.loader import _get_merged_dataset, get_dataset
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    for name, entry in info.items():
        rows = written_rows(folder / entry["file_name"])
        options = {"dataset_dir": str(folder), "dataset": name, "stage": "sft", "do_train": True, "use_cpu": True}
        options |= {"model_name_or_path": processor or "unused", "template": "qwen2_vl", "cutoff_len": 8192}
        options |= {"output_dir": str(folder / "unused"), "overwrite_cache": True, "report_to": "none", "bf16": False}
        model_args, data_args, training_args, _, _ = get_train_args(options)
        seen = _get_merged_dataset([name], model_args, data_args, training_args, stage="sft")
        if len(seen) != len(rows):
            raise SystemExit(f"{name}: {len(rows)} rows written, {len(seen)} read")
        for row, read in zip(rows, seen, strict=True):
            if (read["_prompt"] + read["_response"], read["_images"] or []) != (row["messages"], row["images"]):
                raise SystemExit(f"{name}: written {row}, read {read}")
        if processor:
            loaded = load_tokenizer(model_args)
            template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
            encoded = get_dataset(template, model_args, data_args, training_args, stage="sft", **loaded)
            for row, one in zip(rows, encoded["train_dataset"], strict=True):
                check_tokens(row, one, loaded["processor"])
        yield name, len(rows)


class Echo:
    """Answers every question with itself; what VLMEvalKit needs of a model."""

    is_api = False

    def set_dump_image(self, dump_image: Any) -> None:
        """Not needed: images are named by their paths."""

    def generate(self, message: list[dict[str, str]], dataset: str) -> str:
        """The question, after looking for its images."""
        *images, question = message
        if not images or not all(part["type"] == "image" and Path(part["value"]).is_file() for part in images):
            raise SystemExit(f"{dataset}: no images in {message}")
        return question["value"]


def read_vlmevalkit(folder: Path, processor: str | None) -> Iterator[tuple[str, int]]:
    """Every table through `build_dataset`, and `infer_data_job` on it."""
    os.environ |= {"LMUData": str(folder.resolve()), "PRED_FORMAT": "tsv"}
    from vlmeval.dataset import build_dataset
    from vlmeval.inference import infer_data_job

    for path in sorted(folder.glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        data = build_dataset(path.stem)
        with tempfile.TemporaryDirectory() as work:
            infer_data_job(Echo(), work, "echo", data)
            with open(Path(work) / f"echo_{path.stem}.tsv", encoding="utf-8", newline="") as file:
                answered = list(csv.DictReader(file, delimiter="\t"))
        if len(answered) != len(rows):
            raise SystemExit(f"{path}: {len(rows)} rows written, {len(answered)} answered")
        for row, answer in zip(rows, answered, strict=True):
            if {**row, "prediction": row["question"]} != answer:
                raise SystemExit(f"{path}: written {row}, answered {answer}")
        yield path.name, len(rows)


READERS = {
    "swift": ("ms-swift", read_swift),
    "llamafactory": ("llamafactory", read_llamafactory),
    "vlmevalkit": ("ms-vlmeval", read_vlmevalkit),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("export", type=Path, help="folder that data_prep/export.py wrote")
    parser.add_argument("--processor", help="folder of a Qwen2.5-VL; tokenises every row as well")
    args = parser.parse_args()
    package, read = READERS[args.reader]
    for name, rows in read(args.export, args.processor):
        print(f"{name}: {rows} rows as written")
    print(f"read with {package} {importlib.metadata.version(package)}")


if __name__ == "__main__":
    main()
