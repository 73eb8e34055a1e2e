"""Retrieval against a plain dense count, ties, what is left out, the picture, and the program from end to end."""

import csv
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import hypergeom
from torch.profiler import ProfilerActivity, profile

from sarlang_sft.contrastive.features import encode_images, encode_texts
from sarlang_sft.contrastive.gallery import retrieval_gallery, spread
from sarlang_sft.contrastive.models import load_model, save_model
from sarlang_sft.contrastive.pairs import Pairs, make_pairs, read_pairs
from sarlang_sft.contrastive.retrieval import (
    PROTOCOLS,
    TOP,
    Encoded,
    Lists,
    Ranks,
    all_positives_lists,
    chance,
    draw_pairs,
    hits,
    official_lists,
    rank,
    recalls,
    score_retrieval,
    show_retrieval,
    write_retrieval,
)
from sarlang_sft.errors import InputError
from sarlang_sft.scoring.intervals import fraction_with_interval, share_with_interval

SCRIPT = "eval/retrieval.py"


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    features = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features)


def random_pairs(images: int, texts: int, count: int, seed: int = 0) -> Pairs:
    """Pairs of which some are there twice, texts on several images, and every image and text at least once."""
    rng = np.random.default_rng(seed)
    image = np.concatenate([np.arange(images), rng.integers(0, images, count - images)])
    text = np.concatenate([rng.integers(0, texts, count - texts), np.arange(texts)])
    names = [Path(str(number)) for number in range(images)]
    return Pairs(names, [str(number) for number in range(texts)], image, text, [""] * images)


def encoded(pairs: Pairs, images: torch.Tensor, texts: torch.Tensor, rows: np.ndarray | None = None) -> Encoded:
    return Encoded(pairs, np.arange(len(pairs)) if rows is None else rows, images, texts, {}, 0)


def dense_recall(similarity: np.ndarray, true: np.ndarray, top: int) -> float:
    """Of the rows, how many have a true column among the first `top`; ties are in random order."""
    found = []
    for row, right in zip(similarity, true, strict=True):
        best = row[right].max()
        tied = np.abs(row - best) < 1e-6
        places = top - int((row > best + 1e-6).sum())
        if places <= 0:
            found.append(0.0)
        else:
            among, true_among = int(tied.sum()), int((tied & right).sum())
            found.append(1 - hypergeom.pmf(0, among, true_among, min(places, among)))
    return float(np.mean(found))


def dense_recalls(similarity: np.ndarray, true: np.ndarray) -> dict[str, float]:
    six = {f"I2T R@{top}": dense_recall(similarity, true, top) for top in TOP}
    six |= {f"T2I R@{top}": dense_recall(similarity.T, true.T, top) for top in TOP}
    return {"MeanRecall": float(np.mean(list(six.values()))), **six}


def values(figures: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures.items()}


@pytest.fixture
def features() -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    """Pairs with features of which some are equal, and texts near the images that they are true of."""
    pairs = random_pairs(40, 30, 90)
    images, texts = unit(40, 6, 1), unit(30, 6, 2)
    texts[pairs.text[:15]] += 1.5 * images[pairs.image[:15]]
    texts = torch.nn.functional.normalize(texts)
    images[7], images[8], texts[3], texts[4], texts[5] = images[2], images[2], texts[1], texts[1], texts[9]
    return pairs, images, texts


def test_both_protocols_are_what_a_dense_count_gives(features: tuple[Pairs, torch.Tensor, torch.Tensor]) -> None:
    pairs, images, texts = features
    similarity = (images.double() @ texts.double().T).numpy()
    official = score_retrieval(encoded(pairs, images, texts), "official")
    rows = similarity[np.ix_(pairs.image, pairs.text)]
    assert values(official["figures"]) == pytest.approx(dense_recalls(rows, np.eye(len(pairs), dtype=bool)))
    assert (official["images"], official["texts"]) == (90, 90)
    ours = score_retrieval(encoded(pairs, images, texts), "all-positives")
    true = np.zeros((40, 30), bool)
    true[pairs.image, pairs.text] = True
    assert values(ours["figures"]) == pytest.approx(dense_recalls(similarity, true))
    assert (ours["images"], ours["texts"]) == (40, 30)
    shares = values(ours["figures"])
    assert 0.1 < shares["I2T R@1"] < shares["I2T R@5"] < shares["I2T R@10"] < 1, "the test can tell"
    assert next(iter(shares)) == "MeanRecall"


def test_without_ties_the_official_figures_are_those_of_a_plain_top_k() -> None:
    images = unit(60, 8, 0)
    texts = torch.nn.functional.normalize(images + 0.6 * unit(60, 8, 1))
    place = np.arange(60)
    pairs = Pairs([Path(str(row)) for row in place], [str(row) for row in place], place, place, [""] * 60)
    found = values(score_retrieval(encoded(pairs, images, texts), "official")["figures"])
    for name, similarity in (("I2T", images @ texts.T), ("T2I", texts @ images.T)):
        for top in TOP:
            hit = (similarity.topk(top).indices == torch.arange(60)[:, None]).any(1)
            assert found[f"{name} R@{top}"] == pytest.approx(hit.float().mean().item())
    assert 0.2 < found["I2T R@1"] < 0.9


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_size_of_blocks_does_not_matter(features: tuple[Pairs, torch.Tensor, torch.Tensor], protocol: str) -> None:
    pairs, images, texts = features
    lists = PROTOCOLS[protocol](pairs, np.arange(len(pairs)))
    whole = rank(images, texts, lists, block=1000)
    assert max(len(lists.images), len(lists.texts)) < 1000 and whole[0].above.any() and whole[1].above.any()
    for block in (7, 30):
        for one, other in zip(rank(images, texts, lists, block), whole, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_no_more_than_a_block_of_the_similarities_is_in_memory() -> None:
    count, block = 1000, 100
    images, texts, place = unit(count, 4, 0), unit(count, 4, 1), np.arange(count)
    lists = Lists(place, place, place, place, place, place)
    rank(images[:10], texts[:10], Lists(*[place[:10]] * 6), block)  # imports and buffers
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        rank(images, texts, lists, block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert 4 * block * block <= largest < 16 * block * block, "PyTorch's tensors, of 4 bytes a value"
    assert peak < 0.5 * count * count, "and numpy's, of which all would be more than a byte a value"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_that_tells_nothing_apart_scores_chance(protocol: str) -> None:
    pairs = random_pairs(40, 30, 90)
    constant = unit(1, 512, 0)
    score = score_retrieval(encoded(pairs, constant.repeat(40, 1), constant.repeat(30, 1)), protocol)
    assert values(score["figures"]) == pytest.approx(score["chance"])
    if protocol == "official":
        assert score["figures"]["I2T R@1"]["value"] == pytest.approx(1 / 90)
    else:
        true = [len({*pairs.captions_of(image)}) for image in range(40)]
        assert score["figures"]["I2T R@1"]["value"] == pytest.approx(np.mean(true) / 30)


def test_a_perfect_model_pays_for_copies_by_the_official_protocol_alone() -> None:
    names = [Path(name) for name in "aaaaabbbbb"]
    pairs = make_pairs(names, [f"{name} {number % 5}" for number, name in enumerate(names)], ["s"] * 10)
    images = torch.eye(2)
    texts = images[[0] * 5 + [1] * 5]
    perfect = encoded(pairs, images, texts)
    assert set(values(score_retrieval(perfect, "all-positives")["figures"]).values()) == {1.0}
    official = values(score_retrieval(perfect, "official")["figures"])
    assert official["I2T R@1"] == official["T2I R@1"] == pytest.approx(1 / 5)
    assert official["I2T R@5"] == official["T2I R@5"] == pytest.approx(1)


def test_a_caption_of_several_images_is_right_with_each_of_them() -> None:
    pairs = make_pairs([Path(name) for name in "abc"], ["A tank.", "A ship.", "A tank."], ["s"] * 3)
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # of c, `A ship.` is nearer than its own
    found = values(score_retrieval(encoded(pairs, images, texts), "all-positives")["figures"])
    assert (found["I2T R@1"], found["T2I R@1"]) == (pytest.approx(2 / 3), 1)
    official = values(score_retrieval(encoded(pairs, images, texts), "official")["figures"])
    assert official["I2T R@1"] == pytest.approx((1 / 2 + 1 + 0) / 3) and official["T2I R@1"] == pytest.approx(2 / 3)


def test_hits_are_shares_of_random_orders() -> None:
    ranks = Ranks(np.array([0, 0, 4, 5, 3]), np.array([1, 4, 1, 1, 6]), np.array([1, 2, 1, 1, 2]))
    assert hits(ranks, 1) == pytest.approx([1, 1 / 2, 0, 0, 0])
    assert hits(ranks, 5) == pytest.approx([1, 1, 1, 0, 1 - (4 / 6) * (3 / 5)])


def test_a_sample_keeps_what_is_true_among_it() -> None:
    pairs = random_pairs(40, 30, 90)
    rows = draw_pairs(pairs, 20, seed=1)
    assert len({*rows.tolist()}) == 20 and np.array_equal(rows, np.sort(rows))
    assert np.array_equal(rows, draw_pairs(pairs, 20, seed=1))
    assert not np.array_equal(rows, draw_pairs(pairs, 20, seed=2))
    assert np.array_equal(draw_pairs(pairs), np.arange(90))
    lists = all_positives_lists(pairs, rows)
    assert {*lists.images} == {*pairs.image[rows]} and {*lists.texts} == {*pairs.text[rows]}
    found = {*zip(lists.images[lists.true_image], lists.texts[lists.true_text], strict=True)}
    every = {*zip(pairs.image, pairs.text, strict=True)}
    assert found == {(i, t) for i, t in every if i in lists.images and t in lists.texts}
    assert len(found) > len({*zip(pairs.image[rows], pairs.text[rows], strict=True)}), "the test can tell"
    official = official_lists(pairs, rows)
    assert np.array_equal(official.images, pairs.image[rows]) and len(official.true_image) == 20
    for wrong in (0, 91):
        with pytest.raises(InputError, match=f"--sample {wrong}: there are 90 pairs"):
            draw_pairs(pairs, wrong)


def test_intervals_hold_the_figure_and_five_rows_of_an_image_are_one_piece_of_evidence() -> None:
    assert fraction_with_interval(7, 20) == pytest.approx(share_with_interval([True] * 7 + [False] * 13))
    assert fraction_with_interval(0, 5) == pytest.approx(share_with_interval([False] * 5))
    assert fraction_with_interval(5, 5) == pytest.approx(share_with_interval([True] * 5))
    rng = np.random.default_rng(0)
    above = rng.integers(0, 20, 200)
    ranks = Ranks(above, np.ones_like(above), np.ones_like(above))
    place = np.arange(200)
    once = recalls(ranks, ranks, Lists(*[place] * 6))
    assert all(figure["low"] < figure["value"] < figure["high"] for figure in once.values())
    five = Ranks(*(np.repeat(one, 5) for one in ranks))
    alike = recalls(five, five, Lists(*[np.arange(1000)] * 4, np.repeat(place, 5), np.repeat(place, 5)))
    apart = recalls(five, five, Lists(*[np.arange(1000)] * 6))
    width = [figures["MeanRecall"]["high"] - figures["MeanRecall"]["low"] for figures in (once, alike, apart)]
    assert width[1] == pytest.approx(width[0]) and width[2] < 0.6 * width[0]
    # what is expected: the spread of the mean over both directions, which are equal here
    mean = np.mean([above < top for top in TOP], axis=0)
    assert width[0] == pytest.approx(2 * 1.96 * mean.std() / np.sqrt(200), rel=0.1)


def test_chance_is_what_random_features_score_on_average() -> None:
    pairs = random_pairs(40, 30, 90)
    lists = all_positives_lists(pairs, np.arange(90))
    found = [
        np.mean(
            [hits(one, top).mean() for one in rank(unit(40, 64, seed), unit(30, 64, 99 + seed), lists) for top in TOP]
        )
        for seed in range(60)
    ]
    assert np.mean(found) == pytest.approx(chance(lists)["MeanRecall"], abs=4 * np.std(found) / np.sqrt(60))


def test_features_that_are_no_numbers_are_refused() -> None:
    pairs, broken = random_pairs(5, 5, 9), unit(5, 4, 0)
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="features of the texts are not all finite"):
        rank(unit(5, 4, 1), broken, official_lists(pairs, np.arange(9)))


def colours(path: Path) -> list[int]:
    """How many pixels of a picture are of the green of right ones, and of the red of wrong ones."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and 800 <= picture.width <= 1100
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    return [int((np.abs(pixels - colour).sum(2) < 12).sum()) for colour in ((44, 160, 44), (214, 39, 40))]


def test_the_gallery_frames_right_ones_green_and_wrong_ones_red(tmp_path: Path) -> None:
    names = []
    for number in range(9):
        names.append(tmp_path / f"{number}.png")
        Image.new("L", (40, 20 + 3 * number), 20 * number).save(names[-1])
    pairs = make_pairs(names, [f"Text $number_{number} of a ship\x07." for number in range(9)], ["s"] * 9)
    eye = torch.eye(9)
    retrieval_gallery(pairs, eye, eye, tmp_path / "new/right.png")
    everywhere = make_pairs([name for name in names for _ in range(2)], ["A ship.", "A tank."] * 9, ["s"] * 18)
    retrieval_gallery(everywhere, eye, eye[:2], tmp_path / "all.png")
    right, all_true = colours(tmp_path / "new/right.png"), colours(tmp_path / "all.png")
    assert right[0] > 2000 and right[1] > 3 * right[0], "one of five is right"
    assert all_true[0] > 2000 and all_true[1] == 0
    assert spread(8) == [1, 3, 5, 7] and spread(3) == [0, 1, 2] and spread(1000) == [125, 375, 625, 875]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that stays the same: random weights, kept in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("contrastive") / "model"
    save_model(load_model("sar-vit-tiny"), folder)
    return folder


def test_a_data_folder_is_evaluated_from_end_to_end(
    run: Callable[..., str], model: Path, data: Path, tmp_path: Path
) -> None:
    out, gallery = tmp_path / "made/figures.json", tmp_path / "gallery.png"
    output = run(SCRIPT, "--model", model, "--data", data, "--out", out, "--gallery", gallery, "--device", "cpu")
    content = json.loads(out.read_text())
    pairs, loaded = read_pairs(data, "test"), load_model(str(model))
    images = encode_images(loaded, pairs.paths).features.double().numpy()
    similarity = images @ encode_texts(loaded, pairs.texts).double().numpy().T
    true = pairs.true_of(np.arange(len(pairs.paths)), np.arange(len(pairs.texts)))
    assert values(content["figures"]) == pytest.approx(dense_recalls(similarity, true))
    rows = similarity[np.ix_(pairs.image, pairs.text)]
    official = content["beside"]
    assert values(official["figures"]) == pytest.approx(dense_recalls(rows, np.eye(len(pairs), dtype=bool)))
    assert (content["task"], content["protocol"], official["protocol"]) == ("retrieval", "all-positives", "official")
    assert content["n"] == len(pairs) == 32 and content["unreadable"] == {} and content["pairs_left_out"] == 0
    assert f"I2T of 8 images among {len(pairs.texts)} texts" in output and "by chance: MeanRecall" in output
    assert "retrieval (all-positives), n = 32" in output and "retrieval (official), n = 32" in output
    assert sum(colours(gallery)) > 2000 and f"Gallery: {gallery}" in output


def test_unreadable_images_leave_the_denominator_with_their_pairs(
    run: Callable[..., str], model: Path, data: Path, sample: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(sample, tmp_path / "root", ignore=shutil.ignore_patterns("RGBimages"))
    pairs = read_pairs(data, "test", str(root))
    pairs.paths[2].write_bytes(pairs.paths[2].read_bytes()[:100])
    pairs.paths[5].unlink()
    words = ["--model", model, "--data", data, "--image_root", root, "--out", tmp_path / "out.json"]
    output = run(SCRIPT, *words, "--protocol", "official", "--batch_size", 3)
    content = json.loads((tmp_path / "out.json").read_text())
    gone = len(pairs.of_image(2)) + len(pairs.of_image(5))
    assert {*content["unreadable"]} == {str(pairs.paths[2]), str(pairs.paths[5])} and all(
        content["unreadable"].values()
    )
    assert content["n"] == content["images"] == content["texts"] == 32 - gone and content["pairs_left_out"] == gone
    assert content["beside"]["images"] == 6
    assert f"excluded: 2 unreadable images with {gone} of 32 pairs, such as {pairs.paths[2]}" in output
    # the same as if they had never been there
    kept = make_pairs(
        [path for row, path in enumerate(pairs.paths) for _ in pairs.of_image(row) if row not in (2, 5)],
        [text for row in range(8) for text in pairs.captions_of(row) if row not in (2, 5)],
        ["s"] * (32 - gone),
    )
    loaded = load_model(str(model))
    features = encode_images(loaded, kept.paths).features, encode_texts(loaded, kept.texts)
    for part in (content, content["beside"]):
        expected = score_retrieval(encoded(kept, *features), part["protocol"])
        assert values(part["figures"]) == pytest.approx(values(expected["figures"]))
    for path in pairs.paths:
        path.unlink(missing_ok=True)
    assert "none of 8 can be read" in run(SCRIPT, *words, code=2)


def test_a_csv_is_evaluated_and_what_is_wrong_with_it_is_told(
    run: Callable[..., str], model: Path, data: Path, tmp_path: Path
) -> None:
    pairs = read_pairs(data, "test")
    root = pairs.paths[0].parent
    rows = [(pairs.paths[image].name, pairs.texts[text]) for image, text in zip(pairs.image, pairs.text, strict=True)]
    with open(tmp_path / "test.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("imgpath", "caption"), *rows])
    words = ["--model", model, "--csv", tmp_path / "test.csv", "--image_root", root, "--out", tmp_path / "out.json"]
    run(SCRIPT, *words, "--protocol", "official")
    from_csv = json.loads((tmp_path / "out.json").read_text())
    run(SCRIPT, "--model", model, "--data", data, "--out", tmp_path / "data.json")
    from_data = json.loads((tmp_path / "data.json").read_text())
    assert values(from_csv["figures"]) == values(from_data["beside"]["figures"])
    assert values(from_csv["beside"]["figures"]) == values(from_data["figures"])
    run(SCRIPT, *words, "--sample", 12, "--seed", 3)
    sampled = json.loads((tmp_path / "out.json").read_text())
    assert sampled["n"] == 12 and (sampled["options"]["sample"], sampled["options"]["seed"]) == (12, 3)
    (tmp_path / "bad.csv").write_text("filepath,title\na.png,A ship.\n")
    words[3] = tmp_path / "bad.csv"
    assert "must be imgpath,caption" in run(SCRIPT, *words, code=2)


def test_options_that_make_no_sense_are_refused_before_anything_is_read(
    run: Callable[..., str], tmp_path: Path
) -> None:
    words = ["--model", "sar-vit-tiny", "--out", tmp_path / "out.json"]
    assert "either --data or --csv" in run(SCRIPT, *words, code=2)
    assert "either --data or --csv" in run(SCRIPT, *words, "--data", "x", "--csv", "y", code=2)
    assert "--csv needs --image_root" in run(SCRIPT, *words, "--csv", "x", code=2)
    assert "need --data" in run(SCRIPT, *words, "--csv", "x", "--image_root", "y", "--leave_out", "MSTAR", code=2)
    assert "--protocol both: must be all-positives or official" in run(
        SCRIPT, *words, "--data", "x", "--protocol", "both", code=2
    )
    assert "is a folder" in run(SCRIPT, *words, "--data", "x", "--gallery", tmp_path, code=2)
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_what_is_shown(tmp_path: Path) -> None:
    pairs, eye = make_pairs([Path("a"), Path("b")], ["A ship.", "A tank."], ["s"] * 2), torch.eye(2)
    left = Encoded(pairs, np.arange(2), eye, eye, {Path("torn.png"): "cut off"}, 3)
    content = write_retrieval(tmp_path / "out.json", "some model", "official", left, {"split": "val"})
    assert json.loads((tmp_path / "out.json").read_text()) == content
    shown = show_retrieval(content)
    assert "excluded: 1 unreadable images with 3 of 5 pairs, such as torn.png (cut off)" in shown
    assert shown.index("official") < shown.index("all-positives") and "100.00" in shown
