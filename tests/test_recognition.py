"""Recognition by contrastive models: class folders, zero-shot, linear probe, fine-tuning, and their entry files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageDraw

from sarlang_sft.contrastive import linear_probe as probing
from sarlang_sft.contrastive.class_folder import ClassFolder, check_same_classes, few_shots, read_class_folder
from sarlang_sft.contrastive.fine_tuning import Schedule, fine_tuned
from sarlang_sft.contrastive.models import ContrastiveModel, load_model, save_model
from sarlang_sft.contrastive.recognition import Scored, confusion_counts, recognition_figures, write_recognition
from sarlang_sft.contrastive.zero_shot import class_features, read_templates, zero_shot
from sarlang_sft.errors import InputError

SHAPES = ("bar", "disc", "pole")
VEHICLES = ("BMP2", "BRDM_2", "ZIL131")


def draw(shape: str, rng: np.random.Generator) -> Image.Image:
    """A bright shape of some size at some place on noise, 64 pixels wide."""
    picture = Image.fromarray(rng.integers(0, 90, (64, 64), np.uint8))
    pen = ImageDraw.Draw(picture)
    x, y, r = *rng.integers(24, 40, 2).tolist(), int(rng.integers(12, 18))
    if shape == "disc":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=230)
    elif shape == "bar":
        pen.rectangle((x - r, y - 3, x + r, y + 3), fill=230)
    else:
        pen.rectangle((x - 3, y - r, x + 3, y + r), fill=230)
    return picture


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `test` with three classes, of 12 and 8 images."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(5)
    for split, count in (("train", 12), ("test", 8)):
        for shape in SHAPES:
            (root / split / shape).mkdir(parents=True)
            for number in range(count):
                draw(shape, rng).save(root / split / shape / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def resnet() -> ContrastiveModel:
    torch.manual_seed(0)
    return load_model("sar-resnet-tiny")


@pytest.fixture(scope="module")
def vit() -> ContrastiveModel:
    torch.manual_seed(0)
    return load_model("sar-vit-tiny")


def make_classes(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("L", (20, 30), 60 * number).save(root / name / "a.png")
    return root


def test_images_lie_at_any_depth_and_what_is_none_is_told(tmp_path: Path) -> None:
    root = make_classes(tmp_path / "set", "ZSU_23_4", "T72")
    (root / "T72/deep/er").mkdir(parents=True)
    Image.new("L", (20, 20)).save(root / "T72/deep/er/b.TIF")
    (root / "T72/notes.txt").write_text("no image")
    (root / "loose.png").write_bytes(b"")
    (root / ".cache").mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "T72/out.png").symlink_to(tmp_path / "secret.png")
    found = read_class_folder(root)
    assert (found.names, found.spoken) == (["T72", "ZSU_23_4"], ["T72", "ZSU 23 4"])
    assert [path.name for path in found.paths] == ["a.png", "b.TIF", "a.png"] and found.labels.tolist() == [0, 0, 1]
    assert {path.name: why for path, why in found.left_out.items()} == {
        "notes.txt": "not an image file",
        "loose.png": "not in a class folder",
        "out.png": "a link out of the folder",
    }


def test_folders_without_classes_to_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--root .*nowhere: no such folder"):
        read_class_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"at least two class folders, holds T72"):
        read_class_folder(make_classes(tmp_path / "one", "T72"))
    empty = make_classes(tmp_path / "empty", "T72", "BMP2")
    (empty / "D7").mkdir()
    (empty / "D7/readme.txt").write_text("none")
    with pytest.raises(InputError, match=r"class D7 has no images .*\.png"):
        read_class_folder(empty)
    with pytest.raises(InputError, match=r"T_72 is spoken as 'T 72', as T 72 is"):
        read_class_folder(make_classes(tmp_path / "same", "T 72", "T_72"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/D7").symlink_to(empty / "T72")
    make_classes(tmp_path / "linked", "T72")
    with pytest.raises(InputError, match="leaves the image root"):
        read_class_folder(tmp_path / "linked")


def test_a_file_says_what_classes_are_called(tmp_path: Path) -> None:
    root, file = make_classes(tmp_path / "set", "T72", "ZSU_23_4"), tmp_path / "names.yaml"
    file.write_text("T72: battle tank\nZSU_23_4: anti-aircraft gun\nD7: bulldozer\n")
    assert read_class_folder(root, file).spoken == ["battle tank", "anti-aircraft gun"]
    file.write_text(json.dumps({"T72": "battle tank", "ZSU_23_4": "gun"}))
    assert read_class_folder(root, file).spoken == ["battle tank", "gun"]
    for content, said in (
        ("T72: battle tank\nZSU-23-4: gun", "no name for the folder ZSU_23_4 .* did you mean `ZSU-23-4`"),
        ("T72: tank\nZSU_23_4: tank", "spoken as 'tank', as T72 is"),
        ("T72: 72\nZSU_23_4: gun", "must be two texts"),
        ("[T72]", "must hold `option: value` lines"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=said):
            read_class_folder(root, file)
    with pytest.raises(InputError, match="cannot be read"):
        read_class_folder(root, tmp_path / "none.yaml")


def test_classes_of_train_and_test_must_be_the_same(tmp_path: Path) -> None:
    train = read_class_folder(make_classes(tmp_path / "train", "A", "B", "C"))
    test = read_class_folder(make_classes(tmp_path / "test", "B", "C", "D"))
    with pytest.raises(InputError, match=r"test lacks A; .*train lacks D"):
        check_same_classes(train, test)
    with pytest.raises(InputError, match="are the same folder"):
        check_same_classes(train, train)
    check_same_classes(train, read_class_folder(make_classes(tmp_path / "other", "A", "B", "C")))


def test_template_sets_have_the_published_sizes_and_broken_files_are_explained(tmp_path: Path) -> None:
    assert [len({*read_templates(name)}) for name in ("sar", "optical", "sar_opt")] == [9, 9, 15]
    assert all(text.count("{}") == 1 for name in ("sar", "optical", "sar_opt") for text in read_templates(name))
    assert not any("SAR" in text or "radar" in text for text in read_templates("optical"))
    file = tmp_path / "mine.yaml"
    file.write_text("templates:\n  - radar picture of {} here\n")
    assert read_templates(str(file)) == ["radar picture of {} here"]
    for content, said in (
        ("", "must hold `option: value` lines"),
        ("templates:", "must hold a list of sentences under `templates:`"),
        ("templates: []", "must hold a list"),
        ("- a {}", "must hold `option: value` lines"),
        ("templates: ['a {}', 'a ship']", "sentence 2, 'a ship'"),
        ("templates: ['{} and {}']", "sentence 1"),
        ("templates: ['{x} and {}']", "no other brace"),
        ("templates: [7]", "sentence 1, 7"),
        ("templates: ['a {}", "not valid YAML"),
    ):
        file.write_text(content)
        with pytest.raises(InputError, match=said):
            read_templates(str(file))
    with pytest.raises(InputError, match=r"--templates optcal: no set .* did you mean `optical`"):
        read_templates("optcal")


@pytest.mark.parametrize("name", ["sar-vit-tiny", "sar-coca-tiny"])
def test_zero_shot_is_the_plain_reference(name: str, shapes: Path) -> None:
    torch.manual_seed(1)
    model = load_model(name)
    folder = read_class_folder(shapes / "test")
    templates = read_templates("sar")[:3]
    scored = zero_shot(model, folder, templates, batch_size=7)
    with torch.no_grad():
        classes = []
        for said in folder.spoken:
            tokens = open_clip.get_tokenizer(name)([text.replace("{}", said) for text in templates])
            features = model.model.encode_text(tokens)
            mean = (features / features.norm(dim=1, keepdim=True)).mean(dim=0)
            classes.append(mean / mean.norm())
        images = model.model.encode_image(torch.stack([model.read(path) for path in folder.paths]))
        wanted = (images / images.norm(dim=1, keepdim=True)) @ torch.stack(classes).T
    assert np.allclose(scored.scores, wanted, atol=1e-5) and (scored.labels == folder.labels).all()
    assert np.ptp(scored.scores, axis=0).min() > 1e-4, "images differ"


def test_templates_are_averaged_as_unit_vectors(vit: ContrastiveModel) -> None:
    one, other = (class_features(vit, ["tank"], [text]) for text in ("a {}", "an optical image of a {} from above"))
    both = class_features(vit, ["tank"], ["a {}", "an optical image of a {} from above"])
    assert torch.allclose(both, torch.nn.functional.normalize(one + other), atol=1e-6)


def test_top_k_is_counted_by_hand_and_left_out_where_it_means_nothing() -> None:
    scores = np.array([[5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 0]], float)
    scored = Scored(scores, np.array([0, 2, 4, 1]), {})
    names = list("abcdef")
    with pytest.raises(InputError, match="class d: none of its images can be read"):
        recognition_figures([scored], names)
    all_classes = Scored(np.tile(scores[:1], (6, 1)), np.arange(6), {})
    figures = recognition_figures([all_classes], names)
    assert {name: figure["value"] for name, figure in figures.items()} == pytest.approx(
        {"top1": 1 / 6, "top3": 3 / 6, "top5": 5 / 6, "mean_per_class": 1 / 6}
    )
    assert figures["top3"]["low"] == pytest.approx(0.1876, abs=1e-4), "Wilson's, of 3 of 6"
    assert confusion_counts(scored).tolist()[:2] == [[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], "of equals the first"
    four = Scored(np.eye(4), np.arange(4), {})
    assert list(recognition_figures([four], list("abcd"))) == ["top1", "top3", "mean_per_class"]
    two = Scored(np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 0, 1]), {})
    assert list(recognition_figures([two], ["a", "b"])) == ["top1", "mean_per_class"]
    with pytest.raises(InputError, match="not all finite"):
        recognition_figures([Scored(np.full((2, 2), np.nan), np.arange(2), {})], ["a", "b"])


def test_the_mean_over_classes_is_not_that_over_images_and_seeds_widen_the_interval() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    always_first = Scored(np.tile([[1.0, 0.0]], (10, 1)), labels, {})
    figures = recognition_figures([always_first], ["a", "b"])
    assert (figures["top1"]["value"], figures["mean_per_class"]["value"]) == (0.8, 0.5)
    always_second = always_first._replace(scores=always_first.scores[:, ::-1])
    both = recognition_figures([always_first, always_second], ["a", "b"])
    assert both["top1"] == {"value": pytest.approx(0.5), "low": 0.0, "high": 1.0}, "Student's t of 0.8 and 0.2"
    same = recognition_figures([always_first] * 3, ["a", "b"])["top1"]
    assert same == pytest.approx(figures["top1"]), "never narrower than over images"


def test_unreadable_images_leave_the_denominator_and_are_told(
    vit: ContrastiveModel, shapes: Path, tmp_path: Path
) -> None:
    folder = read_class_folder(shapes / "test")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    with_broken = folder._replace(paths=[broken, *folder.paths], labels=np.array([2, *folder.labels]))
    templates = read_templates("sar")[:2]
    runs = [zero_shot(vit, with_broken, templates)]
    assert np.allclose(runs[0].scores, zero_shot(vit, folder, templates).scores, atol=1e-6)
    content = write_recognition(tmp_path / "out.json", "zero_shot", "two", "vit", folder, runs, {"more": 1})
    assert content == json.loads((tmp_path / "out.json").read_text())
    assert content["n"] == 24 == np.sum(content["confusion"]) and list(content["unreadable"]) == [str(broken)]
    assert content["by_class"]["pole"]["n"] == 8 and content["more"] == 1
    assert content["baselines"]["guessing"] == pytest.approx(1 / 3)
    right = np.trace(content["confusion"])
    assert content["figures"]["top1"]["value"] == pytest.approx(right / 24)


def planted(rng: np.random.Generator, n: int, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 20) whose classes lie apart in three of the directions."""
    labels = np.arange(n) % classes
    centres = np.random.default_rng(0).normal(0, 4, (classes, 20)) * (np.arange(20) < 3)
    return centres[labels] + rng.normal(0, 1, (n, 20)), labels


def test_a_probe_separates_what_is_planted_and_nothing_where_labels_are_shuffled() -> None:
    rng = np.random.default_rng(3)
    (features, labels), (others, truths) = planted(rng, 160), planted(rng, 400)
    names = list("abcd")
    good = probing.fit_probe(features, labels, names, seed=0)
    assert good.classifier.score(others, truths) > 0.9 and good.held_out_accuracy > 0.9 and good.converged
    shuffled = probing.fit_probe(features, rng.permutation(labels), names, seed=0)
    assert shuffled.classifier.score(others, truths) < 0.45 and shuffled.held_out_accuracy < 0.6
    scores = probing.class_scores(good.classifier, others)
    assert (scores.argmax(axis=1) == good.classifier.predict(others)).all()


def test_two_classes_have_two_scores() -> None:
    features, labels = planted(np.random.default_rng(3), 60, classes=2)
    classifier = probing.fit(features, labels, 1.0)
    scores = probing.class_scores(classifier, features)
    assert scores.shape == (60, 2) and (scores.argmax(axis=1) == classifier.predict(features)).all()


def test_l2_is_the_best_on_the_held_out_part() -> None:
    rng = np.random.default_rng(4)
    features, held_out = rng.normal(size=(40, 60)), rng.normal(size=(400, 60))
    weights = rng.normal(size=60)
    labels, truths = ((x @ weights + rng.normal(0, 4, len(x)) > 0).astype(int) for x in (features, held_out))
    l2, accuracy = probing.choose_l2(features, labels, held_out, truths)
    grid = [probing.fit(features, labels, 10.0**power).score(held_out, truths) for power in range(-6, 7, 2)]
    assert accuracy >= max(grid) > min(grid) and 1e-6 <= l2 <= 1e6
    assert probing.fit(features, labels, l2).score(held_out, truths) == accuracy
    assert probing.choose_l2(features, labels, held_out, np.ones(400, int))[0] != l2, "other truths choose another"


def test_features_are_those_before_the_projection_and_the_model_is_whole_again(vit: ContrastiveModel) -> None:
    pictures = torch.randn(3, 3, 64, 64)
    projected = vit.model.encode_image(pictures)
    with probing.before_projection(vit):
        before = vit.model.encode_image(pictures)
    assert torch.allclose(before @ vit.model.visual.proj, projected, atol=1e-5)
    assert torch.equal(vit.model.encode_image(pictures), projected)


def test_scaling_takes_mean_and_one_number_from_train() -> None:
    train, test = np.random.default_rng(0).normal(7, 1e-5, (50, 4)), np.full((2, 4), 7.0)
    one, other = probing.scaled(train, test)
    assert np.allclose(one.mean(axis=0), 0, atol=1e-6) and np.square(one).mean() == pytest.approx(1)
    assert np.allclose(other, (7 - train.mean(axis=0)) / np.sqrt(np.square(train - train.mean(axis=0)).mean()))
    assert np.isfinite(probing.scaled(np.ones((5, 2)), np.ones((1, 2)))[1]).all()
    with pytest.raises(InputError, match="not all finite"):
        probing.scaled(train, np.array([[np.nan] * 4]))


def test_shots_are_as_many_of_every_class_and_others_choose_l2(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [5, 9, 3])
    train = ClassFolder(tmp_path, list("abc"), list("abc"), [tmp_path / str(row) for row in range(17)], labels, {})
    drawn, rest = few_shots(train, 3, seed=1)
    assert np.bincount(labels[drawn]).tolist() == [3, 3, 3] and {*drawn} | {*rest} == {*range(17)}
    assert not {*drawn} & {*rest} and (few_shots(train, 3, seed=1)[0] == drawn).all()
    assert (few_shots(train, 3, seed=2)[0] != drawn).any()
    with pytest.raises(InputError, match="class c has 3 images"):
        few_shots(train, 4, seed=0)
    with pytest.raises(InputError, match="must be 1 or more"):
        few_shots(train, 0, seed=0)
    features = np.random.default_rng(0).normal(size=(17, 5))
    with pytest.raises(InputError, match="class c has no further image"):
        probing.fit_few_shots(features, train, 3, seed=0)
    probe = probing.fit_few_shots(features, train, 2, seed=0)
    seen = probing.fit(features[few_shots(train, 2, 0)[0]], labels[few_shots(train, 2, 0)[0]], probe.l2)
    assert np.array_equal(seen.coef_, probe.classifier.coef_), "fitted on the shots alone"
    with pytest.raises(InputError, match="class b has 1 images"):
        probing.fit_probe(features[:6], labels[:6], ["a", "b"], seed=0)


def test_nothing_of_the_test_chooses_l2(vit: ContrastiveModel, shapes: Path, tmp_path: Path) -> None:
    train, test = (read_class_folder(shapes / split) for split in ("train", "test"))
    runs, chosen = probing.linear_probe(vit, train, test, None, [0], 16)
    wrong = test._replace(labels=(test.labels + 1) % 3)
    turned, again = probing.linear_probe(vit, train, wrong, None, [0], 16)
    assert chosen == again and np.array_equal(runs[0].scores, turned[0].scores)
    assert list(chosen["chosen"]) == ["0"] and chosen["train_images"] == 36
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    more = train._replace(paths=[broken, *train.paths], labels=np.array([1, *train.labels]))
    with_broken = probing.linear_probe(vit, more, test, None, [0], 16)
    assert list(with_broken[1]["train_unreadable"]) == [str(broken)]
    assert with_broken[1]["chosen"]["0"] == chosen["chosen"]["0"], "labels stay with their images"
    assert np.array_equal(with_broken[0][0].scores, runs[0].scores)


def test_fine_tuning_learns_shapes_and_leaves_the_model_as_it_was(resnet: ContrastiveModel, shapes: Path) -> None:
    before = {name: value.clone() for name, value in resnet.model.state_dict().items()}
    train, test = (read_class_folder(shapes / split) for split in ("train", "test"))
    schedule = Schedule(epochs=6, learning_rate=3e-3, weight_decay=0.01, batch_size=12)
    resnet.image_ops = ["shift:4"]
    runs, about = fine_tuned(resnet, train, test, None, [0], schedule)
    figures = recognition_figures(runs, test.names)
    assert figures["top1"]["low"] > 1 / 3, "better than guessing, surely"
    assert about == {"train_images": 36, "train_unreadable": {}}
    assert all(torch.equal(value, before[name]) for name, value in resnet.model.state_dict().items())


def test_seeds_repeat_and_augmentation_is_of_training_alone(shapes: Path) -> None:
    torch.manual_seed(2)
    model = load_model("sar-vit-tiny", image_ops=["shift:6"])
    train, test = (read_class_folder(shapes / split) for split in ("train", "test"))
    test = test.only(np.arange(4))
    schedule = Schedule(epochs=1, learning_rate=1e-3, weight_decay=0.0, batch_size=16)
    runs = [fine_tuned(model, train, test, 4, seeds, schedule)[0] for seeds in ([0, 1], [0])]
    assert np.array_equal(runs[0][0].scores, runs[1][0].scores) and (runs[0][0].scores != runs[0][1].scores).any()
    model.image_ops = []
    plain = fine_tuned(model, train, test, 4, [0], schedule)[0][0]
    assert not np.array_equal(plain.scores, runs[1][0].scores), "training saw shifted images"
    still = Schedule(1, 0.0, 0.0, 16)
    unmoved = []
    for ops in (["shift:6"], []):
        model.image_ops = ops
        unmoved.append(fine_tuned(model, train, test, 4, [0], still)[0][0].scores)
    assert np.array_equal(*unmoved), "the test is read without shifts"
    with pytest.raises(InputError, match="the loss is"):
        fine_tuned(model, train, test, 4, [0], Schedule(3, 1e30, 0.0, 4))


def test_entry_files_from_end_to_end(run: Callable[..., str], shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_model(load_model("sar-vit-tiny"), tmp_path / "model")
    model, train, test = ("--model", tmp_path / "model"), shapes / "train", shapes / "test"
    out, names = tmp_path / "zero.json", tmp_path / "names.json"
    names.write_text(json.dumps({"disc": "round thing", "bar": "wide box", "pole": "high box"}))
    words = [*model, "--root", test, "--templates", "sar_opt", "--class_names", names, "--out", out]
    told = run("eval/zero_shot.py", *words, "--confusion", tmp_path / "pictures/zero.png")
    content = json.loads(out.read_text())
    assert (content["task"], content["protocol"], content["n"]) == ("zero_shot", "15 templates, sar_opt", 24)
    assert content["classes"] == sorted(SHAPES) and content["spoken"] == ["wide box", "round thing", "high box"]
    assert list(content["figures"]) == ["top1", "mean_per_class"] and "guessing gives 33.3" in told
    assert Image.open(tmp_path / "pictures/zero.png").size[0] > 300

    out = tmp_path / "probe.json"
    both = [*model, "--train", train, "--test", test, "--out", out]
    told = run("eval/linear_probe.py", *both, "--shots", 4, "--seeds", 0, 1)
    assert "seed 0: L2 " in told and "right on the held-out part of train" in told
    content = json.loads(out.read_text())
    assert (content["task"], content["protocol"]) == ("linear_probe", "4 shots, seeds 0, 1")
    assert len(content["runs"]) == 2 and np.sum(content["confusion"]) == 48
    assert {"value", "low", "high"} == content["figures"]["top1"].keys()

    run("eval/fine_tune.py", *both, "--epochs", 1, "--shots", 2)
    assert json.loads(out.read_text())["task"] == "fine_tuned"

    assert "different whole numbers" in run("eval/linear_probe.py", *both, "--seeds", 1, 1, code=2)
    told = run(
        "eval/linear_probe.py", *both[:-4], "--test", make_classes(tmp_path / "o", "A", "B"), "--out", out, code=2
    )
    assert "their classes differ" in told and "lacks bar, disc, pole" in told
    assert "is a folder" in run("eval/zero_shot.py", *words[:-1], tmp_path, code=2)


def test_real_vehicles_are_told_apart_by_a_probe(real_data: Path, resnet: ContrastiveModel) -> None:
    def some(split: str, count: int) -> ClassFolder:
        root = real_data / "mstar10" / split
        paths = [path for name in VEHICLES for path in sorted((root / name).iterdir())[:: 180 // count][:count]]
        return ClassFolder(root, list(VEHICLES), list(VEHICLES), paths, np.repeat(range(3), count), {})

    runs, _ = probing.linear_probe(resnet, some("train", 30), some("test", 30), None, [0], 32)
    assert recognition_figures(runs, list(VEHICLES))["top1"]["low"] > 1 / 3
