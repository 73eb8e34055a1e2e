"""The plan of a training: every dialogue once, rows within budget, steps of equal weight, the same every time."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image

from sarlang_sft.backbones import find_backbone
from sarlang_sft.collate import DialogueCollator
from sarlang_sft.errors import InputError
from sarlang_sft.lengths import Lengths, measure
from sarlang_sft.loading import load_processor
from sarlang_sft.mixture import DataSource, Mixture, parse_sources, read_mixture
from sarlang_sft.packing import Layout, PlannedRows, find_left_out, plan_epochs, tokens_of
from sarlang_sft.records import Dialogue, Record, Turn, to_table, write_data_folder
from sarlang_sft.trees import PADDING, TreeCollator

LORA = ROOT / "recipes/qwen_lora.py"


def flatten(rows: list) -> list[int]:
    return [int(number) for row in rows for tree in row for number in tree]


def make_lengths(images: int = 300, seed: int = 0) -> Lengths:
    """Images of 64-256 tokens with 1-20 dialogues of 15-80 tokens."""
    rng = np.random.default_rng(seed)
    record = np.repeat(np.arange(images), rng.integers(1, 21, images))
    visual = rng.integers(64, 257, images)[record]
    branch = rng.integers(15, 81, len(record))
    return Lengths(record, visual, visual + 20, branch, np.ones(len(record), dtype=bool))


def plan(lengths: Lengths, layout: Layout, seed: int = 0, epochs: int = 1, source: DataSource | None = None) -> list:
    """The epochs of one source."""
    return plan_epochs(Everything(lengths, source), lengths, find_left_out(lengths, layout), layout, seed, epochs)


class Everything(Mixture):
    """A mixture of one source, by default with weight 1."""

    def __init__(self, lengths: Lengths, source: DataSource | None) -> None:
        self.sources = [source or DataSource("x")]
        self.source = np.zeros(len(lengths.record), dtype=int)
        self.task = np.array(["counting"] * len(lengths.record), dtype=object)


@pytest.mark.parametrize("trees", [True, False])
def test_every_epoch_takes_every_dialogue_once_in_another_order(trees: bool) -> None:
    lengths = make_lengths()
    layout = Layout(trees, row_tokens=1024, turns_per_image=None, rows_per_step=8)
    epochs = plan(lengths, layout, 1, 3)
    for rows in epochs:
        assert set(flatten(rows)) == set(range(len(lengths.record))) and len(rows) % 8 == 0
        assert len(flatten(rows)) == len(lengths.record) if trees else len(flatten(rows)) < len(lengths.record) + 8
    assert flatten(epochs[0]) != flatten(epochs[1]) and len({len(rows) for rows in epochs}) == 1
    again = plan(lengths, layout, 1, 3)
    assert [flatten(rows) for rows in again] == [flatten(rows) for rows in epochs]
    assert flatten(plan(lengths, layout, 2, 1)[0]) != flatten(epochs[0])


def test_rows_keep_their_budget_and_trees_their_image_and_steps_are_full() -> None:
    lengths = make_lengths()
    layout = Layout(True, row_tokens=1024, turns_per_image=None, rows_per_step=8)
    rows = plan(lengths, layout, 0, 1)[0]
    tokens = np.array([sum(tokens_of(tree, lengths) for tree in row) for row in rows])
    assert tokens.max() <= 1024 and len(rows) % 8 == 0 and tokens.mean() > 0.9 * 1024
    assert all(len(set(lengths.record[tree])) == 1 for row in rows for tree in row)
    least = {image: -(-lengths.branch[lengths.record == image].sum() // 1024) for image in set(lengths.record)}
    trees = sum(len(row) for row in rows)
    assert sum(least.values()) <= trees < 1.6 * len(least), "images are cut only where they do not fit"


def test_rows_of_a_step_weigh_about_the_same_in_visual_and_in_total_tokens() -> None:
    """Ranks wait for the slowest: the spread within a step is a fraction of that of the whole epoch."""
    lengths = make_lengths(images=3000)
    rows = plan(lengths, Layout(True, row_tokens=2048, turns_per_image=None, rows_per_step=8))[0]
    visual = np.array([sum(int(lengths.visual[tree].max()) for tree in row) for row in rows]).reshape(-1, 8)
    total = np.array([sum(tokens_of(tree, lengths) for tree in row) for row in rows]).reshape(-1, 8)
    assert np.median(np.ptp(visual, axis=1)) < 0.15 * np.ptp(visual)
    assert np.median(total.max(axis=1) / total.mean(axis=1)) < 1.1


def test_flat_steps_group_lengths_but_not_answers() -> None:
    """Two kinds of dialogues, one four times as long: steps hold one kind. Classes whose names differ by a few tokens:
    steps hold them all; sorted strictly, a step would hold one or two, and a classifier learns badly from that."""
    classes = np.tile(np.arange(10), 400)
    for branch, alike in ((50 + classes // 2, 8), (np.where(classes < 5, 40, 600), 5)):
        size = np.zeros_like(classes)
        lengths = Lengths(np.arange(4000), size, size + 20, branch, np.ones(4000, dtype=bool))
        rows = plan(lengths, Layout(False, row_tokens=1, turns_per_image=None, rows_per_step=20))[0]
        steps = classes[flatten(rows)].reshape(-1, 20)
        found = np.median([len(set(step)) for step in steps])
        assert found >= 8 if alike == 8 else found <= 5


def test_turns_per_image_draws_anew_each_epoch() -> None:
    lengths = make_lengths()
    layout = Layout(True, row_tokens=1024, turns_per_image=4, rows_per_step=4)
    first, second = plan(lengths, layout, 0, 2)
    sizes = np.bincount(lengths.record)
    for rows in (first, second):
        assert np.array_equal(np.bincount(lengths.record[flatten(rows)]), np.minimum(sizes, 4))
    assert 0 < len(set(flatten(first)) & set(flatten(second))) < len(flatten(first))


def test_an_image_with_more_dialogues_than_a_row_holds_becomes_several_trees() -> None:
    lengths = Lengths(np.zeros(100, int), np.full(100, 64), np.full(100, 84), np.full(100, 50), np.ones(100, bool))
    layout = Layout(True, row_tokens=400, turns_per_image=None, rows_per_step=1)
    rows = plan(lengths, layout, 0, 1)[0]
    assert sorted(flatten(rows)) == list(range(100)) and {len(tree) for row in rows for tree in row} == {6, 4}


@pytest.mark.parametrize("trees", [True, False])
def test_epochs_of_unequal_draws_have_equally_many_rows(trees: bool) -> None:
    """Half of the dialogues, at most four of an image: how many that is changes from epoch to epoch."""
    lengths = make_lengths(images=40)
    layout = Layout(trees, row_tokens=400, turns_per_image=4, rows_per_step=4)
    epochs = plan(lengths, layout, 3, 8, DataSource("x", weight=0.5))
    assert len({len(rows) for rows in epochs}) == 1 and len({len(set(flatten(rows))) for rows in epochs}) > 1
    assert all(np.bincount(lengths.record[sorted(set(flatten(rows)))]).max() <= 4 for rows in epochs)


@pytest.mark.parametrize("trees", [True, False])
def test_too_little_data_is_refused(trees: bool) -> None:
    lengths = make_lengths(images=2)
    with pytest.raises(InputError, match=r"too few dialogues for a step of 8 rows; lower per_device_train_batch_size"):
        plan(lengths, Layout(trees, row_tokens=1024, turns_per_image=1, rows_per_step=8))
    for source in (DataSource("x", weight=0.001), DataSource("x", caps={"counting": 0})):
        with pytest.raises(InputError, match="weights and caps leave no dialogue"):
            plan(lengths, Layout(trees, row_tokens=1024, turns_per_image=1, rows_per_step=1), source=source)


def test_rows_are_those_of_their_epoch(data: Path) -> None:
    table = read_mixture([DataSource(str(data))], "train")
    epochs = [[[np.array([0, 1])], [np.array([2])]], [[np.array([3])], [np.array([0]), np.array([5, 4])]]]
    rows = PlannedRows(table, epochs, trees=True)
    names = table["id"].to_pylist()
    for epoch, expected in ((0, [[[0, 1]], [[2]]]), (1, [[[3]], [[0], [5, 4]]]), (2, [[[0, 1]], [[2]]])):
        rows.set_epoch(epoch)
        got = [[[names.index(dialogue["id"]) for dialogue in tree] for tree in rows[i]] for i in range(len(rows))]
        assert got == expected


@pytest.mark.parametrize("ops", [[], ["crop:72", "resize:120"]])
def test_measured_lengths_are_those_of_the_collators(
    ops: list[str], tinies: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    table = read_mixture([DataSource(str(data))], "train")
    for folder in tinies.values():
        backbone = find_backbone(str(folder))
        processor = load_processor(str(folder), backbone)
        lengths = measure(table, processor, backbone, ops)
        flat, trees = DialogueCollator(processor, backbone, ops), TreeCollator(processor, backbone, ops)
        for number in (0, 7, 100):
            row = table.slice(number, 1).to_pylist()
            assert flat(row)["input_ids"].shape[1] == lengths.whole[number]
        members = np.flatnonzero(lengths.record == lengths.record[0])
        batch = trees([[[table.slice(int(number), 1).to_pylist()[0] for number in members]]])
        spared = tokens_of(members, lengths) - batch["input_ids"].shape[1]
        assert 0 <= spared < 0.2 * tokens_of(members, lengths), "only what dialogues share behind the image is spared"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A data folder with every shape that trees must cope with."""
    for name, side in (("small.png", 96), ("huge.png", 288), ("lone.png", 96)):
        Image.fromarray(np.full((side, side), 90, np.uint8)).save(tmp_path / name)

    def record(name: str | None, side: int, answers: list[str], words: int = 1) -> Record:
        dialogues = [
            Dialogue(f"{name}:{i}", "boxes", "counting", [Turn("How many ships? " * words, text)])
            for i, text in enumerate(answers)
        ]
        return Record([name] if name else [], side, side, "x", "train", dialogues=dialogues)

    records = [
        record("small.png", 96, ["1.", "2.", " "]),
        record("huge.png", 288, ["1."]),
        record("lone.png", 96, ["3."]),
        record(None, 0, ["0.", "a radar measures distance"]),
        Record(["small.png"], 96, 96, "y", "train", dialogues=record("long", 96, ["4."], words=60).dialogues),
    ]
    write_data_folder(tmp_path / "data", to_table(records), [], tmp_path, {})
    return tmp_path / "data"


def test_what_no_row_can_hold_is_left_out_by_name(tiny: Path, odd: Path) -> None:
    backbone = find_backbone(str(tiny))
    processor = load_processor(str(tiny), backbone)
    table = read_mixture([DataSource(str(odd))], "train")
    lengths = measure(table, processor, backbone, [])
    layout = Layout(True, row_tokens=120, turns_per_image=None, rows_per_step=1)
    reasons = {table["id"][item.dialogue].as_py(): item.reason for item in find_left_out(lengths, layout)}
    assert reasons == {
        "small.png:2": "no answer",
        "huge.png:0": "image longer than a row",
        "long:0": "dialogue longer than a row",
    }
    small = {item.reason for item in find_left_out(lengths, Layout(True, 1 << 20, None, 1, context=120))}
    assert small == {"no answer", "longer than the model's context"}, "whatever the rows would hold"
    flat = find_left_out(lengths, Layout(False, 120, None, 1))
    assert [item.reason for item in flat] == ["no answer"]
    with pytest.raises(
        InputError, match=r"every dialogue is left out: 1 no answer .*; \d image longer than a row \(raise"
    ):
        plan(lengths, Layout(True, 5, None, 1))


@pytest.mark.parametrize("trees", ["true", "false"])
def test_odd_data_trains_and_reports_what_it_leaves_out(trees: str, tiny: Path, odd: Path, tmp_path: Path) -> None:
    """Text-only records, one-dialogue images, an image longer than a row, a dialogue longer than a row, no answer."""
    output = run_script(
        LORA, "--model_name_or_path", tiny, "--data", odd, "--output_dir", tmp_path / "out", "--dtype", "float32",
        "--max_steps", 3, "--logging_steps", 1, "--max_tokens_per_row", 120, "--image_trees", trees,
        "--gradient_checkpointing", "false", "--save_strategy", "no", "--dataloader_num_workers", 0,
    )  # fmt: skip
    left_out = [json.loads(line) for line in (tmp_path / "out/left_out.jsonl").read_text().splitlines()]
    assert {"id": "small.png:2", "images": ["small.png"], "reason": "no answer"} in left_out
    assert "train left out: no answer 1 (such as small.png)" in output
    if trees == "true":
        assert "train left out: image longer than a row 1 (such as huge.png)" in output and len(left_out) == 3
    losses = [
        entry["loss"] for entry in json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"][:3]
    ]
    assert all(np.isfinite(losses)) and min(losses) > 0


def test_a_mixture_weighs_caps_and_keeps_its_image_roots(data: Path, odd: Path, sample: Path) -> None:
    sources = parse_sources(
        [{"path": str(data), "weight": 0.5, "caps": {"identification": 30}}, {"path": str(odd), "weight": 2}], [], None
    )
    table = read_mixture(sources, "train")
    assert set(table["image_root"].to_pylist()) == {str(sample.resolve()), str(odd.parent.resolve())}
    mixture, usable = Mixture(sources, table), np.ones(len(table), dtype=bool)
    first, second = (mixture.draw(np.random.default_rng(seed), usable) for seed in (0, 1))
    tasks, origin = np.array(table["task"].to_pylist()), table["source"].to_numpy()
    for draw in (first, second):
        own = draw.dialogue[origin[draw.dialogue] == 0]
        of_source = (origin == 0).sum() - (tasks[origin == 0] == "identification").sum() + 30
        assert len(own) == len(set(own)) == round(0.5 * of_source)
        assert (tasks[own] == "identification").sum() <= 30
        other = draw.dialogue[origin[draw.dialogue] == 1]
        assert np.array_equal(np.bincount(other - len(table) + 8), np.full(8, 2))
    assert set(first.dialogue) != set(second.dialogue)
    records = table["record"].to_numpy()
    assert not set(records[origin == 0]) & set(records[origin == 1])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"weight": 1}, "needs `path: FOLDER`"),
        ({"path": "x", "wieght": 1}, "unknown key `wieght`; known are caps"),
        ({"path": "x", "weight": 0}, "weight 0 must be a number above 0"),
        ({"path": "x", "caps": {"naming": 3}}, "`naming` is no application"),
        ({"path": "x", "caps": {"counting": -1}}, "caps: `counting: -1` must be a whole number"),
        ({"path": "x", "tasks": "counting"}, "`tasks: 'counting'` must be a list"),
    ],
)
def test_mistakes_in_a_mixture_are_named(entry: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sources([entry], [], None)


@pytest.mark.parametrize("trees", ["true", "false"])
def test_a_mixture_in_yaml_trains(trees: str, tiny: Path, data: Path, odd: Path, tmp_path: Path) -> None:
    config = tmp_path / "mixture.yaml"
    config.write_text(
        f"model_name_or_path: {tiny}\noutput_dir: {tmp_path / 'out'}\ndtype: float32\nmax_steps: 2\n"
        "dataloader_num_workers: 0\n"
        f"image_trees: {trees}\nper_device_train_batch_size: 4\nmax_tokens_per_row: 600\n"
        f"data:\n  - {{path: {data}, weight: 0.3, caps: {{identification: 20}}}}\n  - {{path: {odd}}}\n"
    )
    output = run_script(LORA, "--config", config)
    assert "Done:" in output and "train left out: no answer 1" in output


def test_padding_and_batches_of_unequal_rows(tiny: Path, data: Path) -> None:
    backbone = find_backbone(str(tiny))
    collate = TreeCollator(load_processor(str(tiny), backbone), backbone, [])
    table = read_mixture([DataSource(str(data))], "train")
    members = [table.slice(number, 1).to_pylist()[0] for number in range(3)]
    assert len({dialogue["record"] for dialogue in members}) == 1
    batch = collate([[[members[0]], members], [[members[1]]]])
    lengths = (batch["segments"][..., 0] != PADDING).sum(dim=1).tolist()
    assert batch["input_ids"].shape == (2, max(lengths)) and lengths[0] > lengths[1]
    assert batch["position_ids"].shape == (3, 2, max(lengths))
    assert [len(set(itertools.chain.from_iterable(row[:, :1].tolist()))) for row in batch["segments"]] == [2, 2]
