"""SARLANG-1M for lmms-eval: a data folder's questions asked as they are stored, scored as eval/score_*.py score them.

The environment names the data folder (`SARLANG_DATA`) and, if its manifest's is not here, the folder of its images
(`SARLANG_IMAGES`); see docs/harnesses.md.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image

from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_picture
from sarlang_sft.records import image_root_of
from sarlang_sft.scoring.captions import score_captions
from sarlang_sft.scoring.predictions import Row
from sarlang_sft.scoring.vqa import score_vqa

DATA = Path(os.environ.get("SARLANG_DATA", "data/sarlang"))
DATA_FILES = {"test": str(DATA / "test.parquet")}
OF_RECORD = ("images", "source", "resolution_m")

Doc = dict[str, Any]
"""The columns of a `Row` without its prediction."""


def _questions(records: dict[str, list[Any]], subset: str) -> dict[str, list[Any]]:
    docs = []
    for number, dialogues in enumerate(records["dialogues"]):
        for dialogue in dialogues:
            if dialogue["subset"] != subset:
                continue
            if len(dialogue["turns"]) != 1:
                raise ValueError(f"{DATA}: {dialogue['id']} has several turns, which these tasks cannot ask")
            docs.append(
                {
                    "id": f"{dialogue['id']}#0",
                    **{name: records[name][number] for name in OF_RECORD},
                    **{name: dialogue[name] for name in ("subset", "task", "style")},
                    "question": dialogue["turns"][0]["question"],
                    "label": dialogue["turns"][0]["answer"],
                }
            )
    names = (*OF_RECORD, "id", "subset", "task", "style", "question", "label")
    return {name: [doc[name] for doc in docs] for name in names}


def questions_of(records: Dataset, subset: str) -> Dataset:
    """The questions of one subset in stored order, each a `Doc`."""
    take = partial(_questions, subset=subset)
    return records.map(take, batched=True, remove_columns=records.column_names, load_from_cache_file=False)


vqa1 = partial(questions_of, subset="vqa1")
vqa2 = partial(questions_of, subset="vqa2")
caption_concise = partial(questions_of, subset="caption_concise")
caption_complex = partial(questions_of, subset="caption_complex")


def pictures(doc: Doc) -> list[Image.Image]:
    """The images as 8-bit RGB, read as in training."""
    root = image_root_of(DATA, os.environ.get("SARLANG_IMAGES"))
    return [load_picture(path_inside(root, image), []) for image in doc["images"]]


def question(doc: Doc, lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """The question as it is stored, nothing added."""
    return doc["question"]


def answered_question(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """One answer, to be counted in all and among those of its application."""
    answered = {**doc, "predict": results[0]}
    return {"accuracy": answered, f"accuracy_{doc['task']}": answered}


def answered_caption(doc: Doc, results: list[str]) -> dict[str, Doc]:
    """One caption, for every caption metric."""
    return {metric: {**doc, "predict": results[0]} for metric in ("bleu_4", "rouge_l", "cider")}


def _rows(answered: list[Doc]) -> list[Row]:
    return [Row(**{**one, "images": tuple(one["images"])}) for one in answered]


def accuracy(answered: list[Doc]) -> float:
    """Share of right answers by the protocol `exact`, 0..1."""
    return score_vqa(_rows(answered), "exact")["overall"]["value"]


def _caption_metric(answered: list[Doc], name: str) -> float:
    return score_captions(_rows(answered), "official")["metrics"][name]


bleu_4 = partial(_caption_metric, name="bleu_4")
rouge_l = partial(_caption_metric, name="rouge_l")
cider = partial(_caption_metric, name="cider")
