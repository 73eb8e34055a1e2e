"""Semantic localisation: windows, heat maps, metrics against hand computation, bad annotations, the command line."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sarlang_sft.contrastive.features import encode_images, encode_texts
from sarlang_sft.contrastive.heat_maps import (
    WindowArguments,
    heat_map,
    median_of_cells,
    window_similarities,
    windows_of,
)
from sarlang_sft.contrastive.localization_metrics import (
    Circle,
    attention_peaks,
    attention_shift,
    circle_of,
    cut_off,
    discrete_attention,
    localization_metrics,
    region_mask,
    regions_problem,
    salient_area,
)
from sarlang_sft.contrastive.models import load_model, save_model
from sarlang_sft.contrastive.semantic_localization import Annotations, Query, localise, read_annotations, similarity_to
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import read_image

SQUARE = [(100.0, 100.0), (299.0, 100.0), (299.0, 299.0), (100.0, 299.0)]
SIDE = 600  # of the maps whose metrics are taken


def brightness(crops: Sequence[np.ndarray]) -> np.ndarray:
    """A planted similarity, to two queries: something bright, something dark."""
    means = np.array([crop.mean() for crop in crops])
    return np.stack([means, -means], axis=1)


def blob(x: float, y: float, width: float = 60.0) -> np.ndarray:
    """A map with one hill, 1 at its top."""
    down, right = np.mgrid[:SIDE, :SIDE]
    return np.exp(-((right - x) ** 2 + (down - y) ** 2) / (2 * width**2)).astype(np.float32)


def test_published_windows_lie_side_by_side_and_once_more_half_a_side_further() -> None:
    windows = windows_of(600, 1024, WindowArguments(sides=[512]))
    assert {(one.top, one.left) for one in windows} == {(0, 0), (0, 512), (88, 0), (88, 512), (88, 256)}
    assert all((one.bottom - one.top, one.right - one.left) == (512, 512) for one in windows)
    dense = windows_of(600, 1024, WindowArguments(sides=[512], step=0.5))
    assert {(one.top, one.left) for one in dense} == {(top, left) for top in (0, 88) for left in (0, 256, 512)}


@pytest.mark.parametrize("size", [(1, 1), (100, 300), (300, 100), (513, 700), (255, 257)])
@pytest.mark.parametrize("step", [None, 0.5, 0.3, 1.0])
def test_windows_cover_every_pixel_and_stay_inside(size: tuple[int, int], step: float | None) -> None:
    windows = windows_of(*size, WindowArguments(sides=[64, 256], step=step))
    seen = np.zeros(size, int)
    for one in windows:
        assert 0 <= one.top < one.bottom <= size[0] and 0 <= one.left < one.right <= size[1]
        seen[one.top : one.bottom, one.left : one.right] += 1
    assert seen.min() >= 1
    assert len(windows) == len(set(windows))


def test_a_window_larger_than_the_image_is_all_of_it() -> None:
    assert windows_of(100, 300, WindowArguments(sides=[512, 768])) == [(0, 0, 100, 300)]


def test_bad_windows_are_refused() -> None:
    for bad in ({"sides": []}, {"sides": [1]}, {"step": 0.0}, {"step": 1.5}, {"blur": 250}, {"blur": 0}):
        with pytest.raises(InputError):
            WindowArguments(**bad)


def test_the_map_is_the_mean_of_the_windows_that_cover_a_pixel() -> None:
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 255, (150, 210, 3)).astype(np.float32)
    windows = windows_of(150, 210, WindowArguments(sides=[40, 64]))
    similarities = window_similarities(image, windows, brightness, batch_size=7)
    total, count = np.zeros((150, 210)), np.zeros((150, 210))
    for one in windows:
        part = slice(one.top, one.bottom), slice(one.left, one.right)
        total[part] += image[part].mean()
        count[part] += 1
    mean = total / count
    expected = np.floor(255 * (mean - mean.min()) / (mean.max() - mean.min())) / 255
    heat = heat_map(150, 210, windows, similarities[:, 0], blur=1)
    assert np.abs(heat - expected).max() <= 1.01 / 255  # rounding of crops' means in 32 bits
    assert (heat.min(), heat.max()) == (0, 1)
    blurred = heat_map(150, 210, windows, similarities[:, 0], blur=31)
    assert np.array_equal(blurred, ndimage.median_filter(heat, 31, mode="nearest"))


@pytest.mark.parametrize("side", [1, 5, 31, 81])
def test_the_median_of_cells_is_that_of_scipy(side: int) -> None:
    rng = np.random.default_rng(side)
    rows, columns = (np.unique([0, size, *rng.integers(1, size, 6)]) for size in (70, 50))
    values = rng.integers(0, 9, (len(rows) - 1, len(columns) - 1)).astype(np.uint8)
    picture = values.repeat(np.diff(rows), axis=0).repeat(np.diff(columns), axis=1)
    expected = ndimage.median_filter(picture, side, mode="nearest")
    assert np.array_equal(median_of_cells(values, rows, columns, side), expected)


def test_the_hottest_place_is_the_bright_square_and_the_coldest_for_the_opposite_query() -> None:
    image = np.full((1000, 1400, 3), 20, np.float32)
    image[600:800, 900:1100] = 250
    windows = windows_of(1000, 1400, WindowArguments())
    bright, dark = window_similarities(image, windows, brightness, 16).T
    heat = heat_map(1000, 1400, windows, bright)
    square = [(900, 600), (1100, 600), (1100, 800), (900, 800)]
    mask = region_mask(1000, 1400, [square])
    assert mask[np.unravel_index(heat.argmax(), heat.shape)]
    assert heat[mask].mean() > 3 * heat[~mask].mean()
    (x, y), *_ = attention_peaks(heat)
    assert np.hypot(x - 1000, y - 700) < circle_of(square).radius
    found, opposite = (localization_metrics(one, [square]) for one in (heat, heat_map(1000, 1400, windows, dark)))
    assert found.rmi > 0.8 > 0.5 > opposite.rmi
    assert found.rda == 1


def test_a_map_that_is_the_same_everywhere_says_nothing() -> None:
    windows = windows_of(300, 300, WindowArguments(sides=[64]))
    heat = heat_map(300, 300, windows, np.full(len(windows), 0.3))
    assert not heat.any()
    assert attention_peaks(heat) == []
    assert localization_metrics(heat, [SQUARE]) == (0, 0, 1, 0, [])


def test_salient_area_by_hand() -> None:
    mask = region_mask(SIDE, SIDE, [SQUARE])
    assert mask.sum() == 200 * 200
    assert salient_area(np.full((SIDE, SIDE), 0.4), mask) == pytest.approx(1 - math.exp(-0.707), rel=1e-6)
    twice = np.where(mask, 1.0, 0.5)
    assert salient_area(twice, mask) == pytest.approx(1 - math.exp(-2 * 0.707), rel=1e-6)
    assert salient_area(mask.astype(float), mask) == 1
    assert salient_area((~mask).astype(float), mask) == 0
    assert salient_area(np.ones((SIDE, SIDE)), np.ones((SIDE, SIDE), bool)) == 0


def test_shift_and_discreteness_by_hand() -> None:
    circle, other = Circle(100, 100, 50), Circle(400, 400, 40)
    half = (math.exp(1.5) - 1) / (math.exp(3) - 1)
    assert attention_shift([circle], [(100, 100)]) == 0
    assert attention_shift([circle], [(100, 125)]) == pytest.approx(half)
    assert attention_shift([circle], [(100, 100), (100, 150)]) == pytest.approx(half)  # mean of 0 and 1
    assert attention_shift([circle], [(100, 151)]) == attention_shift([circle], []) == 1
    assert attention_shift([circle, other], [(100, 100)]) == pytest.approx(half)  # 0 and 1
    assert discrete_attention([circle], []) == discrete_attention([circle], [(100, 151)]) == 0
    assert discrete_attention([circle], [(110, 110), (400, 400)]) == 1
    two = [(100, 90), (100, 110)]  # 10 pixels from their mean
    assert discrete_attention([circle], two) == pytest.approx(0.5 * (1 - 10 / 50) + math.exp(-2))
    assert discrete_attention([circle, other], two) == pytest.approx((0.4 + math.exp(-2)) / 2)


def test_metrics_order_maps_by_how_right_they_are() -> None:
    centre, aside = localization_metrics(blob(200, 200), [SQUARE]), localization_metrics(blob(270, 200), [SQUARE])
    elsewhere = localization_metrics(blob(500, 500), [SQUARE])
    assert centre.peaks == [(202, 202)]  # five means of 50 pixels, each half a pixel off
    assert aside.peaks == [(272, 202)]
    radius = int(1.5 * math.hypot(99.5, 99.5))
    assert circle_of(SQUARE) == Circle(199, 199, radius)
    offset = math.hypot(73, 3) / radius
    assert aside.ras == pytest.approx((math.exp(3 * offset) - 1) / (math.exp(3) - 1))
    assert centre.rmi > aside.rmi > elsewhere.rmi > localization_metrics(np.zeros((SIDE, SIDE)), [SQUARE]).rmi
    assert (elsewhere.ras, elsewhere.rda) == (1, 0)
    for found in (centre, aside, elsewhere):
        assert found.rmi == pytest.approx(0.40 * found.rsu + 0.35 * (1 - found.ras) + 0.25 * found.rda)


def test_regions_count_together_even_where_they_overlap() -> None:
    shifted = [(x + 100, y) for x, y in SQUARE]
    assert region_mask(SIDE, SIDE, [SQUARE, shifted]).sum() == 300 * 200
    two = localization_metrics(blob(200, 200), [SQUARE, [(x + 300, y + 300) for x, y in SQUARE]])
    assert two.rda == 0.5  # one of two regions has its peak


def test_regions_that_cannot_be_measured_are_told() -> None:
    assert regions_problem(SIDE, SIDE, [SQUARE]) is None
    everything = [(0.0, 0.0), (SIDE, 0.0), (SIDE, SIDE), (0.0, SIDE)]
    assert "cover the whole image" in regions_problem(SIDE, SIDE, [everything])
    assert "region 1 lies outside the image of 150 x 600" in regions_problem(
        600, 150, [SQUARE, [(x + 200, y) for x, y in SQUARE]]
    )
    assert regions_problem(SIDE, SIDE, [[(5.0, 5.0)] * 3]) == "region 0 has no extent"
    assert regions_problem(200, 200, [SQUARE]) is None and cut_off(200, 200, [SQUARE])
    assert not cut_off(SIDE, SIDE, [SQUARE, everything])


def entry(**changes: Any) -> dict[str, Any]:
    return {"jpg_name": "0.jpg", "caption": " ships\n", "points": [[[1, 2], [3.5, 2], [3, 9]]], **changes}


def write_entries(path: Path, *entries: Any) -> Path:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


BAD_ENTRIES = [
    (entry(caption=" \n"), "`caption` is no text, or empty"),
    ({name: value for name, value in entry(point=1).items() if name != "points"}, "did you mean `point`?"),
    ({}, "needed are jpg_name, caption, points"),
    ("ships", "is no object"),
    (entry(jpg_name=3), "`jpg_name` is no text"),
    (entry(jpg_name="../0.jpg"), "leaves the image root"),
    (entry(points=[]), "no list of regions"),
    (entry(points=[[[1, 2], [3, 4]]]), "fewer than three corners"),
    (entry(points=[[[1, 2], [3, 4], [5]]]), "a corner that is no [x, y]"),
    (entry(points=[[[1, 2], [3, 4], [5, math.nan]]]), "a corner that is no [x, y]"),
    (entry(points=[[[1, 2], [3, 4], [5, True]]]), "a corner that is no [x, y]"),
]


def test_bad_entries_are_left_out_with_their_reason(tmp_path: Path) -> None:
    file = write_entries(tmp_path / "anno.json", entry(author="x"), *(bad for bad, _ in BAD_ENTRIES))
    found = read_annotations(file, tmp_path)
    assert [(query.number, query.caption) for query in found.queries] == [(0, "ships")]
    assert found.queries[0].regions == [[(1, 2), (3.5, 2), (3, 9)]]
    assert found.ignored_keys == {"author": 1}
    assert found.left_out.keys() == set(range(1, len(BAD_ENTRIES) + 1))
    for number, (_, reason) in enumerate(BAD_ENTRIES, 1):
        assert reason in found.left_out[number]


def test_files_without_any_query_are_refused(tmp_path: Path) -> None:
    for content in ("", "{}", "[]", '["ships"]'):
        (tmp_path / "anno.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=r"anno\.json"):
            read_annotations(tmp_path / "anno.json", tmp_path)
    with pytest.raises(InputError, match=r"none\.json"):
        read_annotations(tmp_path / "none.json", tmp_path)


def test_crops_are_seen_as_images_of_their_own_would_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (90, 120), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "all.png")
    Image.fromarray(pixels[10:60, 20:90]).save(tmp_path / "part.png")
    model = load_model("sar-vit-tiny", image_ops=["log", "crop:48"])
    texts = ["a bridge", "two ships", "a forest"]
    expected = (
        encode_images(model, [tmp_path / "part.png", tmp_path / "all.png"]).features @ encode_texts(model, texts).T
    )
    image = read_image(tmp_path / "all.png")
    similarities = similarity_to(model, texts)([2, 0])([image[10:60, 20:90], image])
    assert np.allclose(similarities, expected[:, [2, 0]], atol=1e-6)


def test_an_image_is_encoded_once_for_all_its_queries(tmp_path: Path) -> None:
    Image.new("L", (100, 80), 30).save(tmp_path / "0.png")
    region = [(10.0, 10.0), (40.0, 10.0), (40.0, 40.0)]
    queries = [Query(number, "0.png", tmp_path / "0.png", "x", [region]) for number in range(3)]
    asked, crops_seen = [], []

    def similarity_to_queries(rows: list[int]) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
        asked.append(rows)

        def similarity(crops: Sequence[np.ndarray]) -> np.ndarray:
            crops_seen.extend(crops)
            return np.array([[crop.shape[0] * row for row in rows] for crop in crops], float)

        return similarity

    windows = WindowArguments(sides=[32, 80], blur=3)
    found = list(localise(Annotations(queries, {}, {}), similarity_to_queries, windows, 5, {}))
    assert asked == [[0, 1, 2]]
    assert len(crops_seen) == len(windows_of(80, 100, windows))
    assert [one.query.number for one in found] == [0, 1, 2]


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """A model, two images, an image that is none, and queries of all of them."""
    rng = np.random.default_rng(5)
    (tmp_path / "imgs").mkdir()
    for name, size in (("0.png", (260, 180)), ("1.png", (150, 200))):
        Image.fromarray(rng.integers(0, 255, size[::-1], np.uint8)).save(tmp_path / "imgs" / name)
    (tmp_path / "imgs" / "2.png").write_bytes(b"no picture")
    save_model(load_model("sar-vit-tiny"), tmp_path / "model")
    square = [[20, 20], [90, 20], [90, 90], [20, 90]]
    write_entries(
        tmp_path / "anno.json",
        entry(jpg_name="0.png", caption="ships at a pier cost $5 or $6", points=[square]),
        entry(jpg_name="1.png", points=[square, [[100, 100], [140, 100], [140, 190]]]),
        entry(jpg_name="0.png", caption="a bridge", points=[[[200, 100], [300, 100], [250, 170]]]),
        entry(jpg_name="2.png", points=[square]),
        entry(jpg_name="none.png", points=[square]),
        entry(jpg_name="1.png", points=[[[1000, 1000], [1100, 1000], [1000, 1100]]]),
        entry(jpg_name="1.png", caption=""),
    )
    return tmp_path


def test_from_the_command_line(annotated: Path, run: Callable[..., str]) -> None:
    words = ["--model", annotated / "model", "--annotations", annotated / "anno.json", "--images", annotated / "imgs"]
    words += ["--out", annotated / "selo.json", "--heat_maps", annotated / "maps", "--device", "cpu"]
    output = run("eval/semantic_localization.py", *words, "--sides", 64, 128, "--blur", 21)
    content = json.loads((annotated / "selo.json").read_text(encoding="utf-8"))
    assert content["task"] == "semantic_localization"
    assert content["protocol"] == "windows 64/128, published grids, median 21"
    assert content["n"] == 3
    assert [(row["query"], row["regions"], row["cut_off"]) for row in content["queries"]] == [
        (0, 1, False),
        (2, 1, True),
        (1, 2, False),
    ]
    assert list(content["figures"]) == ["rmi", "rsu", "ras", "rda"]
    for name, figure in content["figures"].items():
        own = [row[name] for row in content["queries"]]
        assert figure["value"] == pytest.approx(np.mean(own))
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
    assert {Path(name).name for name in content["unreadable"]} == {"2.png", "none.png"}
    assert content["left_out"].keys() == {"3", "4", "5", "6"}
    assert "left out: 1 queries, such as query 5: region 0 lies outside the image of 150 x 200 pixels" in output
    assert sorted(path.name for path in (annotated / "maps").iterdir()) == [f"query_00{n}.png" for n in (0, 1, 2)]
    with Image.open(annotated / "maps" / "query_000.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(10**6)) > 500


def test_when_nothing_can_be_asked(annotated: Path, run: Callable[..., str]) -> None:
    write_entries(annotated / "anno.json", entry(jpg_name="2.png"), entry(jpg_name="none.png"))
    words = ["--model", annotated / "model", "--annotations", annotated / "anno.json", "--images", annotated / "imgs"]
    output = run("eval/semantic_localization.py", *words, "--out", annotated / "selo.json", code=2)
    assert "all 2 queries are left out; query 0: the image cannot be read" in output
    assert not (annotated / "selo.json").exists()
