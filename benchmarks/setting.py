"""What the benchmarks share: models of a given shape with random weights, and the sample's images and questions."""

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import torch
import transformers
import trl
from tokenizers import Tokenizer
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from trl.chat_template_utils import qwen2_5_vl_chat_template

from sarlang_sft.backbones import BACKBONES, Backbone
from sarlang_sft.mixture import DataSource, read_mixture
from sarlang_sft.records import write_data_folder
from sarlang_sft.sample import write_sample
from sarlang_sft.sarlang import Prompts, convert
from sarlang_sft.templates import VICUNA
from sarlang_sft.tiny import QWEN_SPECIAL_TOKENS

SIDE = 448  # pixels: 256 image tokens of Qwen2.5-VL

# Width, feed-forward width, layers, heads, key/value heads, vocabulary of the language model, and of the vision tower
# width, feed-forward width, depth, heads: the published configurations, and one for a CPU with the 7B's proportions.
QWEN_SHAPES = {
    "qwen_cpu": ((1024, 3072, 3, 16, 4, None), (256, 680, 4, 4)),
    "qwen2_5_vl_3b": ((2048, 11008, 36, 16, 2, 151936), (1280, 3420, 32, 16)),
    "qwen2_5_vl_7b": ((3584, 18944, 28, 28, 4, 152064), (1280, 3420, 32, 16)),
}
LLAVA_SHAPES = {
    "llava_cpu": ((1024, 2752, 3, 16, 16, None), (256, 1024, 4, 4)),
    "llava_1_5_7b": ((4096, 11008, 32, 32, 32, 32064), (1024, 4096, 24, 16)),
}
SHAPES = [*QWEN_SHAPES, *LLAVA_SHAPES]


def make_data(folder: Path, images: int) -> Path:
    """A data folder of simulated scenes of 448 pixels with the paper's prompts; kept if it is there already."""
    out = folder / f"data-{images}"
    if not (out / "manifest.json").is_file():
        write_sample(folder / f"sample-{images}", images, seed=0, test_fraction=0.01, size=SIDE)
        sample = folder / f"sample-{images}"
        records, rejections, inputs = convert(sample, sample / "SARimages", 0, Prompts(class_prefix="never"))
        write_data_folder(out, records, rejections, sample / "SARimages", inputs)
    return out


def draw_images(data: Path, turns: int, images: int, seed: int = 0) -> list[np.ndarray]:
    """For each of `images` images the row numbers of `turns` of its dialogues, drawn at random, in random order."""
    record = read_mixture([DataSource(str(data))], "train")["record"].to_numpy()
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(record == number) for number in range(record.max() + 1)]
    groups = [rng.permutation(group)[:turns] for group in groups if len(group) >= turns]
    if len(groups) < images:
        raise SystemExit(f"only {len(groups)} images have {turns} questions; make more with --images")
    return groups[:images]


def cut_vocabulary(tokenizer: Qwen2Tokenizer, texts: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer without the tokens that the texts do not need: the same tokens for them, a small vocabulary.

    Raises:
        RuntimeError: A text would be split otherwise.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], [tuple(merge) for merge in state["model"]["merges"]]
    parts = {left + right: (left, right) for left, right in reversed(merges)}  # the first merge of a token stays
    needed = {token for token in vocabulary if len(token) == 1}
    stack = [token for text in texts for token in tokenizer.tokenize(text)]
    while stack:
        token = stack.pop()
        if token not in needed:
            needed.add(token)
            stack += parts.get(token, ())
    kept = sorted(needed & set(vocabulary), key=vocabulary.get)
    state["model"]["vocab"] = {token: number for number, token in enumerate(kept)}
    state["model"]["merges"] = [list(m) for m in merges if {*m, m[0] + m[1]} <= needed]
    state["added_tokens"] = []
    cut = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    cut.add_special_tokens({"additional_special_tokens": list(QWEN_SPECIAL_TOKENS)})
    for text in texts:
        if cut.tokenize(text) != tokenizer.tokenize(text):
            raise RuntimeError(f"the cut vocabulary splits {text!r} otherwise")
    return cut


def make_processor(shape: str, texts: list[str], real: Path | None) -> ProcessorMixin:
    """A processor for 448-pixel images; the real Qwen tokenizer's counts where its folder is given."""
    llava = shape in LLAVA_SHAPES
    special = ("<s>", "</s>", "<pad>", "<image>") if llava else QWEN_SPECIAL_TOKENS
    if real:
        tokenizer = cut_vocabulary(Qwen2Tokenizer.from_pretrained(real), texts)
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    else:
        tokenizer = Qwen2Tokenizer().train_new_from_iterator(
            texts, vocab_size=2048, new_special_tokens=list(special), show_progress=False
        )
    if llava:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens={"image_token": "<image>"},
            bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        )  # fmt: skip
        return LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), tokenizer,
            patch_size=14, vision_feature_select_strategy="default", chat_template=VICUNA,
            num_additional_image_tokens=1,
        )  # fmt: skip
    backend = tokenizer.backend_tokenizer
    tokenizer = Qwen2Tokenizer(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    limits = {"shortest_edge": 56 * 56, "longest_edge": SIDE * SIDE}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=14, merge_size=2, size=limits), tokenizer,
        Qwen2VLVideoProcessor(patch_size=14, merge_size=2, size=limits), qwen2_5_vl_chat_template,
    )  # fmt: skip


def make_config(shape: str, processor: ProcessorMixin) -> PretrainedConfig:
    """The configuration of a shape; its vocabulary is the published one, or the processor's."""
    language, vision = {**QWEN_SHAPES, **LLAVA_SHAPES}[shape]
    width, feed_forward, layers, heads, kv_heads, vocabulary = language
    tokenizer = processor.tokenizer
    text = {
        "hidden_size": width, "intermediate_size": feed_forward, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary or len(tokenizer),
        "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    tower_width, tower_feed_forward, depth, tower_heads = vision
    if shape in LLAVA_SHAPES:
        return LlavaConfig(
            text_config=LlamaConfig(**text),
            vision_config=CLIPVisionConfig(
                hidden_size=tower_width, intermediate_size=tower_feed_forward, num_hidden_layers=depth,
                num_attention_heads=tower_heads, image_size=336, patch_size=14, projection_dim=tower_width,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=vocabulary is None,
        )  # fmt: skip
    head = width // heads
    sections = [head // 8, head * 3 // 16, head // 2 - head // 8 - head * 3 // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    return Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "hidden_size": tower_width, "intermediate_size": tower_feed_forward, "depth": depth,
            "num_heads": tower_heads, "patch_size": 14, "window_size": 112, "out_hidden_size": width,
            "fullatt_block_indexes": [(depth * (quarter + 1)) // 4 - 1 for quarter in range(4)],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=shape != "qwen2_5_vl_7b",
    )  # fmt: skip


def make_model(
    shape: str, processor: ProcessorMixin, attention: dict[str, str] | str, dtype: torch.dtype
) -> tuple[PreTrainedModel, Backbone]:
    """A model with random weights, made on the GPU if there is one, and its row."""
    backbone = BACKBONES["llava" if shape in LLAVA_SHAPES else "qwen2_5_vl"]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = backbone.model_class._from_config(
            make_config(shape, processor), dtype=dtype, attn_implementation=attention
        )
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return model, backbone


def texts_of(data: Path) -> list[str]:
    """Every distinct question and answer, and what the chat template puts around them."""
    turns = read_mixture([DataSource(str(data))], "train")["turns"].to_pylist()
    chat = ["system\nYou are a helpful assistant.", "\n", "user\n", "assistant\n", "USER: ", " ASSISTANT:"]
    texts = [text for dialogue in turns for turn in dialogue for text in turn.values()]
    return list(dict.fromkeys([*chat, *texts, *(f" {text}" for text in texts)]))


def run_apart(
    script: str, words: list[Any], result: Path, launcher: Sequence[str] = (sys.executable,)
) -> dict[str, Any]:
    """What a script writes to the JSON file `result`, in a process of its own; ends the program if it fails."""
    command = [*launcher, script, *map(str, words), "--out", str(result)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-4000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def hardware() -> str:
    """The GPU's name, or the number of CPU cores in use."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return f"{torch.get_num_threads()} CPU cores ({model}), float32"


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    modules = (torch, transformers, trl, peft, accelerate)
    return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}


def peak_memory() -> int:
    """Bytes: of the GPU, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_result(path: Path | None, result: dict[str, Any]) -> None:
    """Write the JSON file, if one is asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"Written: {path}")
