"""One run per output folder, and what of it may differ when it goes on."""

import json
import shutil
import signal
import threading
from dataclasses import fields
from pathlib import Path

import pytest

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.checkpoints import last_complete, new_checkpoint
from sarlang_sft.contrastive.arguments import PairModelArguments, PairTrainArguments
from sarlang_sft.errors import InputError
from sarlang_sft.run_facts import (
    FREE_GROUPS,
    MEANS,
    NOTHING,
    OTHER_SCORES,
    ROUNDING,
    SAME_IMAGES,
    SCHEDULE,
    Difference,
    Facts,
    base_fingerprint,
    collect_facts,
    find_differences,
)
from sarlang_sft.runs import FACTS, FINISHED, Run, open_run, sees
from sarlang_sft.signals import SIGNALS
from sarlang_sft.tuning import TuningArguments


@pytest.fixture
def enter(tiny: Path, data: Path, tmp_path: Path) -> object:
    """Opens the run in `tmp_path/out`, or in another folder."""

    def enter(out: Path = tmp_path / "out", **options: object) -> Run:
        training = {"max_steps": 8, "report_to": "none", "use_cpu": True, **options}
        of_data = DataArguments(str(training.pop("data", data)), turns_per_image=training.pop("turns_per_image", None))
        model = ModelArguments(str(training.pop("model", tiny)), dtype="float32")
        tuning = TuningArguments(lora_r=training.pop("lora_r", 8))
        return open_run(model, tuning, of_data, TrainArguments(output_dir=str(out), **training))

    return enter


def write(run: Run, *steps: int) -> None:
    for step in steps:
        with new_checkpoint(run.folder, step, run.facts, run.ranks) as building:
            (building / "weights").write_text(str(step))


def test_every_name_in_the_table_of_options_is_an_option() -> None:
    classes = (ModelArguments, TuningArguments, DataArguments, TrainArguments, PairModelArguments, PairTrainArguments)
    options = {field.name for one in classes for field in fields(one)}
    assert set(MEANS) <= options and all(any(name.startswith(group) for name in options) for group in FREE_GROUPS)
    decided_by_hand = {name for name in options if name not in MEANS and not name.startswith(FREE_GROUPS)}
    assert {"learning_rate", "seed", "lora_r", "max_tokens_per_row", "image_ops", "turns_per_image"} <= decided_by_hand


def test_a_run_keeps_its_id_until_it_is_finished(enter: object, tmp_path: Path) -> None:
    first = enter()
    assert first.checkpoint is None and enter().id == first.id
    write(first, 4, 8)
    resumed = enter()
    assert (resumed.id, resumed.checkpoint) == (first.id, tmp_path / "out/checkpoint-8")
    (tmp_path / "out/run.json").unlink()  # its checkpoints know it too
    assert enter().id == first.id
    resumed.leave(FINISHED)
    with pytest.raises(SystemExit) as done:
        enter()
    assert done.value.code == 0
    longer = enter(max_steps=20)
    assert (longer.id, longer.checkpoint) == (first.id, tmp_path / "out/checkpoint-8")


def test_a_finished_run_without_checkpoints_says_how_to_train_anew(
    enter: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    enter(save_strategy="no").leave(FINISHED)
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        enter(save_strategy="no")
    said = capsys.readouterr().out
    assert done.value.code == 0 and "this run is finished. To train anew, choose another output_dir" in said
    assert "max_steps" not in said, "there is nothing to train longer from"
    with pytest.raises(InputError, match=r"left no checkpoint to train longer from \(save_strategy no\)"):
        enter(save_strategy="no", max_steps=20)


def test_another_run_is_not_mixed_with_one_that_left_something(enter: object, tmp_path: Path) -> None:
    first = enter()
    assert enter(lora_r=4).id != first.id, "nothing was there to go on with"
    run = enter(lora_r=4)
    write(run, 4)
    with pytest.raises(InputError, match=r"lora_r: 4 then, 8 now \(set it back\).* choose another output_dir"):
        enter()
    with pytest.raises(InputError, match="holds a run already"):
        enter(lora_r=4, resume="never")
    run.leave(FINISHED)
    with pytest.raises(InputError, match="its run is finished and was made otherwise: lora_r: 4 then, 8 now"):
        enter()
    fork = enter(tmp_path / "fork", lora_r=4, resume=str(tmp_path / "out/checkpoint-4"))
    assert fork.id != run.id and fork.checkpoint == tmp_path / "out/checkpoint-4"
    assert enter(tmp_path / "fork", lora_r=4, resume=str(fork.checkpoint)).checkpoint == fork.checkpoint
    write(fork, 8)
    again = enter(tmp_path / "fork", lora_r=4, resume=str(fork.checkpoint))
    assert (again.id, again.checkpoint) == (fork.id, tmp_path / "fork/checkpoint-8"), "the same command goes on"
    write(run, 8)
    with pytest.raises(InputError, match=r"holds another run than .* go on with it by `--resume auto`"):
        enter(tmp_path / "fork", lora_r=4, resume=str(tmp_path / "out/checkpoint-8"))


def test_checkpoints_ahead_of_the_chosen_one_are_set_aside(
    enter: object, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(enter(), 4, 8)
    run = enter(resume=str(tmp_path / "out/checkpoint-4"))
    assert run.checkpoint == last_complete(tmp_path / "out") == tmp_path / "out/checkpoint-4"
    [aside] = (tmp_path / "out").glob("left-checkpoint-8-*")
    assert f"checkpoint-8 is ahead of it and is now {aside}" in capsys.readouterr().out


def test_a_resume_says_what_differs_and_what_follows(
    enter: object, data: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(enter(), 4)
    shutil.copytree(data, tmp_path / "moved")
    shutil.copytree(tiny, tmp_path / "model")
    enter(max_steps=12, logging_steps=3, data=tmp_path / "moved", model=tmp_path / "model", tf32=None)
    lines = capsys.readouterr().out.splitlines()
    assert f"Resuming from {tmp_path}/out/checkpoint-4" in lines
    assert f"  max_steps: 8 then, 12 now ({SCHEDULE})" in lines
    assert any(line.startswith("  logging_steps: ") and line.endswith(f"3 now ({NOTHING})") for line in lines)
    assert any(line.startswith("  model_name_or_path: ") and line.endswith(f"({NOTHING})") for line in lines)


@pytest.fixture
def facts(tiny: Path, data: Path, tmp_path: Path) -> Facts:
    training = TrainArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    return collect_facts(ModelArguments(str(tiny)), TuningArguments(), DataArguments(str(data)), training)


@pytest.mark.parametrize(
    ("change", "name", "means"),
    [
        ({"base": "0"}, "base model", None),
        ({"world_size": 2, "rows_per_step": 2}, "rows per step", None),
        ({"world_size": 2}, "processes", f"{ROUNDING}; dropout is drawn anew"),
        ({"world_size": 2, "deepspeed": {}}, "deepspeed", None),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "deepspeed", None),
        ({"versions": {"torch": "0"}}, "torch", "results may differ"),
        ({"data": []}, "data", None),
    ],
)
def test_what_may_differ(change: Facts, name: str, means: str | None, facts: Facts) -> None:
    assert find_differences(facts, facts) == []
    first = find_differences({**facts, **change}, facts)[0] if name != "torch" else None
    found = {difference.name: difference.means for difference in find_differences({**facts, **change}, facts)}
    assert found[name] == means and (first is None or first.means == means)


def test_other_training_rows_are_refused_and_other_val_rows_are_not(facts: Facts) -> None:
    other = json.loads(json.dumps(facts))
    other["data"][0]["val.parquet"] = "x"
    [val] = find_differences(facts, other)
    assert val.means == "scores on val are not those of before"
    other["data"][0]["train.parquet"] = "x"
    assert find_differences(facts, other)[0].means is None


def test_every_file_that_makes_a_model_is_in_its_fingerprint(tiny: Path, tmp_path: Path) -> None:
    first = base_fingerprint(str(tiny))
    shutil.copytree(tiny, tmp_path / "copy")
    assert base_fingerprint(str(tmp_path / "copy")) == first
    (tmp_path / "copy/README.md").write_text("words")
    assert base_fingerprint(str(tmp_path / "copy")) == first
    weights = tmp_path / "copy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    second = base_fingerprint(str(tmp_path / "copy"))
    (tmp_path / "copy/tokenizer.json").write_text("{}")
    assert len({first, second, base_fingerprint(str(tmp_path / "copy"))}) == 3


def test_a_model_that_nobody_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="model nobody/nothing: cannot be looked up"):
        base_fingerprint("nobody/nothing")


def test_a_finished_run_stays_finished_whatever_signals_come(enter: object, tmp_path: Path) -> None:
    run = enter()
    run.leave(FINISHED)
    assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN, signal.SIG_IGN]


def test_files_that_do_not_say_what_a_run_was_made_of_are_no_run(enter: object, tmp_path: Path) -> None:
    run = enter()
    (tmp_path / "out/run.json").write_text(json.dumps({"id": run.id, "state": "running", "facts": {}}))
    assert enter().id != run.id
    with new_checkpoint(run.folder, 4, {"run_id": run.id}, run.ranks):
        pass
    with pytest.raises(InputError, match="checkpoint-4: does not say what it was made of"):
        enter()


def test_a_rank_waits_for_a_file_system_that_shows_files_late(tmp_path: Path) -> None:
    content = {"id": "1", "state": "running", "facts": dict.fromkeys(FACTS)}
    late = threading.Timer(0.3, lambda: (tmp_path / "run.json").write_text(json.dumps(content)))
    late.start()
    assert sees(tmp_path, "1")
    late.join()
    assert not sees(tmp_path, "2", seconds=0)


def test_other_pictures_under_the_same_rows_are_not_said_to_change_nothing(facts: Facts) -> None:
    other = json.loads(json.dumps(facts))
    other["data"][0]["image_root"] = other["options"]["image_root"] = "RGBimages"
    assert {difference.means for difference in find_differences(facts, other)} == {SAME_IMAGES}
    other = json.loads(json.dumps(facts))
    other["data"][0]["manifest.json"] = "x"
    [difference] = find_differences(facts, other)
    assert difference.means == SAME_IMAGES


def test_evaluation_is_free_unless_the_learning_rate_follows_it(facts: Facts) -> None:
    def difference(scheduler: str, **options: object) -> Difference:
        was = {**facts, "options": {**facts["options"], "lr_scheduler_type": scheduler}}
        [found] = find_differences(was, {**was, "options": {**was["options"], **options}})
        return found

    assert difference("linear", eval_steps=7).means == NOTHING
    assert difference("linear", val_questions=7).means == OTHER_SCORES
    assert "follows the scores" in difference("reduce_lr_on_plateau", eval_steps=7).means


def test_reports_beside_a_model_do_not_make_it_another(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    for name in ("run.json", "vqa.json", "all_results.json", "notes.txt"):
        (tmp_path / "copy" / name).write_text("{}")
    assert base_fingerprint(str(tmp_path / "copy")) == base_fingerprint(str(tiny))
    for name in ("chat_template.jinja", "config.json", "merges.txt", "tokenizer.model"):
        before = base_fingerprint(str(tmp_path / "copy"))
        (tmp_path / "copy" / name).write_text("other")
        assert base_fingerprint(str(tmp_path / "copy")) != before, name
