import json
import runpy
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script, with_adapters
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from sarlang_sft.backbones import BACKBONES, training_template
from sarlang_sft.crew import Crew
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import exchange_images, read_questions
from sarlang_sft.imagery import load_picture, save_ops
from sarlang_sft.inference import Asked, answer_each, encode, load_tuned, stop_tokens
from sarlang_sft.loading import load_processor
from sarlang_sft.parity import sample_inputs
from sarlang_sft.predict import Asking, predict_to_file
from sarlang_sft.release import merge_adapter
from sarlang_sft.shared_trunk import answer_together
from sarlang_sft.tuning import TuningArguments

QWEN = BACKBONES["qwen2_5_vl"]


@pytest.fixture(scope="module", params=[{}, {"use_dora": True}, {"use_rslora": True, "projector": "lora"}])
def adapter(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose weights were moved away from zero, saved as training saves it."""
    out = tmp_path_factory.mktemp("adapter")
    model = QWEN.model_class.from_pretrained(tiny)
    tuned = with_adapters(model, QWEN, TuningArguments(**request.param))
    tuned.peft_config["default"].base_model_name_or_path = str(tiny)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(out)
    load_processor(str(tiny), QWEN).save_pretrained(out)
    save_ops(out, ["standardise"])
    return out


def test_merged_equals_adapter_and_loads_from_its_folder_alone(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    report = merge_adapter(str(tiny), str(adapter), tmp_path / "merged")
    assert report.max_abs_diff < 1e-4 * report.logit_std < report.effect
    merged, tuned = load_tuned(str(tmp_path / "merged"), None), load_tuned(str(tiny), str(adapter))
    assert merged.image_ops == ["standardise"]
    with torch.inference_mode():
        for inputs in sample_inputs(tuned):
            assert torch.allclose(merged.model(**inputs).logits, tuned.model(**inputs).logits, atol=1e-4)
    base, written = load_file(tiny / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    assert {key: value.shape for key, value in base.items()} == {key: value.shape for key, value in written.items()}
    assert any(not torch.equal(base[key], written[key]) for key in base)


def test_a_half_precision_merge_is_measured_and_a_drowned_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = QWEN.model_class.from_pretrained(tiny)
    tuned = with_adapters(model, QWEN, TuningArguments())
    torch.manual_seed(0)
    for scale, name in ((0.1, "strong"), (1e-6, "faint")):
        with torch.no_grad():
            for parameter_name, parameter in tuned.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=scale)
        tuned.save_pretrained(tmp_path / name)
        load_processor(str(tiny), QWEN).save_pretrained(tmp_path / name)
    report = merge_adapter(str(tiny), str(tmp_path / "strong"), tmp_path / "merged", "bfloat16")
    assert report.dtype == "bfloat16" and 0 < report.max_abs_diff < 0.5 * report.effect
    with pytest.raises(InputError, match=r"Merge with --dtype float32|changes no logit"):
        merge_adapter(str(tiny), str(tmp_path / "faint"), tmp_path / "lost", "bfloat16")
    assert not (tmp_path / "lost").exists()


def test_merge_refuses_an_adapter_without_effect_and_an_existing_folder(tiny: Path, tmp_path: Path) -> None:
    model = QWEN.model_class.from_pretrained(tiny)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "untrained")
    load_processor(str(tiny), QWEN).save_pretrained(tmp_path / "untrained")
    words = ["recipes/merge_adapter.py", "--base", tiny, "--adapter", tmp_path / "untrained", "--out"]
    assert "changes no logit of the base" in run_script(*words, tmp_path / "merged", code=2)
    assert not (tmp_path / "merged").exists()
    assert "exists; choose another folder" in run_script(*words, tmp_path, code=2)


def test_an_adapter_with_a_foreign_or_missing_tensor_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = QWEN.model_class.from_pretrained(tiny)
    tuned = with_adapters(model, QWEN, TuningArguments())
    tuned.save_pretrained(tmp_path)
    load_processor(str(tiny), QWEN).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = next(iter(tensors))
    save_file(
        {**tensors, key.replace("layers.0", "layers.9"): tensors[key].clone()}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(InputError, match="1 of its tensors have no place, 0 are missing"):
        load_tuned(str(tiny), str(tmp_path))
    tensors.pop(key)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="0 of its tensors have no place, 1 are missing"):
        load_tuned(str(tiny), str(tmp_path))


def test_a_checkpoint_with_missing_tensors_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    tensors = load_file(tiny / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1." not in k}, tmp_path / "model/model.safetensors")
    with pytest.raises(InputError, match=r"does not fit the family: missing_keys: \d+"):
        load_tuned(str(tmp_path / "model"), None)
    (tmp_path / "model/model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="model"):
        load_tuned(str(tmp_path / "model"), None)


def asked_of(data: Path, sample: Path, count: int) -> list[Asked]:
    """Questions of the first test images; those of one image hold the same picture."""
    pictures: dict[str, Image.Image] = {}
    asked = []
    for question in read_questions(data, "test", [], [], count):
        name = question.images[0]
        pictures.setdefault(name, load_picture(sample / name, []))
        asked.append(Asked([pictures[name]], question.turns))
    return asked


def test_batched_answers_equal_single_ones_and_transformers_own_greedy_search(
    tiny: Path, data: Path, sample: Path
) -> None:
    tuned = load_tuned(str(tiny), None)
    asked = asked_of(data, sample, 7)
    together = answer_each(tuned, asked, 12)
    for item, (text, logprob) in zip(asked, together, strict=True):
        [(alone, alone_logprob)] = answer_each(tuned, [item], 12)
        assert alone == text and alone_logprob == pytest.approx(logprob, abs=1e-3)
        inputs = encode(tuned, [item])
        output = tuned.model.generate(**inputs, max_new_tokens=12, do_sample=False)
        tokens = output[0, inputs["input_ids"].shape[1] :]
        assert tuned.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip() == text


def test_an_answer_ends_at_what_training_teaches_whatever_the_released_config_says(tinies: dict[str, Path]) -> None:
    for family, folder in tinies.items():
        tuned = load_tuned(str(folder), None)
        ends = tuned.processor.tokenizer.eos_token_id
        template = training_template(tuned.processor, tuned.backbone)
        assert tuned.processor.tokenizer.eos_token in template.replace(
            "eos_token", tuned.processor.tokenizer.eos_token
        )
        for configured in (None, 7, [7, 8]):
            tuned.model.generation_config.eos_token_id = configured
            others = [configured] if isinstance(configured, int) else configured or []
            assert stop_tokens(tuned) == sorted({ends, *others}), family


@pytest.mark.parametrize("family", sorted(BACKBONES))
def test_shared_trunk_answers_are_those_of_asking_one_by_one(
    family: str, tinies: dict[str, Path], data: Path, sample: Path
) -> None:
    """Several images of unequal numbers of questions, one lone question, a pair of images, text only, context."""
    tuned = load_tuned(str(tinies[family]), None)
    asked = asked_of(data, sample, 40)
    picture, other = asked[0].pictures[0], Image.new("RGB", (120, 90), (40, 80, 120))
    earlier = [{"question": "Is there a ship?", "answer": "Yes."}]
    asked += [
        Asked([other], [*earlier, {"question": "How many?", "answer": ""}]),
        Asked([picture, other], [{"question": "What differs?", "answer": ""}]),
        Asked([picture, other], [{"question": "How many ships are in both?", "answer": ""}]),
        Asked([], [{"question": "What is radar?", "answer": ""}]),
    ]
    assert len({id(item.pictures[0]) for item in asked if item.pictures}) > 2

    def check() -> list[int]:
        lengths = []
        for item, (text, logprob) in zip(asked, answer_together(tuned, asked, 12), strict=True):
            [(alone, alone_logprob)] = answer_each(tuned, [item], 12)
            assert text == alone and logprob == pytest.approx(alone_logprob, abs=1e-3)
            lengths.append(len(tuned.processor.tokenizer(alone)["input_ids"]))
        return lengths

    check()
    # An untaught model never stops by itself: let it stop at what it says often.
    spoken = " ".join(text for text, _ in answer_together(tuned, asked, 12))
    common = Counter(tuned.processor.tokenizer(spoken)["input_ids"]).most_common(3)
    tuned.model.generation_config.eos_token_id = [token for token, _ in common]
    assert len(set(check())) > 1, "answers of unequal length"


@pytest.mark.parametrize("exchange", [False, True])
def test_predictions_with_and_without_a_shared_trunk_are_the_same(
    exchange: bool, tiny: Path, data: Path, sample: Path, tmp_path: Path
) -> None:
    tuned = load_tuned(str(tiny), None)
    questions = read_questions(data, "test", [], [], 50)
    questions = exchange_images(questions) if exchange else questions
    prompts = {(question.images[0], question.turns[-1]["question"]) for question in questions}
    rows = {}
    for shared, size in ((True, 12), (False, 8)):
        path = tmp_path / f"{shared}.jsonl"
        assert predict_to_file(tuned, questions, sample, path, Asking(size, 6, shared), Crew()) == (len(prompts), {})
        rows[shared] = {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}
    assert len(rows[True]) == len(rows[False]) == 50
    for identifier, row in rows[True].items():
        row["logprob"] = pytest.approx(row["logprob"], abs=1e-3)
        assert rows[False][identifier] == row


def test_blind_questions_keep_their_text_and_never_their_image(data: Path) -> None:
    questions = read_questions(data, "test", ["vqa1", "vqa2"], [], None)
    blind = exchange_images(questions)
    assert [(q.id, q.turns) for q in blind] == [(q.id, q.turns) for q in questions]
    assert all(a.images != b.images for a, b in zip(blind, questions, strict=True))
    assert {q.images[0] for q in blind} == {q.images[0] for q in questions}
    with pytest.raises(InputError, match="needs questions about two images at least"):
        exchange_images(questions[:1])


def test_ask_answers_about_one_image(tiny: Path, sample: Path, tmp_path: Path) -> None:
    image = sample / "SARimages/SIM_000001.png"
    output = run_script("eval/ask.py", "--model", tiny, "--image", image, "How many ships are in the image?")
    assert "log-probability" in output
    missing = run_script("eval/ask.py", "--model", tiny, "--image", tmp_path / "x.png", "Where?", code=2)
    assert "x.png: no such file" in missing
    missing = run_script("eval/ask.py", "--model", tmp_path / "nothing", "--image", image, "Where?", code=2)
    assert "neither a folder with a config.json" in missing and "Traceback" not in missing
    missing = run_script("eval/ask.py", "--model", tiny, "--adapter", tmp_path / "no", "--image", image, "?", code=2)
    assert "--adapter" in missing and "no such folder" in missing


@pytest.mark.parametrize("folder", ["recipes", "data_prep", "eval"])
def test_every_script_shows_its_help(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((ROOT / folder).glob("*.py")):
        monkeypatch.setattr("sys.argv", [str(path), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(path), run_name="__main__")
        output = capsys.readouterr().out
        assert ended.value.code == 0 and output.startswith("usage:") and "--" in output, path
        launches = [line for line in output.splitlines() if f"{folder}/{path.name} " in line]
        assert all(len(line) <= 119 for line in launches), f"{path}: launch lines stand as they can be typed"
