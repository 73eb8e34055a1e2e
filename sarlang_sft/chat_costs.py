"""What chat requests cost at most, told before anything is asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sarlang_sft.chat_protocol import ChatRequest, ChatServer
from sarlang_sft.reply_cache import ReplyCache

BYTES_PER_TOKEN, TOKENS_PER_MESSAGE = 4, 8  # for estimates


@dataclass(frozen=True)
class Cost:
    """What requests take at most.

    Attributes:
        requests: All, of which `cached` were replied to in earlier runs and cost nothing.
        input_tokens: Of those to be sent, estimated from their length.
        output_tokens: If every reply were as long as it may be.
        money: None without prices.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    money: float | None

    def __str__(self) -> str:
        money = "" if self.money is None else f", at most {self.money:.2f} in the currency of the prices"
        return (
            f"{self.requests:,} requests, {self.cached:,} of them replied to before; about {self.input_tokens:,} "
            f"tokens to send and at most {self.output_tokens:,} to get{money}"
        )


def estimate_cost(
    server: ChatServer, cache: ReplyCache, requests: Iterable[ChatRequest], prices: Sequence[float] = ()
) -> Cost:
    """What it costs at most to have these replied to.

    Args:
        requests: Whose messages are texts.
        prices: Per million tokens sent and received; none are unknown.
    """
    asked = cached = sent = received = 0
    for request in requests:
        asked += 1
        if cache.find(server.stands_for, request.body(server.model)) is not None:
            cached += 1
            continue
        sent += sum(
            len(message["content"].encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE for message in request.messages
        )
        received += request.max_tokens
    money = (sent * prices[0] + received * prices[1]) / 1e6 if prices else None
    return Cost(asked, cached, sent, received, money)


def check_prices(prices: Sequence[float], max_cost: float | None, prefix: str = "") -> None:
    """Raise a `ValueError` that names the option unless these can be reckoned with.

    Args:
        prefix: Of the names of the options.
    """
    if len(prices) not in (0, 2) or any(price < 0 for price in prices):
        raise ValueError(f"--{prefix}prices: give two, per million tokens sent and received, such as 0.15 0.6")
    if max_cost is not None and not prices:
        raise ValueError(f"--{prefix}max_cost: needs --{prefix}prices to tell what asking costs")
