"""Which model an evaluation takes, and how it is to see: the options that all of them share."""

from dataclasses import dataclass, field

import torch

from sarlang_sft.contrastive.models import ContrastiveModel, check_resize_mode, load_model
from sarlang_sft.errors import InputError
from sarlang_sft.imagery import parse_ops


@dataclass
class ModelChoice:
    """The model to evaluate."""

    model: str = field(
        metadata={"help": "Folder of a model, an architecture of open_clip, or hf-hub:OWNER/NAME."},
    )
    weights: str | None = field(default=None, metadata={"help": "File of weights, if the model is an architecture."})
    resize_mode: str | None = field(
        default=None,
        metadata={
            "help": "longest, shortest or squash; default: the folder's own, and longest of an architecture (models "
            "that open_clip has trained saw shortest)."
        },
    )
    image_ops: list[str] | None = field(
        default=None, metadata={"help": "Image operations; default: the folder's own, and `fixed` of an architecture."}
    )
    device: str = field(
        default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "cpu or cuda."}
    )

    def __post_init__(self) -> None:
        check_resize_mode(self.resize_mode)
        parse_ops(self.image_ops or [])
        check_device(self.device)

    @property
    def name(self) -> str:
        """How results call it."""
        return f"{self.model} ({self.weights})" if self.weights else self.model

    def load(self) -> ContrastiveModel:
        """The model; raises [`InputError`] if it cannot be loaded."""
        return load_model(
            self.model, self.weights, self.device, resize_mode=self.resize_mode, image_ops=self.image_ops
        )


def check_device(device: str) -> None:
    """Raise [`InputError`] unless tensors can be put there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(
            f"device {device}: cannot be used ({str(error).splitlines()[0]}); give cpu or cuda"
        ) from error
