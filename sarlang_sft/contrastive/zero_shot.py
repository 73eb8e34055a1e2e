"""Zero-shot recognition: images against the sentences that name their classes."""

from pathlib import Path

import torch
from open_clip import build_zero_shot_classifier

from sarlang_sft.contrastive.class_folder import ClassFolder
from sarlang_sft.contrastive.features import encode_images
from sarlang_sft.contrastive.models import ContrastiveModel
from sarlang_sft.contrastive.recognition import Scored
from sarlang_sft.errors import InputError, nearest
from sarlang_sft.yaml_files import read_mapping

TEMPLATES = Path(__file__).with_name("templates.yaml")
OWN_SET = "templates"  # the key in a user's file


def read_templates(name: str) -> list[str]:
    """Sentences with `{}` in place of the class.

    Args:
        name: A set of `templates.yaml` (sar, optical, sar_opt), or a YAML file with a list under `templates:`.

    Raises:
        InputError: There is no such set or file, or it holds no list of sentences with one `{}` each.
    """
    sets = read_mapping(TEMPLATES, TEMPLATES.read_text(encoding="utf-8"))
    if name in sets:
        return sets[name]
    file = Path(name)
    if not file.is_file():
        way_out = nearest(name, sets, f"choose among {', '.join(sets)}, or name a YAML file")
        raise InputError(f"--templates {name}: no set of that name, and no file; {way_out}")
    try:
        found = read_mapping(file, file.read_text(encoding="utf-8")).get(OWN_SET)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--templates {file}: cannot be read ({error})") from error
    if not isinstance(found, list) or not found:
        raise InputError(
            f"--templates {file}: must hold a list of sentences under `{OWN_SET}:`, with {{}} for the class"
        )
    for number, text in enumerate(found, 1):
        if not isinstance(text, str) or text.count("{}") != 1 or {"{", "}"} & {*text.replace("{}", "")}:
            raise InputError(
                f"--templates {file}: sentence {number}, {text!r}, must be a text with {{}} once and no other brace; "
                "quote it"
            )
    return found


def class_features(model: ContrastiveModel, spoken: list[str], templates: list[str]) -> torch.Tensor:
    """(C, D) float32 on the CPU, of length 1: of every class the mean over templates of unit text features.

    Source: A. Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021,
    section 3.1.4.
    """
    found = build_zero_shot_classifier(model.model, model.tokenizer, spoken, templates, device=model.device)
    return found.T.float().cpu()


def zero_shot(model: ContrastiveModel, folder: ClassFolder, templates: list[str], batch_size: int = 64) -> Scored:
    """Cosine similarities between the images that can be read and the classes."""
    classes = class_features(model, folder.spoken, templates)
    images = encode_images(model, folder.paths, batch_size, folder.root.name)
    return Scored((images.features @ classes.T).numpy(), folder.labels[images.rows], images.unreadable)
