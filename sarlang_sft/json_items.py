"""Samples in JSON, one by one: memory does not grow with the file, and what is broken costs itself alone."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters read at once
_LARGEST = 1 << 24  # characters of a sample
_BEGIN = re.compile(r"\s*\[?")
_BETWEEN = re.compile(r"[\s,]*(?:\][\s,]*\[?[\s,]*)*")  # also from the end of one list to the begin of another
# Where a sample begins: an object that is no part of one, by its first key.
_SAMPLE = re.compile(r'[,\[\n]\s*(\{\s*"(?!(?:role|content|from|value|type|text|path|bytes)")[^"\\]*"\s*:)')
_ENDING = 64  # characters in which what begins a sample, or a number or word, may be cut off


def read_json_items(text: TextIO) -> Iterator[Any]:
    """The items of a JSON list, of several, or of JSON Lines; None for a stretch that is no JSON.

    After such a stretch reading goes on where the next sample begins.
    """
    decode = json.JSONDecoder().raw_decode
    buffer, ended, broken = text.read(_CHUNK), False, False
    place = _BEGIN.match(buffer).end()
    while True:
        if broken:
            begin = _SAMPLE.search(buffer, place)
            broken = begin is None
            place = begin.start(1) if begin else max(place, len(buffer) - _ENDING)
        if not broken:
            place = _BETWEEN.match(buffer, place).end()
        if not broken and place < len(buffer):
            try:
                item, end = decode(buffer, place)
                if end < len(buffer) or ended:  # a number at the end may go on
                    yield item
                    place = end
                    continue
            except (ValueError, RecursionError) as error:
                if ended or not _is_cut_off(error, buffer, place):
                    yield None
                    place, broken = place + 1, True
                    continue
        if ended:
            return
        more = text.read(max(_CHUNK, len(buffer) - place))
        buffer, place, ended = buffer[place:] + more, 0, not more


def _is_cut_off(error: Exception, buffer: str, place: int) -> bool:
    """Whether decoding failed since the buffer ends within a sample."""
    if not isinstance(error, json.JSONDecodeError) or len(buffer) - place > _LARGEST:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - _ENDING
