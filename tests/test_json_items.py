"""JSON read sample by sample: exactly what is there, whatever the borders of what is read at once."""

import io
import itertools
import json
import random

import pytest

from sarlang_sft import json_items
from sarlang_sft.json_items import read_json_items


def read(text: str) -> list[object]:
    return list(read_json_items(io.StringIO(text)))


@pytest.mark.parametrize("first", ["messages", "id", "type", "role", "mine"])
@pytest.mark.parametrize("chunk", [97, 1000, 1 << 20])
def test_a_broken_sample_costs_itself_alone(first: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", chunk)
    parts = [{"type": "text", "text": 'a {["b,\n'}]
    inner = [{"role": "user", "content": parts}, {"role": "assistant", "content": "}]"}]
    samples = [{first: 0, "messages": inner, "more": {"mine": [{"label": number}]}} for number in range(40)]
    rng = random.Random(chunk)
    for place, indent in itertools.product((1, 17, 39), (None, 1)):
        texts = [json.dumps(sample, indent=indent) for sample in samples]
        good = samples[:place] + samples[place + 1 :]
        torn = texts[place][: rng.randrange(5, len(texts[place]))]
        for broken in (torn, texts[place].replace(":", "", 1), "nothing", "\n" * 3000 + "!"):
            texts[place] = broken
            found = read("[" + ",\n".join(texts) + "]")
            assert [item for item in found if item in good] == good
            assert None in found and len(found) <= len(samples) + 8, "parts of the broken one may be told, too"
            lines = [*map(json.dumps, samples)]
            lines[place] = broken.replace("\n", " ")
            assert [item for item in read("\n".join(lines)) if item in good] == good


@pytest.mark.parametrize("offset", range(0, 60))
def test_several_lists_are_read_as_one_wherever_they_meet(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", 40)
    text = "[" + " " * offset + json.dumps([{"id": 1}, {"id": 2}])[1:] + " \n [" + json.dumps([{"id": 3}])[1:] + "\n"
    assert read(text) == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_a_begin_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "_CHUNK", 100)
    monkeypatch.setattr(json_items, "_LARGEST", 2000)
    good = [{"id": number} for number in range(1000)]
    text = io.StringIO('[{"a": [' + ",".join(map(json.dumps, good)) + "]")
    items = read_json_items(text)
    assert next(items) is None and text.tell() < 5000, "not all of the file was read"
    assert len(list(items)) == 1000
    assert read("") == read("[]") == read(" [ ] ") == []
    assert read("[[1], 2, null]") == [[1], 2, None]
