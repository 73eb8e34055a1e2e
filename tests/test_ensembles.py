"""Ensembles of contrastive models, on tiny ones that have learned two different domains."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.nn import functional

from sarlang_sft.contrastive.ensemble_points import mean_figure, plan_points
from sarlang_sft.contrastive.ensemble_sets import (
    MeasuredSet,
    figure_of,
    mean_of_scores,
    mean_recall,
    read_set,
    score_sets,
)
from sarlang_sft.contrastive.ensembles import (
    average,
    check_alike,
    copy_state,
    greedy,
    interpolations,
    load_ingredients,
    mix,
    state_hash,
    uniform,
    weighted,
)
from sarlang_sft.contrastive.models import ContrastiveModel, load_model, save_model
from sarlang_sft.contrastive.zero_shot import read_templates
from sarlang_sft.errors import InputError

STRIPES = ("harbour", "forest", "open_field")  # told apart by the direction of stripes
LEVELS = ("tank", "truck", "howitzer")  # by brightness


def picture(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A speckled chip of a class, (32, 32) uint8."""
    speckle = rng.exponential(1, (32, 32))
    if kind in LEVELS:
        return (speckle * (20, 60, 150)[LEVELS.index(kind)]).clip(0, 255).astype(np.uint8)
    down, along = np.indices((32, 32))
    phase = (down, along, down + along)[STRIPES.index(kind)]
    return (30 * speckle + 120 * (phase // 4 % 2)).clip(0, 255).astype(np.uint8)


def write_classes(root: Path, classes: tuple[str, ...], count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(name, rng)).save(root / name / f"{number}.png")
    return root


def teach(model: ContrastiveModel, classes: tuple[str, ...], steps: int, seed: int) -> None:
    """A few steps of classification against the classes' texts."""
    rng = np.random.default_rng(seed)
    spoken = [name.replace("_", " ") for name in classes]
    sentences = [model.tokenizer([one.format(name) for name in spoken]) for one in read_templates("sar")]
    labels = torch.arange(48) % len(classes)
    chips = [Image.fromarray(picture(classes[label], rng)).convert("RGB") for label in labels]
    images = torch.stack([model.picture(chip) for chip in chips])
    model.model.train().token_embedding.requires_grad_(False)  # most of the weights
    optimiser = torch.optim.AdamW([one for one in model.model.parameters() if one.requires_grad], 1e-3)
    for step in range(steps):
        batch = torch.from_numpy(rng.choice(len(labels), 12, replace=False))
        out = model.model(images[batch], sentences[step % len(sentences)])
        logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
        functional.cross_entropy(logits, labels[batch]).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that knows stripes, two taught brightness from it, and images of both domains."""
    root = tmp_path_factory.mktemp("ensemble")
    torch.manual_seed(0)
    made = {"stripes": write_classes(root / "stripes/val", STRIPES, 12, 1)}
    made["levels"] = write_classes(root / "levels/val", LEVELS, 12, 2)
    made["levels_test"] = write_classes(root / "levels/test", LEVELS, 8, 3)
    model = load_model("sar-vit-tiny", image_size=32)
    teach(model, STRIPES, 40, 0)
    save_model(model, root / "before")
    before = copy_state(model.model)
    for name, seed, steps in (("after", 1, 30), ("other", 2, 8)):
        model.model.load_state_dict(before)
        teach(model, LEVELS, steps, seed)
        save_model(model, root / name)
    return made | {name: root / name for name in ("before", "after", "other")}


@pytest.fixture(scope="module")
def states(folders: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    return load_ingredients([str(folders[name]) for name in ("before", "after", "other")]).states


def spec(name: str, folder: Path) -> str:
    return f"{name}=zero_shot:{folder}"


def figure_on(model: ContrastiveModel, measured: MeasuredSet) -> dict[str, float]:
    return figure_of(measured, score_sets(model, [measured])[measured.name])


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype
        and torch.equal(one[key].view(-1).view(torch.uint8), other[key].view(-1).view(torch.uint8))
        for key in one
    )


def test_ends_are_the_models_bit_by_bit(states: dict[str, dict[str, torch.Tensor]]) -> None:
    before, after, _ = states
    points = interpolations(before, after, [1, 0.3, 0])
    assert list(points) == [0, 0.3, 1]
    assert same_bits(mix(states, points[0]), states[before]) and same_bits(mix(states, points[1]), states[after])
    assert not same_bits(states[before], states[after])
    signed = {"zero": torch.tensor([-0.0, 1e-45, float("inf")])}
    assert same_bits(average([signed, {"zero": torch.full((3,), float("nan"))}], [1.0, 0.0]), signed)


def test_points_between_equal_a_hand_computation(states: dict[str, dict[str, torch.Tensor]]) -> None:
    before, after, _ = states
    middle = mix(states, interpolations(before, after, [0.5])[0.5])
    for key, value in middle.items():
        ends = states[before][key].numpy().astype(np.float64), states[after][key].numpy().astype(np.float64)
        assert np.array_equal(value.numpy(), ((ends[0] + ends[1]) / 2).astype(np.float32)), key
    scales = [state["logit_scale"].exp().item() for state in (states[before], states[after], middle)]
    assert scales[0] != scales[1] and scales[2] == pytest.approx(np.sqrt(scales[0] * scales[1]), rel=1e-6)


def test_soups_are_weighted_means(states: dict[str, dict[str, torch.Tensor]]) -> None:
    soups = {"uniform": (uniform(list(states)), [1, 1, 1]), "weighted": (weighted(list(states), [3, 1, 4]), [3, 1, 4])}
    for parts, ratio in soups.values():
        for key, value in mix(states, parts).items():
            stacked = np.stack([state[key].numpy() for state in states.values()])
            np.testing.assert_allclose(value, np.average(stacked, 0, ratio), rtol=1e-6, atol=1e-9)


def test_batch_norm_statistics_are_averaged_and_counters_are_taken_from_the_larger_part() -> None:
    models = [load_model("sar-resnet-tiny") for _ in range(2)]
    for steps, model in enumerate(models, 1):
        model.model.train()
        for _ in range(steps):
            model.model.encode_image(torch.randn(4, 3, 64, 64) * steps)
    first, second = (copy_state(model.model) for model in models)
    mixed = average([first, second], [0.25, 0.75])
    mean = "visual.bn1.running_var"
    torch.testing.assert_close(mixed[mean], 0.25 * first[mean] + 0.75 * second[mean])
    counter = "visual.bn1.num_batches_tracked"
    assert mixed[counter].dtype == torch.int64 and (first[counter], mixed[counter]) == (1, 2)
    assert average([first, second], [0.5, 0.5])[counter] == 1
    models[0].model.load_state_dict(mixed)


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        ({"a": 0.5, "b": 0.7, "c": 0.6, "bc": 0.65, "ab": 0.6}, "b"),  # none may join the best
        ({"a": 0.5, "b": 0.7, "c": 0.6, "bc": 0.7, "abc": 0.9}, "bc a"),  # equal is enough
        ({"a": 0.5, "b": 0.7, "c": 0.6, "bc": 0.6, "ab": 0.8}, "ba"),  # one that does not fit is left out
    ],
)
def test_greedy_adds_what_does_not_harm(figures: dict[str, float], kept: str) -> None:
    parts = greedy(["a", "b", "c"], lambda parts: figures["".join(sorted(parts))])
    wanted = kept.replace(" ", "")
    assert parts == dict.fromkeys(wanted, 1 / len(wanted))
    assert figures["".join(sorted(parts))] >= max(figures[name] for name in "abc")


def test_models_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(str(folders["after"]))
    vision, text = model.config["vision_cfg"], model.config["text_cfg"]
    cases = {
        r"architecture .* visual.positional_embedding is \(65, 128\), not \(17, 128\)": load_model("sar-vit-tiny"),
        r"architecture .* are missing": load_model("sar-resnet-tiny"),
        # what no shape tells
        "quick_gelu is True, not False": replace(model, config=model.config | {"quick_gelu": True}),
        "vision_cfg.head_width is 64, not 32": replace(
            model, config=model.config | {"vision_cfg": vision | {"head_width": 64}}
        ),
        "preprocess .* resize_mode is squash": replace(
            model, preprocess=replace(model.preprocess, resize_mode="squash")
        ),
        r"image_ops \['log'\].* has \['fixed'\]": replace(model, image_ops=["log"]),
    }
    for message, other in cases.items():
        with pytest.raises(InputError, match=message) as error:
            check_alike("FIRST", model, "OTHER", other)
        assert "OTHER" in str(error.value) and "FIRST" in str(error.value)
    only_training = {
        "vision_cfg": vision | {"patch_dropout": 0.5, "mlp_ratio": 4.0},
        "text_cfg": text,
    }  # and a default
    check_alike("FIRST", model, "OTHER", replace(model, config=model.config | only_training))

    save_model(replace(model, image_ops=["log"]), tmp_path / "logs")
    both = [str(folders["after"]), str(tmp_path / "logs")]
    with pytest.raises(InputError, match="set --resize_mode and --image_ops for all"):
        load_ingredients(both)
    assert load_ingredients(both, image_ops=["log"]).model.image_ops == ["log"]


def test_fingerprint_is_of_the_weights(folders: dict[str, Path], states: dict, tmp_path: Path) -> None:
    model = load_model(str(folders["before"]))
    digest = state_hash(copy_state(model.model))
    assert digest == state_hash(states[str(folders["before"])])
    save_model(model, tmp_path / "copy")
    assert state_hash(copy_state(load_model(str(tmp_path / "copy")).model)) == digest
    with torch.no_grad():
        model.model.logit_scale += 1e-6
    assert state_hash(copy_state(model.model)) != digest


def test_mean_recall_counts_any_true_match_and_ties_by_chance() -> None:
    truth = torch.zeros(12, 24, dtype=torch.bool)
    truth[torch.arange(24) // 2, torch.arange(24)] = True
    assert mean_recall(truth.float(), truth)["value"] == 1
    one = truth.float()
    one[0] = 0.9  # what is true of image 0 ties with everything; and it ranks below the truth of every other text
    by_chance = np.mean([1 - comb(22, depth) / comb(24, depth) for depth in (1, 5, 10)])
    to_text, to_image = (11 + by_chance) / 12, 1
    assert mean_recall(one, truth)["value"] == pytest.approx((to_text + to_image) / 2)
    flat = mean_recall(torch.zeros(12, 24), truth)
    assert flat["value"] == pytest.approx((by_chance + np.mean([1, 5, 10]) / 12) / 2)
    some = mean_recall(torch.from_numpy(np.random.default_rng(0).normal(size=(12, 24))) + 2 * truth, truth)
    assert 0 < some["low"] < some["value"] < some["high"] < 1
    with_orphan = torch.cat([truth, torch.zeros(12, 1, dtype=torch.bool)], 1)  # its image could not be read
    assert mean_recall(torch.cat([truth.float(), torch.ones(12, 1)], 1), with_orphan)["value"] == 1


def test_predictions_are_averaged_as_by_hand(folders: dict[str, Path], data: Path) -> None:
    sets = [read_set(spec("levels", folders["levels"])), read_set(f"scenes=retrieval:{data}@test")]
    assert [one.split for one in sets] == ["val", "test"]
    models = [load_model(str(folders[name])) for name in ("before", "after")]
    scored = [score_sets(model, sets) for model in models]
    images = torch.stack([models[0].read(path) for path in sets[0].images])
    by_hand = []
    for model in models:
        with torch.no_grad():
            pictures = model.model.encode_image(images, normalize=True)
            classes = [
                model.model.encode_text(model.tokenizer(texts), normalize=True).mean(0) for texts in sets[0].candidates
            ]
        classes = torch.stack([one / one.norm() for one in classes])
        by_hand.append((model.model.logit_scale.exp().detach() * pictures @ classes.T).softmax(1))
    mean = mean_of_scores([one["levels"] for one in scored])
    torch.testing.assert_close(mean.scores, (by_hand[0] + by_hand[1]) / 2)
    mean = mean_of_scores([one["scenes"] for one in scored])
    torch.testing.assert_close(mean.scores, (scored[0]["scenes"].scores + scored[1]["scenes"].scores) / 2)
    assert not torch.equal(mean.scores, scored[0]["scenes"].scores)
    parts = [one["levels"] for one in scored]
    fewer = mean_of_scores([parts[0], parts[1]._replace(scores=parts[1].scores[1:], rows=parts[1].rows[1:])])
    assert fewer.rows == parts[0].rows[1:]
    torch.testing.assert_close(fewer.scores, ((by_hand[0] + by_hand[1]) / 2)[1:])


def test_files_that_are_no_images_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    root = write_classes(tmp_path / "val", LEVELS, 2, 0)
    (root / "tank/notes.txt").write_text("x")
    (root / "tank/cut.png").write_bytes((root / "tank/0.png").read_bytes()[:80])
    (root / "truck/out.png").symlink_to(folders["levels"] / "tank/0.png")
    measured = read_set(spec("few", root))
    assert {path.name: reason for path, reason in measured.left_out.items()} == {
        "notes.txt": "not an image file",
        "out.png": "a link out of the folder",
    }
    scores = score_sets(load_model(str(folders["before"])), [measured])["few"]
    assert [path.name for path in scores.unreadable] == ["cut.png"] and len(scores.scores) == 6


def test_mean_of_figures_adds_distances_as_squares() -> None:
    mean = mean_figure([{"value": 0.5, "low": 0.4, "high": 0.7}, {"value": 0.3, "low": 0.3, "high": 0.3}])
    assert mean == pytest.approx({"value": 0.4, "low": 0.35, "high": 0.5})


def test_script_from_two_models_to_a_chosen_one(
    run: Callable[..., str], folders: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    before, after, other = (str(folders[name]) for name in ("before", "after", "other"))
    out = tmp_path / "ensemble"
    said = run(
        "recipes/ensemble.py", "--between", before, after, "--alphas", 0, 0.3, 1, "--soup_of", after, other,
        "--soup_weights", 3, 1, "--average_predictions_of", before, after, "--device", "cpu",
        "--target", spec("levels", folders["levels"]), "--out", out,
        "--out_of_domain", spec("stripes", folders["stripes"]), f"scenes=retrieval:{data}",
        "--test", spec("levels_test", folders["levels_test"]),
    )  # fmt: skip
    result = json.loads((out / "frontier.json").read_text())
    points = {point["name"]: point for point in result["points"]}
    assert list(points) == ["0", "0.3", "1", "uniform", "weighted", "greedy", "predictions"]
    value = {name: (one["target"]["value"], one["figures"]["stripes"]["value"]) for name, one in points.items()}
    assert value["1"][0] > value["0"][0] + 0.2 and value["0"][1] > value["1"][1] + 0.2  # what fine-tuning won and lost
    assert points["greedy"]["target"]["value"] >= max(
        points["1"]["target"]["value"], points["uniform"]["target"]["value"]
    )

    chosen = points[result["chosen"]]
    rank = {name: one["target"]["value"] + one["out_of_domain"]["value"] for name, one in points.items()}
    assert rank[result["chosen"]] == max(rank[name] for name in points if name != "predictions")
    model = load_model(str(out / "chosen"))
    assert state_hash(copy_state(model.model)) == chosen["sha256"]
    for text in (
        spec("levels", folders["levels"]),
        spec("stripes", folders["stripes"]),
        f"scenes=retrieval:{data}@val",
    ):
        measured = read_set(text)
        assert figure_on(model, measured) == chosen["figures"][measured.name]
    test_set = read_set(spec("levels_test", folders["levels_test"]))
    assert result["test"][result["chosen"]] == {"levels_test": figure_on(model, test_set)}
    assert {"0", "1"} <= result["test"].keys() and "levels_test" not in chosen["figures"]
    assert result["models"][after] == points["1"]["sha256"] and result["chosen_on_test"] == []
    assert json.loads((out / "chosen/ensemble.json").read_text())["parts"] == chosen["parts"]

    table = (out / "frontier.md").read_text()
    assert table in said and f"{100 * chosen['target']['value']:.1f} (" in table and "**" in table
    with Image.open(out / "frontier.png") as drawn:
        assert drawn.width > 800 and len(np.unique(np.asarray(drawn.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_choice_by_rule_alpha_or_name(folders: dict[str, Path], run: Callable[..., str], tmp_path: Path) -> None:
    before, after = (str(folders[name]) for name in ("before", "after"))
    config = ROOT / "recipes/configs/sarclip_ensemble.yaml"
    assert "#   python recipes/ensemble.py --config recipes/configs/sarclip_ensemble.yaml\n" in config.read_text()
    words = [
        "recipes/ensemble.py", "--config", config, "--between", before, after, "--alphas", 0, 0.5, 1,
        "--target", spec("levels", folders["levels_test"]), "--out_of_domain", spec("stripes", folders["stripes"]),
        "--test", spec("levels_val", folders["levels"]), "--device", "cpu", "--out", tmp_path,
    ]  # fmt: skip
    assert "Chosen on test data (levels)" in run(*words, "--choose", "0.50")
    assert load_mix(tmp_path) == {before: 0.5, after: 0.5}
    run(*words, "--choose", "out_of_domain")  # takes the place of the former result
    result = json.loads((tmp_path / "frontier.json").read_text())
    values = {point["name"]: point["figures"]["stripes"]["value"] for point in result["points"]}
    assert values[result["chosen"]] == max(values.values()) > min(values.values())


def load_mix(out: Path) -> dict[str, float]:
    return json.loads((out / "chosen/ensemble.json").read_text())["parts"]


def test_wrong_options_are_refused_before_anything_is_loaded(
    folders: dict[str, Path], run: Callable[..., str], tmp_path: Path
) -> None:
    models = ["--between", folders["before"], folders["after"]]
    target = ["--target", spec("a", folders["levels"])]
    others = ["--out_of_domain", spec("b", folders["stripes"])]
    soup = ["--soup_of", folders["before"], folders["after"]]
    cases = {
        ("--between", folders["before"], *target, *others): "between: needs two models",
        ("--between", folders["before"], folders["before"], *target, *others): "names the same model twice",
        ("--between", folders["before"], "sar-vit-tiny", *target, *others): "model sar-vit-tiny: no such folder",
        (*target, *others): "between or soup_of: name the models",
        (*models, *target, *others, "--alphas", 1.5): "alphas 1.5: must lie between 0",
        (*models, *target, *others, "--choose", 0.25): "choose 0.25: must be one of mean, target",
        (*models, *target, *others, "--choose", "uniform"): "choose uniform: must be one of",
        (*soup, *target, *others, "--soup_weights", 1): "soup_weights: needs a number above 0 for each of the 2",
        (*soup, *target, *others, "--soups", "best"): "soups best: must be of uniform, greedy",
        ("--soup_of", folders["before"], *target, *others): "needs two or more different models",
        (*models, *target, "--out_of_domain", spec("a", folders["stripes"])): "set a: two sets have this name",
        (*models, *others, "--target", "levels"): "must be NAME=KIND:PATH",
        (*models, *others, "--target", "a=zero_shoot:x"): "did you mean `zero_shot`?",
        (*models, *others, "--target", f"a=zero_shot:{tmp_path / 'none'}"): "no folder",
    }
    for words, message in cases.items():
        said = run("recipes/ensemble.py", *words, "--out", tmp_path / "out", code=2)
        assert message in said and "Traceback" not in said, said
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="choose predictions"):
        plan_points([str(folders["before"]), str(folders["after"])], [0, 1], [], [], [], [], "predictions")
