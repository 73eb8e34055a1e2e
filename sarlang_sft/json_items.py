"""Samples in JSON, one by one: memory does not grow with the file, and what is broken costs itself alone."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters read at once
_LARGEST = 1 << 24  # characters of a sample
_BEGIN = re.compile(r"\s*\[?")
_BETWEEN = re.compile(r"[\s,]*(?:\][\s,]*\[?[\s,]*)*")  # also from the end of one list to the begin of another
_OBJECT = re.compile(r'\{\s*"([^"\\]*)"\s*:')
_ENDING = 64  # characters in which what begins a sample, or a number or word, may be cut off

# First keys of the objects within samples; of messages, and of the parts of their contents.
_MESSAGE = frozenset({"role", "content", "from", "value"})
_PART = frozenset({"type", "text", "path", "bytes"})


def read_json_items(text: TextIO) -> Iterator[Any]:
    """The items of a JSON list, of several, or of JSON Lines; None for a stretch that is no JSON.

    After such a stretch reading goes on where the next sample begins: with an object whose first key is that of an
    earlier sample, or else of nothing within samples.
    """
    decode = json.JSONDecoder().raw_decode
    first_keys: set[str] = set()
    buffer, ended, broken = text.read(_CHUNK), False, False
    place = _BEGIN.match(buffer).end()
    while True:
        if broken:
            begin = _next_sample(buffer, place, first_keys)
            broken = begin is None
            place = max(place, len(buffer) - _ENDING) if begin is None else begin
        if not broken:
            between = _BETWEEN.match(buffer, place).end()
            if between < len(buffer) or ended:  # otherwise what parts two lists may be cut off
                place = between
        if not broken and between < len(buffer):
            try:
                item, end = decode(buffer, place)
                if end < len(buffer) or ended:  # a number at the end may go on
                    if isinstance(item, dict):
                        first_keys.update(list(item)[:1])
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


def _next_sample(buffer: str, place: int, first_keys: set[str]) -> int | None:
    """Where the next sample begins: an object at the begin of a line, or behind a comma or bracket."""
    within = _MESSAGE | _PART if first_keys else _MESSAGE
    for match in _OBJECT.finditer(buffer, place):
        before = buffer[max(place, match.start() - _ENDING) : match.start()]
        last = before.rstrip()
        if match[1] in within - first_keys or not (last.endswith((",", "[")) or "\n" in before[len(last) :]):
            continue
        return match.start()
    return None


def _is_cut_off(error: Exception, buffer: str, place: int) -> bool:
    """Whether decoding failed since the buffer ends within a sample."""
    if not isinstance(error, json.JSONDecodeError) or len(buffer) - place > _LARGEST:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - _ENDING
