"""Chat requests to a server of the OpenAI protocol (vLLM, OpenAI, others), many at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from openai import AsyncOpenAI

from sarlang_sft.chat_protocol import (
    ChatRequest,
    ChatServer,
    Failure,
    Reply,
    open_client,
    paced,
    read_reply,
    until_read,
)
from sarlang_sft.errors import InputError
from sarlang_sft.reply_cache import ReplyCache

HOPELESS_IN_A_ROW = 100  # failed requests without a reply in between, after which nothing more is asked
NAMES_SHOWN = 12


def find_model(server: ChatServer) -> ChatServer:
    """The server with `root` and `parent` of its model, from its list of models.

    Raises:
        InputError: It cannot be reached, refuses the key, has no list, or does not serve the model.
    """
    listed = asyncio.run(_models(replace(server, tries=min(server.tries, 3))))
    if isinstance(listed, Failure):
        raise InputError(f"{server.base_url}: gives no list of models ({listed.reason}: {listed.detail}); is it up?")
    if server.model not in listed:
        names = ", ".join(islice(listed, NAMES_SHOWN)) + (" ..." if len(listed) > NAMES_SHOWN else "")
        raise InputError(f"{server.base_url}: serves no model `{server.model}`; it serves {names or 'none'}")
    entry = listed[server.model]
    return replace(server, root=entry.get("root"), parent=entry.get("parent"))


def ask_all(
    server: ChatServer,
    groups: Iterable[Iterable[ChatRequest]],
    on_outcome: Callable[[ChatRequest, Reply | Failure], None],
    cache: ReplyCache | None = None,
) -> None:
    """Ask every request; `on_outcome` gets each with its reply, or with what it failed of, as they come.

    The requests of a group are asked one after the other, and at most `server.concurrency` groups at once. A group is
    taken from `groups` when its turn comes, and a generator is run in a thread then, so that what is costly to make
    (pictures) is made late, and little of it is there at a time. No more than `server.requests_per_minute` are sent.

    Args:
        cache: Replies of earlier runs, whose requests are not sent again; new ones are added.

    Raises:
        InputError: The server refuses the key or does not know the model, the account has no money left, or
            `HOPELESS_IN_A_ROW` requests failed in a row.
    """
    source = iter(groups)
    turn = paced(server.requests_per_minute)
    failed_in_a_row = 0

    async def work(client: AsyncOpenAI) -> None:
        nonlocal failed_in_a_row
        for group in source:
            requests = group if isinstance(group, list) else await asyncio.to_thread(list, group)
            for request in requests:
                outcome = await _ask(server, client, request, cache, turn)
                on_outcome(request, outcome)
                failed_in_a_row = failed_in_a_row + 1 if isinstance(outcome, Failure) else 0
                if failed_in_a_row >= HOPELESS_IN_A_ROW:
                    raise InputError(
                        f"{server.base_url}: {failed_in_a_row} requests in a row failed, the last: {outcome.reason} "
                        f"{outcome.detail}; what was answered is kept, start the same command again to go on"
                    )

    async def work_together() -> None:
        async with open_client(server) as client, asyncio.TaskGroup() as tasks:
            for _ in range(server.concurrency):
                tasks.create_task(work(client))

    try:
        asyncio.run(work_together())
    except ExceptionGroup as group:  # the first one cancelled the other workers
        raise group.exceptions[0] from None


async def _ask(
    server: ChatServer,
    client: AsyncOpenAI,
    request: ChatRequest,
    cache: ReplyCache | None,
    turn: Callable[[], Awaitable[None]],
) -> Reply | Failure:
    body = request.body(server.model)
    known = cache.find(server.stands_for, body) if cache is not None else None
    if known is not None:
        return known
    outcome = await until_read(
        server,
        lambda: client.chat.completions.with_raw_response.create(
            model=server.model, messages=request.messages, extra_body=body
        ),
        read_reply,
        turn,
    )
    if cache is not None and isinstance(outcome, Reply):
        cache.add(server.stands_for, body, outcome)
    return outcome


async def _models(server: ChatServer) -> dict[str, dict[str, Any]] | Failure:
    def read(content: Any) -> dict[str, dict[str, Any]]:
        return {entry["id"]: entry for entry in content["data"]}

    async with open_client(server) as client:
        return await until_read(server, lambda: client.models.with_raw_response.list(), read, paced(None))
