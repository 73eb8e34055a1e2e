"""Captions of CoCa: beam search against enumeration, greedy decoding, a taught model, the predictions file."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from sarlang_sft.contrastive.beam_search import DecodingArguments, NextLogits, beam_search
from sarlang_sft.contrastive.captioning import caption_pictures, decode_text
from sarlang_sft.contrastive.models import CONFIG, ContrastiveModel, load_model, save_model
from sarlang_sft.errors import InputError
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder

START, END, VOCABULARY, LONGEST = 0, 3, 4, 5
CAPTIONS = {
    "black.png": "12 ships at the left.",
    "white.png": "two bridges and a road",
    "stripes.png": "forest (no target)",
}
GREEDY = DecodingArguments(beams=1)


def scorer(seed: int, items: int) -> NextLogits:
    """Logits that depend on all of the text and on the item, so that no shorter memory finds the best."""
    tables = torch.randn((items, LONGEST, VOCABULARY, VOCABULARY), generator=torch.Generator().manual_seed(seed)) * 2

    def next_logits(tokens: torch.Tensor) -> torch.Tensor:
        item = torch.arange(items).repeat_interleave(len(tokens) // items)
        sums = torch.zeros((len(tokens), VOCABULARY))
        for place in range(tokens.shape[1]):
            sums += tables[item, tokens.shape[1] - 1 - place, tokens[:, place]]
        return sums

    return next_logits


def enumerate_best(
    next_logits: NextLogits, item: int, items: int, penalty: float, shortest: int, logits: bool = False
) -> tuple[list[int], float]:
    """The best text of all that there are, and its score."""
    found = {}
    for count in range(LONGEST):
        for words in itertools.product([token for token in range(VOCABULARY) if token != END], repeat=count):
            ended = count + 2 <= LONGEST and count + 1 >= shortest
            if not ended and count + 1 < LONGEST:
                continue
            whole = [START, *words, *([END] * (count + 2 <= LONGEST))]
            total = 0.0
            for length in range(1, len(whole)):
                gains = next_logits(torch.tensor([whole[:length]] * items))[item]
                if not logits and length < shortest:
                    gains[END] = -torch.inf  # what is not allowed takes no probability below
                gains = gains if logits else gains.log_softmax(-1)
                total += gains[whole[length]].item()
            found[words] = total / len(whole) ** penalty
    best = max(found, key=found.get)
    return list(best), found[best]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("penalty", "logits"), [(1.0, False), (0.0, False), (2.0, False), (1.0, True)])
def test_a_search_wide_enough_finds_the_best_of_all_texts(seed: int, penalty: float, logits: bool) -> None:
    decoding = DecodingArguments(beams=128, groups=1, min_length=1, length_penalty=penalty, sum_logits=logits)
    next_logits = scorer(seed, 2)
    found = beam_search(next_logits, 2, decoding, START, END, LONGEST)
    for item, text in enumerate(found):
        words, score = enumerate_best(next_logits, item, 2, penalty, 1, logits)
        assert text.tokens == words
        assert text.score == pytest.approx(score, abs=1e-5)
        assert text.total == pytest.approx(score * (len(words) + 1 + text.ended) ** penalty, abs=1e-4)
        assert text.ended == (len(words) + 2 <= LONGEST)


def test_texts_end_no_sooner_than_they_may() -> None:
    def always_ends(tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 1.0, 0.5, 9.0]).expand(len(tokens), -1).clone()

    for shortest in (1, 2, 4):
        for beams, groups in ((1, 1), (2, 1), (6, 3)):
            decoding = DecodingArguments(beams=beams, groups=groups, min_length=shortest)
            (found,) = beam_search(always_ends, 1, decoding, START, END, LONGEST)
            assert found.tokens == [1] * (shortest - 1)
            assert found.ended


def test_a_text_that_never_ends_is_cut_off() -> None:
    def never_ends(tokens: torch.Tensor) -> torch.Tensor:
        return torch.tensor([0.0, 3.0, 2.0, -50.0]).expand(len(tokens), -1).clone()

    (found,) = beam_search(never_ends, 1, DecodingArguments(min_length=1), START, END, LONGEST)
    assert (found.tokens, found.ended) == ([1] * (LONGEST - 1), False)


@pytest.mark.parametrize("seed", range(6))
def test_groups_without_a_penalty_find_what_one_of_them_finds(seed: int) -> None:
    next_logits = scorer(seed, 3)
    one = beam_search(next_logits, 3, DecodingArguments(beams=2, groups=1, min_length=2), START, END, LONGEST)
    all_three = DecodingArguments(beams=6, groups=3, diversity=1e-30, min_length=2)
    assert all_three.layout == (3, 2)
    assert beam_search(next_logits, 3, all_three, START, END, LONGEST) == one
    assert DecodingArguments(beams=6, groups=3).layout == (1, 2)


def test_a_penalty_drives_groups_apart() -> None:
    rows: list[torch.Tensor] = []

    def watched(tokens: torch.Tensor) -> torch.Tensor:
        rows.append(tokens)
        return torch.tensor([0.0, 1.0, 0.9, -50.0]).expand(len(tokens), -1).clone()

    beam_search(watched, 1, DecodingArguments(beams=2, groups=2, diversity=0.5, min_length=1), START, END, LONGEST)
    assert rows[1][:, 1].tolist() == [1, 2]
    rows.clear()
    beam_search(watched, 1, DecodingArguments(beams=2, groups=2, diversity=1e-30, min_length=1), START, END, LONGEST)
    assert rows[1][:, 1].tolist() == [1, 1]


def test_bad_decoding_is_refused() -> None:
    for bad in ({"beams": 0}, {"beams": 5}, {"groups": 0}, {"diversity": -1.0}, {"min_length": 0}, {"max_length": 5}):
        with pytest.raises(InputError):
            DecodingArguments(**bad)
    assert DecodingArguments(beams=1).layout == (1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures that differ, one caption each."""
    root = tmp_path_factory.mktemp("captions")
    stripes = np.tile(np.repeat(np.array([255, 0], np.uint8), 4), (64, 8))
    for name, pixels in zip(CAPTIONS, (np.zeros_like(stripes), np.full_like(stripes, 255), stripes), strict=True):
        Image.fromarray(pixels).save(root / name)
    return root


@pytest.fixture(scope="module")
def untaught() -> ContrastiveModel:
    torch.manual_seed(0)
    return load_model("sar-coca-tiny")


@pytest.fixture(scope="module")
def taught(folder: Path) -> ContrastiveModel:
    """A tiny CoCa that knows the three captions by heart."""
    torch.manual_seed(0)
    model = load_model("sar-coca-tiny")
    pictures = torch.stack([model.read(folder / name) for name in CAPTIONS])
    tokens = model.tokenizer(list(CAPTIONS.values()))[:, :12]
    most = {model.model.text.token_embedding.weight, model.model.text_decoder.text_projection}
    small = [weight for weight in model.model.parameters() if weight not in most]
    for weight in most:  # they hold nearly all weights, and do as they are
        weight.requires_grad_(False)
    model.model.text_decoder.text_projection.mul_(4)  # sure of itself after few steps
    optimiser = torch.optim.AdamW(small, lr=1e-3, fused=True)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=0)
    for _ in range(100):
        out = model.model(pictures, tokens)
        loss = loss_of(out["logits"].flatten(0, 1), out["labels"].flatten())
        if loss < 0.005:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.005
    return model


def pictures_of(model: ContrastiveModel, folder: Path) -> torch.Tensor:
    return torch.stack([model.read(folder / name) for name in CAPTIONS])


@pytest.mark.parametrize("decoding", [DecodingArguments(), GREEDY, DecodingArguments(diversity=0.5)])
def test_a_taught_model_says_what_it_was_taught(
    taught: ContrastiveModel, folder: Path, decoding: DecodingArguments
) -> None:
    captions = caption_pictures(taught, pictures_of(taught, folder), decoding)
    assert [caption.text for caption in captions] == list(CAPTIONS.values())
    assert all((caption.logprob is None) == (decoding.diversity > 0) for caption in captions)
    assert all(caption.logprob is None or -1 < caption.logprob < 0 for caption in captions)


def test_greedy_is_the_likeliest_token_each_time(untaught: ContrastiveModel, folder: Path) -> None:
    pictures = pictures_of(untaught, folder)
    decoding = DecodingArguments(beams=1, min_length=4, max_length=12)
    captions = caption_pictures(untaught, pictures, decoding)
    start, end = untaught.tokenizer.sot_token_id, untaught.tokenizer.eot_token_id
    for picture, caption in zip(pictures, captions, strict=True):
        text, logprob = [start], 0.0
        with torch.inference_mode():
            while len(text) < 12 and text[-1] != end:
                out = untaught.model(picture[None], torch.tensor([text]), output_labels=False)
                gains = out["logits"][0, -1].log_softmax(-1)
                if len(text) < 4:
                    gains[end] = -torch.inf
                text.append(int(gains.argmax()))
                logprob += gains.max().item()
        assert caption.text == decode_text(untaught.tokenizer, text)
        assert caption.logprob == pytest.approx(logprob, abs=1e-3)


def test_captions_do_not_depend_on_the_batch(untaught: ContrastiveModel, folder: Path) -> None:
    pictures = pictures_of(untaught, folder)
    decoding = DecodingArguments(max_length=9)
    together = caption_pictures(untaught, pictures, decoding)
    alone = [caption_pictures(untaught, picture[None], decoding)[0] for picture in pictures]
    assert [one.text for one in together] == [one.text for one in alone]


def test_models_that_write_none_are_refused(untaught: ContrastiveModel, folder: Path) -> None:
    with pytest.raises(InputError, match="writes no captions"):
        caption_pictures(load_model("sar-vit-tiny"), torch.zeros(1, 3, 64, 64))
    with pytest.raises(InputError, match="context of 48 tokens"):
        caption_pictures(untaught, pictures_of(untaught, folder), DecodingArguments(min_length=48))


@pytest.mark.parametrize(
    "text",
    [
        "12 ships, 0.5 m away: two-lane road (3.5 km).",
        "the ship's bow isn't near 2000 tanks; 35% of it!",
        "a harbor? no, 3 cars at 12:30.",
    ],
)
def test_numbers_and_punctuation_come_back_whole(untaught: ContrastiveModel, text: str) -> None:
    tokens = untaught.tokenizer([text])[0].tolist()
    assert decode_text(untaught.tokenizer, tokens[: tokens.index(untaught.tokenizer.eot_token_id) + 1]) == text


def test_a_coca_comes_back_as_it_was_saved(taught: ContrastiveModel, folder: Path, tmp_path: Path) -> None:
    for number, model in enumerate((taught, lambda: load_model(str(tmp_path / "0")))):
        save_model(model() if callable(model) else model, tmp_path / str(number))
    configs = [json.loads((tmp_path / str(n) / CONFIG).read_text(encoding="utf-8"))["model_cfg"] for n in (0, 1)]
    assert configs[0] == configs[1] and configs[0]["custom_text"] and "multimodal_cfg" in configs[0]
    again = load_model(str(tmp_path / "1"))
    assert caption_pictures(again, pictures_of(again, folder), GREEDY)[0].text == CAPTIONS["black.png"]
    theirs = open_clip.create_model(f"local-dir:{tmp_path / '1'}")
    assert torch.equal(theirs.text_decoder.text_projection, taught.model.text_decoder.text_projection)


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """A data folder of the pictures: two references each, a question, and an image that cannot be read."""
    (folder / "broken.png").write_bytes(b"no picture")
    records = [
        Record(
            images=[name],
            width=64,
            height=64,
            source="made",
            split="test",
            dialogues=[
                Dialogue(f"{name}-{n}", f"caption_{style}", "description", [Turn("Describe.", label)], style)
                for n, (style, label) in enumerate((("concise", caption), ("complex", f"{caption} {caption}")))
            ]
            + [Dialogue(f"{name}-q", "vqa1", "identification", [Turn("Is there a ship?", "yes")])],
        )
        for name, caption in {**CAPTIONS, "broken.png": "nobody sees this"}.items()
    ]
    write_data_folder(tmp_path / "data", to_table(records), [], folder, {})
    return tmp_path / "data"


def test_predictions_are_what_score_caption_takes(
    taught: ContrastiveModel, data: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    save_model(taught, tmp_path / "model")
    words = ["--model", tmp_path / "model", "--data", data, "--out", tmp_path / "eval", "--device", "cpu"]
    words += ["--batch_size", 2, "--max_length", 20]
    output = run("eval/caption.py", *words)
    assert "3 images captioned for 8 captions, 6 of which have an answer" in output
    assert "such as broken.png: cannot be read" in output
    predictions = tmp_path / "eval" / "predictions.jsonl"
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["predict"]) for row in rows] == [
        (f"{name}-{number}#0", caption) for name, caption in CAPTIONS.items() for number in (0, 1)
    ]
    scoring = ["--predictions", predictions, "--data", data, "--protocol", "standard", "--metrics", "bleu"]
    run("eval/score_caption.py", *scoring, "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert (scores["n"], scores["answered"]) == (8, 6)
    assert scores["problems"]["has no prediction"]["count"] == 2
    concise = [row for row in rows if row["subset"] == "caption_concise"]
    assert [row["label"] for row in concise] == [row["predict"] for row in concise]
    assert scores["statistics"]["different"] == 3
    assert scores["by_style"]["concise"]["value"] == pytest.approx(7.5)  # CIDEr 10 of three of four

    lines = predictions.read_bytes().splitlines(keepends=True)
    predictions.write_bytes(b"".join(lines[:3]))  # as if it was stopped
    assert "2 images captioned" in run("eval/caption.py", *words)
    assert predictions.read_bytes() == b"".join(lines)
    assert "was begun with beams 6, not 1" in run("eval/caption.py", *words, "--beams", 1, code=2)
    assert "writes no captions" in run(
        "eval/caption.py", "--model", "sar-vit-tiny", "--data", data, "--out", tmp_path / "other", code=2
    )
