r"""Find what texts say in large images, and measure how well: Rsu, Ras, Rda and Rmi of semantic localisation.

    python eval/semantic_localization.py --model runs/sarclip --annotations AIR-SLT/annotations/anno.json \
        --images AIR-SLT/imgs --out runs/sarclip/selo.json --heat_maps runs/sarclip/selo

The test set AIR-SLT, its windows (256, 512 and 768 pixels) and its figures are those of Yuan et al., arXiv 2209.06515.
Windows that overlap by half in both directions, which are twice as many:

    python eval/semantic_localization.py --model runs/sarclip --annotations AIR-SLT/annotations/anno.json \
        --images AIR-SLT/imgs --out runs/sarclip/selo_dense.json --step 0.5
"""

from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.contrastive.heat_maps import WindowArguments
from sarlang_sft.contrastive.heat_pictures import heat_picture
from sarlang_sft.contrastive.model_choice import ModelChoice
from sarlang_sft.contrastive.results import show_figures, write_figures
from sarlang_sft.contrastive.semantic_localization import (
    localise,
    localization_figures,
    localization_row,
    read_annotations,
    show_left_out,
    similarity_to,
)
from sarlang_sft.errors import InputError, exit_on_bad_input
from sarlang_sft.imagery import split_scale
from sarlang_sft.whole_output import check_file


@dataclass
class LocalizationArguments:
    """What to find where."""

    annotations: str = field(metadata={"help": "JSON list of queries: jpg_name, caption and points (polygons)."})
    images: str = field(metadata={"help": "Folder of the images."})
    out: str = field(metadata={"help": "The JSON file to write the figures to."})
    heat_maps: str | None = field(
        default=None, metadata={"help": "Also write a picture of every query to this folder."}
    )
    batch_size: int = field(default=64, metadata={"help": "Windows that are encoded together."})


def main() -> None:
    choice, args, windows = parse_arguments([ModelChoice, LocalizationArguments, WindowArguments], __doc__)
    if args.batch_size < 1:
        raise InputError("--batch_size must be at least 1")
    check_file(Path(args.out))
    annotations = read_annotations(Path(args.annotations), Path(args.images))
    model = choice.load()
    similarity = similarity_to(model, [query.caption for query in annotations.queries])
    rows, unreadable, (scale, _) = [], {}, split_scale(model.image_ops)
    for found in localise(annotations, similarity, windows, args.batch_size, unreadable, scale):
        rows.append(localization_row(found))
        if args.heat_maps:
            heat_picture(found, Path(args.heat_maps))
    print(show_left_out(annotations))
    more = {
        "windows": vars(windows),
        "image_ops": model.image_ops,
        "left_out": annotations.left_out,
        "ignored_keys": annotations.ignored_keys,
        "queries": rows,
    }
    content = write_figures(
        Path(args.out),
        "semantic_localization",
        windows.describe(),
        choice.name,
        len(rows),
        unreadable,
        localization_figures(rows, annotations),
        more,
    )
    print(show_figures(content))
    if args.heat_maps:
        print(f"Heat maps: {args.heat_maps}")
    print(f"Figures: {args.out}")


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
