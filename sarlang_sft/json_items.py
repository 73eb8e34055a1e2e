"""Samples in JSON, one by one: memory does not grow with the file, and what is broken costs itself alone."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20  # characters read at once
_BEGIN = re.compile(r"\s*\[?")
_BETWEEN = re.compile(r"[\s,\]]*")
_SAMPLE = re.compile(r'\{\s*"(?:messages|images?|id|conversations|prompt)"')  # where one begins


def read_json_items(text: TextIO) -> Iterator[Any]:
    """The items of a JSON list, or of JSON Lines; None for a stretch that is no JSON.

    After such a stretch reading goes on where the next sample begins.
    """
    decode = json.JSONDecoder().raw_decode
    buffer, ended = text.read(_CHUNK), False
    place = _BEGIN.match(buffer).end()
    while True:
        place = _BETWEEN.match(buffer, place).end()
        if place < len(buffer):
            try:
                item, end = decode(buffer, place)
                if end < len(buffer) or ended:  # a number or word at the end may go on
                    yield item
                    place = end
                    continue
            except (ValueError, RecursionError):
                after = _SAMPLE.search(buffer, place + 1)
                if after or ended:
                    yield None
                    place = after.start() if after else len(buffer)
                    continue
        if ended:
            return
        more = text.read(max(_CHUNK, len(buffer) - place))
        buffer, place, ended = buffer[place:] + more, 0, not more
