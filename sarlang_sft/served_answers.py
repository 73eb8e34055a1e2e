"""Answers of a model behind a server of the OpenAI protocol (vLLM first), written as predictions.

Images are prepared here as in training and sent as PNG. All questions about an image are asked one after the other,
each beginning with the same bytes (the image, in front of the question), so that the server's prefix cache holds what
they share; `ChatServer.concurrency` images are under way at once. With 32 of them and a trunk of 400 tokens, that is
13,000 tokens of cache.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from transformers import ProcessorMixin

from sarlang_sft.backbones import Backbone, find_backbone
from sarlang_sft.box_texts import write_question
from sarlang_sft.boxes import PLACEHOLDER, Frame
from sarlang_sft.chat_client import ask_all, find_model
from sarlang_sft.chat_protocol import ChatRequest, ChatServer, Failure, Reply, check_requests_per_minute
from sarlang_sft.collate import to_messages
from sarlang_sft.errors import InputError
from sarlang_sft.eval_questions import Question, still_to_ask
from sarlang_sft.image_files import path_inside
from sarlang_sft.imagery import load_ops, load_picture
from sarlang_sft.loading import load_processor
from sarlang_sft.prediction_files import answered_ids, append_rows, make_row, merge_parts, part_of
from sarlang_sft.served_adapters import check_no_adapter, check_served_adapter


@dataclass
class ServerArguments:
    """Where the engine `openai` asks."""

    base_url: str | None = field(
        default=None, metadata={"help": "Server of the OpenAI protocol, such as http://127.0.0.1:8000/v1."}
    )
    served_model: str | None = field(default=None, metadata={"help": "Name of the model, or the adapter, there."})
    key_variable: str | None = field(
        default=None,
        metadata={"help": "Environment variable with its key; default: OPENAI_API_KEY for OpenAI, none elsewhere."},
    )
    concurrency: int = field(default=32, metadata={"help": "Images that the server is asked about at once."})
    timeout: float = field(default=180.0, metadata={"help": "Seconds for an answer, after which it is asked again."})
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "Send no more requests a minute, retries included; default: no limit."}
    )

    def __post_init__(self) -> None:
        check_requests_per_minute(self.requests_per_minute)
        if self.concurrency < 1 or self.timeout <= 0:
            raise ValueError("--concurrency and --timeout must be positive")

    def server(self) -> ChatServer:
        """The server; raises [`InputError`] if it is not named."""
        if not self.base_url or not self.served_model:
            raise InputError("--engine openai: needs --base_url and --served_model")
        return ChatServer(
            self.base_url,
            self.served_model,
            self.key_variable,
            self.concurrency,
            self.timeout,
            requests_per_minute=self.requests_per_minute,
        )


@dataclass(frozen=True)
class Preparation:
    """What makes of a stored image and a question what training made of them."""

    processor: ProcessorMixin
    backbone: Backbone
    image_ops: list[str]

    def picture(self, path: Path) -> Image.Image:
        """A stored image after the image operations, and not above the processor's pixel budget.

        A server that allows more pixels than training did sees what training saw.
        """
        picture = load_picture(path, self.image_ops)
        size = self.processor.image_processor.size
        if "longest_edge" in size and picture.width * picture.height > size["longest_edge"]:
            width, height = map(round, self.backbone.frame(self.processor, *picture.size).size)
            return picture.resize((width, height), Image.Resampling.BICUBIC)
        return picture


def open_served(
    server: ChatServer, model: str | None, adapter: str | None, max_pixels: int | None
) -> tuple[ChatServer, Preparation | None]:
    """The server's facts about its model, and what is kept with the adapter, or else with the model, without weights.

    Args:
        model: None for one that this project does not train: its questions are asked as they are stored.

    Raises:
        InputError: The server does not serve the model, or cannot do what the adapter does.
    """
    if model is None and (adapter is not None or max_pixels is not None):
        raise InputError("--adapter and --max_pixels: need --model, too")
    if adapter is not None and not Path(adapter).is_dir():
        raise InputError(f"--adapter {adapter}: no such folder")
    server = find_model(server)
    if model is None:
        return server, None
    backbone = find_backbone(model)
    if adapter is not None:
        check_served_adapter(server, model, Path(adapter), backbone)
    else:
        check_no_adapter(server)
    home = adapter or model
    return server, Preparation(load_processor(home, backbone, max_pixels), backbone, load_ops(Path(home)))


def predict_by_server(
    server: ChatServer,
    preparation: Preparation | None,
    questions: list[Question],
    image_root: Path,
    path: Path,
    max_new_tokens: int,
) -> tuple[int, dict[str, str]]:
    """Add the answer of every question that `path` does not hold yet, as `predict_to_file` does.

    What failed stays unanswered, and is asked again by the next run.

    Args:
        preparation: None for models that this project does not train: images are sent as they are, and questions that
            name boxes stay unanswered.

    Returns:
        How many prompts were answered, and why images and questions are left unanswered, by their names.
    """
    done = answered_ids(path, questions)
    left = {question.id: question for question in still_to_ask(questions, done)}
    by_images: dict[tuple[str, ...], list[Question]] = {}
    for question in left.values():
        by_images.setdefault(tuple(question.images) or (question.id,), []).append(question)
    unanswered: dict[str, str] = {}
    frames: dict[str, Frame | None] = {}
    told: set[str] = set()
    written = 0

    def requests_about(together: list[Question]) -> Iterator[ChatRequest]:
        """Questions about the same images; runs in a thread."""
        urls = []
        for name in together[0].images:
            try:
                urls.append(data_url(_picture(image_root, name, preparation)))
            except InputError:
                unanswered[name] = "cannot be read"
        if len(urls) < len(together[0].images):
            progress.update(len(together))
            return
        for question in together:
            try:
                frame, turns = _in_the_models_words(preparation, question)
            except ValueError as error:
                unanswered[question.id] = str(error)
                progress.update()
                continue
            frames[question.id] = frame
            yield ChatRequest(question.id, _chat(turns, urls), max_new_tokens, logprobs=True, extra=extra)

    def note(request: ChatRequest, outcome: Reply | Failure) -> None:
        nonlocal written
        progress.update()
        if isinstance(outcome, Failure):
            if outcome.reason not in told:
                progress.write(f"{request.id}: {outcome.reason}: {outcome.detail}")
            told.add(outcome.reason)
            unanswered[request.id] = outcome.reason
            return
        question, frame = left[request.id], frames.pop(request.id)
        names_box = preparation and frame and PLACEHOLDER.search(question.label)
        boxes = preparation.backbone.box_convention.read(outcome.text, frame) if names_box else None
        append_rows(part_of(path, 0), [make_row(question, outcome.text, outcome.logprob, boxes)])
        written += 1

    # vLLM takes the defaults of a model's generation_config.json, where Qwen's have a penalty that greedy search obeys
    extra = {"repetition_penalty": 1.0} if preparation else {}
    with tqdm(total=len(left), desc=path.stem, unit=" answers") as progress:
        ask_all(server, map(requests_about, by_images.values()), note)
    merge_parts(path, questions)
    return written, unanswered


def data_url(picture: Image.Image) -> str:
    """A picture as PNG in a URL; one whose three bands are equal as one band, which decodes to the same."""
    bands = np.asarray(picture)
    grey = bands.ndim == 3 and bool((bands == bands[..., :1]).all())
    buffer = io.BytesIO()
    (picture.getchannel(0) if grey else picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(image_root: Path, name: str, preparation: Preparation | None) -> Image.Image:
    path = path_inside(image_root, name)
    return preparation.picture(path) if preparation else load_picture(path, [])


def _in_the_models_words(
    preparation: Preparation | None, question: Question
) -> tuple[Frame | None, list[dict[str, str]]]:
    if not question.boxes:
        return None, question.turns
    if preparation is None:
        raise ValueError("names boxes, which only a --model says how to write")
    return write_question(
        question.turns,
        question.boxes,
        question.size,
        preparation.processor,
        preparation.backbone,
        preparation.image_ops,
    )


def _chat(turns: list[dict[str, str]], urls: list[str]) -> list[dict[str, Any]]:
    """Messages up to the last question, the images first."""
    messages = to_messages(turns, len(urls), answered=False)
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages[0]["content"] = [*images, *messages[0]["content"][len(urls) :]]
    return messages
