"""What SARLANG-1M publishes of its size (arXiv 2504.03254 and its repository), beside what a conversion found."""

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sarlang_sft.errors import InputError
from sarlang_sft.records import flatten_dialogues
from sarlang_sft.sarlang import SIMULATED


class Published(NamedTuple):
    """A published count: of dialogues, images, or images with captions, whose columns have the values in `where`.

    `by_rule`: the release does not mark what is counted, so that our rules decide (its words or the image's name).
    """

    name: str
    number: int
    where: dict[str, str]
    of: str = "dialogues"
    by_rule: bool = False


PUBLISHED = [
    Published("texts", 1_126_277, {}),
    Published("captions, train", 31_968, {"task": "description", "split": "train"}),
    Published("  concise", 17_487, {"subset": "caption_concise", "split": "train"}, by_rule=True),
    Published("  complex", 14_481, {"subset": "caption_complex", "split": "train"}, by_rule=True),
    Published("captions, test, concise", 7_492, {"subset": "caption_concise", "split": "test"}),
    Published("captions, test, complex", 6_190, {"subset": "caption_complex", "split": "test"}),
    Published("questions, train", 955_372, {"text": "question", "split": "train"}),
    Published("questions, test", 125_255, {"text": "question", "split": "test"}),
    Published("  SARVQA1 (inferred)", 995_599, {"subset": "vqa1"}, by_rule=True),
    Published("  SARVQA2 (inferred)", 85_028, {"subset": "vqa2"}, by_rule=True),
    Published("  identification", 484_620, {"task": "identification"}, by_rule=True),
    Published("  classification", 132_525, {"task": "classification"}, by_rule=True),
    Published("  counting", 117_382, {"task": "counting"}, by_rule=True),
    Published("  referring", 221_450, {"task": "referring"}, by_rule=True),
    Published("  positioning", 106_171, {"task": "positioning"}, by_rule=True),
    Published("  others", 18_479, {"task": "others"}, by_rule=True),
    Published("    shape", 2_391, {"task": "others", "style": "shape"}, by_rule=True),
    Published("    direction", 1_103, {"task": "others", "style": "direction"}, by_rule=True),
    Published("    land cover", 80, {"task": "others", "style": "land_cover"}, by_rule=True),
    Published("    pattern", 857, {"task": "others", "style": "pattern"}, by_rule=True),
    Published("    reasoning", 14_048, {"task": "others", "style": "reasoning"}, by_rule=True),
    Published("images", 118_331, {}, "images"),
    Published("  SpaceNet6", 3_311, {"source": "SpaceNet6"}, "images", by_rule=True),
    Published("  DFC2023", 5_222, {"source": "DFC2023"}, "images", by_rule=True),
    Published("  OpenEarthMap-SAR", 4_813, {"source": "OpenEarthMap-SAR"}, "images", by_rule=True),
    Published("  SARDet-100K", 104_985, {"source": "SARDet-100K"}, "images", by_rule=True),
    Published("images with captions, train", 9_341, {"split": "train"}, "captioned"),
    Published("images with captions, test", 4_005, {"split": "test"}, "captioned"),
]


class Count(NamedTuple):
    """A published count and ours."""

    published: Published
    here: int

    @property
    def difference(self) -> int:
        return self.here - self.published.number


def count_beside_published(records: pa.Table) -> list[Count]:
    """Every row of `PUBLISHED` counted in a table of `records.SCHEMA`; `val` counts as `train`, which it came from."""
    split = pc.if_else(pc.equal(records["split"], "val"), "train", records["split"])
    images = pa.table({"image": pc.list_element(records["images"], 0), "source": records["source"], "split": split})
    flat = flatten_dialogues(records, [])
    captioned = images.take(pc.unique(flat["record"].filter(pc.equal(flat["task"], "description"))))
    text = pc.if_else(pc.equal(flat["task"], "description"), "caption", "question")
    dialogues = flat.append_column("text", text).append_column("split", split.take(flat["record"]))
    groups = {
        "dialogues": _grouped(dialogues, ["split", "subset", "task", "style", "text"]),
        "images": _grouped(_distinct(images, ["image", "source"]), ["source"]),
        "captioned": _grouped(_distinct(captioned, ["image", "split"]), ["split"]),
    }
    return [Count(published, _sum(groups[published.of], published.where)) for published in PUBLISHED]


def _sum(groups: list[dict[str, object]], where: dict[str, str]) -> int:
    return sum(group["count_all"] for group in groups if where.items() <= group.items())


def _distinct(table: pa.Table, columns: list[str]) -> pa.Table:
    return table.group_by(columns).aggregate([])


def _grouped(table: pa.Table, columns: list[str]) -> list[dict[str, object]]:
    return table.group_by(columns).aggregate([([], "count_all")]).to_pylist()


def compare_with_published(records: pa.Table, strict: bool) -> None:
    """Print what was found beside the published counts, so that one sees whether a download is whole.

    Raises:
        InputError: `strict`, and a count differs that the release itself marks.
    """
    counts = count_beside_published(records)
    if not strict and pc.all(pc.equal(records["source"], SIMULATED)).as_py():
        print("Simulated scenes: there is nothing published to compare them with.")
        return
    print(f"  {'':30} {'published':>10} {'here':>10} {'difference':>11}")
    for count in counts:
        difference = f"{count.difference:+,}" if count.difference else "0"
        rule = "  by rule" if count.published.by_rule else ""
        print(f"  {count.published.name:30} {count.published.number:>10,} {count.here:>10,} {difference:>11}{rule}")
    wrong = [count for count in counts if count.difference and not count.published.by_rule]
    if strict and wrong:
        listed = "; ".join(f"{count.published.name} {count.difference:+,}" for count in wrong)
        raise InputError(f"--strict: differs from the published counts: {listed}; nothing was written")
