"""What the ranks of a training tell each other: counted, weighed on the wire, and put beside the formula.

    python benchmarks/scaling.py --out benchmarks/results/cpu_scaling.json

A tiny Qwen2.5-VL trains on image trees through the library's own steps, on one process and on two ranks (gloo): with
DDP, ZeRO-1, -2 and -3 and FSDP2, LoRA and in full. Of every optimiser step it says

- the collectives: kind, type and number of elements, as PyTorch's dispatcher sees them, whoever asked for them (DDP's
  reducer, DeepSpeed, the trainer), and the bytes a rank sends for them in a ring (`sarlang_sft/communication.py`);
- beside them the bytes that the loopback interface carried: every run has a network namespace of its own, with nothing
  else in it, where the machine allows that;
- its duration, beside that of one process with as many rows a step. The runs take turns, `--rounds` times, the first
  steps are not timed, and the median counts.

`zero3` is deepspeed_configs/zero3.json as it stands, whose thresholds are made for large models: a tiny one lies under
all of them. `zero3_large` sets them to 0, so that the tiny model is treated as a large one is.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.arguments import DataArguments, ModelArguments, TrainArguments
from sarlang_sft.backbones import BACKBONES, find_backbone
from sarlang_sft.communication import Exchange, Sizes, count_sizes, exchanges
from sarlang_sft.loading import build_skeleton, load_processor, load_weights
from sarlang_sft.runs import open_run
from sarlang_sft.training import build_trainer, make_collator, plan_rows, prepare_attention, prepare_tuning
from sarlang_sft.tuning import TuningArguments

ROOT = Path(__file__).parent.parent
WARM_UP, COUNTED = 3, 2  # steps
ROW = 700  # tokens of a row, one row a pass
ALONE = "one_process"
CONFIGURATIONS = {"zero1": "zero1.json", "zero2": "zero2.json", "zero3": "zero3.json", "zero3_large": "zero3.json"}
LARGE = dict.fromkeys(
    ("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"), 0
)
FORMULAS = {**{name: name for name in ("ddp", "zero1", "zero2", "fsdp2")}, "zero3_large": "zero3"}
NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
# Operators of PyTorch's dispatcher: the collective, and which argument has all that is reduced or gathered.
OPERATORS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "reduce_": ("reduce", 0),
    "broadcast_": ("broadcast", 0),
    "allgather_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
}
WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}  # bytes


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of nested lists."""
    return [value] if isinstance(value, torch.Tensor) else [one for part in value for one in tensors_in(part)]


class Collectives(TorchDispatchMode):
    """Counts what passes PyTorch's dispatcher on its way to a process group."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str, int]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "c10d" and not function._schema.name.endswith("barrier"):
            kind, place = OPERATORS[function._schema.name.removeprefix("c10d::")]
            tensors = tensors_in(args[place])
            self.calls[kind, str(tensors[0].dtype).removeprefix("torch."), sum(one.numel() for one in tensors)] += 1
        return function(*args, **(kwargs or {}))


def sent_on_loopback() -> int:
    """Bytes, since the network namespace began."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[9])


class Steps(TrainerCallback):
    """When the steps of a run ended, what the interface had sent by then, and what the last steps exchanged."""

    def __init__(self, timed: int) -> None:
        self.last = WARM_UP + timed
        self.times: list[float] = []
        self.sent: list[int] = []
        self.collectives = Collectives()

    def on_step_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
        self.sent.append(sent_on_loopback())
        if state.global_step == self.last:
            self.collectives.__enter__()
        if state.global_step == self.last + COUNTED:
            self.collectives.__exit__(None, None, None)


def deepspeed_file(sharding: str, folder: Path) -> str | None:
    """The configuration of a sharding, written to the folder where it is none of the repository's."""
    if sharding not in CONFIGURATIONS:
        return None
    path = ROOT / "deepspeed_configs" / CONFIGURATIONS[sharding]
    if sharding != "zero3_large":
        return str(path)
    configuration = json.loads(path.read_text(encoding="utf-8"))
    configuration["zero_optimization"] |= LARGE
    out = folder / "zero3_large.json"
    out.write_text(json.dumps(configuration), encoding="utf-8")
    return str(out)


def run(options: argparse.Namespace) -> dict[str, Any] | None:
    """One run in this process, a rank of it; its figures on the first rank."""
    folder, steps = str(options.folder / "model"), Steps(options.steps)
    tuning = TuningArguments(tuning=options.tunings[0])
    model = ModelArguments(folder, dtype="float32")
    data = DataArguments(data=str(options.folder / "data"), max_tokens_per_row=ROW)
    training = TrainArguments(
        output_dir=str(options.out.with_suffix("")), max_steps=steps.last + COUNTED + 1, logging_steps=10_000,
        save_strategy="no", report_to="none", disable_tqdm=True, bf16=False, use_cpu=True,
        gradient_checkpointing=options.gradient_checkpointing, gradient_accumulation_steps=options.passes,
        deepspeed=deepspeed_file(options.shardings[0], options.folder), fsdp=options.shardings[0] == "fsdp2",
    )  # fmt: skip
    backbone = find_backbone(folder)
    processor = load_processor(folder, backbone)
    skeleton = build_skeleton(folder, backbone, training.hf_deepspeed_config)
    attention = prepare_attention(model, data, training)
    trainable, quantisation = prepare_tuning(skeleton, backbone, model, tuning, training)
    opened = open_run(model, tuning, data, training)
    plan = plan_rows(processor, backbone, skeleton.config, data, training)
    collator = make_collator(processor, backbone, data, attention, opened)
    weights = load_weights(folder, backbone, model.dtype, attention.by_config(), quantisation)
    trainer = build_trainer(weights, collator, plan, attention, trainable, tuning, data, training, opened)
    trainer.add_callback(steps)
    sizes = count_sizes(trainer.model, backbone, options.gradient_checkpointing)
    trainer.train()
    return figures(options, steps, sizes, training.world_size) if training.process_index == 0 else None


def figures(options: argparse.Namespace, steps: Steps, sizes: Sizes, ranks: int) -> dict[str, Any]:
    """What the first rank saw, each figure of one step."""
    calls_of = steps.collectives.calls.items()
    found = [(Exchange(kind, size, WIDTHS[dtype]), dtype, calls) for (kind, dtype, size), calls in calls_of]
    kinds: dict[tuple[str, str], Counter[str]] = {}
    for one, dtype, calls in found:
        of_kind = kinds.setdefault((one.kind, dtype), Counter())
        of_kind.update(calls=calls / COUNTED, elements=calls * one.elements / COUNTED)
    sharding = options.shardings[0]
    formula = exchanges(FORMULAS[sharding], sizes, options.passes, 4, 4) if sharding in FORMULAS else None
    wire = steps.sent[steps.last - 1] - steps.sent[WARM_UP - 1]
    gloo = [one._replace(kind="all_reduce") if one.kind == "reduce_scatter" else one for one, *_ in found]
    times = steps.times[WARM_UP - 1 : steps.last]
    return {
        "sharding": sharding,
        "tuning": options.tunings[0],
        "ranks": ranks,
        "sizes": asdict(sizes),
        "collectives": [{"kind": kind, "dtype": dtype, **kinds[kind, dtype]} for kind, dtype in sorted(kinds)],
        "sent_bytes": sum(one.sent(ranks) * calls for one, _, calls in found) / COUNTED,
        "formula_bytes": sum(one.sent(ranks) for one in formula) if formula else None,
        "gloo_bytes": sum(one.sent(ranks) * calls for one, (*_, calls) in zip(gloo, found, strict=True)) / COUNTED,
        "wire_bytes": wire / options.steps / ranks if options.apart else None,
        "seconds": [after - before for before, after in itertools.pairwise(times)],
    }


def combine(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rounds of every run as one: its median step, and how one rank's compares."""
    runs = []
    for same in zip(*rounds, strict=True):
        seconds = statistics.median(second for one in same for second in one["seconds"])
        runs.append({**same[0], "seconds": seconds})
    alone = {one["tuning"]: one["seconds"] for one in runs if one["sharding"] == ALONE}
    return [one | {"process_over_this": alone[one["tuning"]] / one["seconds"] if alone else None} for one in runs]


def table(runs: list[dict[str, Any]]) -> str:
    """What was counted beside the formula and the wire."""
    lines = [
        f"{'sharding':12} {'tuning':8} {'counted':>9} {'formula':>9} {'on gloo':>9} {'wire':>9}  calls  process / this"
    ]
    for one in runs:
        kilobytes = [
            f"{one[name] / 1e3:7.0f}kB" if one[name] is not None else f"{'-':>9}"
            for name in ("sent_bytes", "formula_bytes", "gloo_bytes", "wire_bytes")
        ]
        calls = sum(kind["calls"] for kind in one["collectives"])
        lines.append(
            f"{one['sharding']:12} {one['tuning']:8} {' '.join(kilobytes)}  {calls:5.1f}  "
            f"{one['process_over_this'] or math.nan:.2f}"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    shardings = [ALONE, "ddp", *CONFIGURATIONS, "fsdp2"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shardings", nargs="+", choices=shardings, default=shardings)
    parser.add_argument("--tunings", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--passes", type=int, default=2, help="forward and backward passes a step")
    parser.add_argument("--gradient_checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=3, help="how often every run takes its turn")
    parser.add_argument(
        "--steps", type=int, default=6, help=f"timed steps; {WARM_UP} come before, {COUNTED} after them"
    )
    parser.add_argument("--images", type=int, default=30, help="simulated scenes to draw from")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of model and data: a run of its own
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)  # it has its own network namespace
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.folder:
        if result := run(options):
            options.out.write_text(json.dumps(result), encoding="utf-8")
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    apart = subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    words = ["--steps", options.steps, "--passes", options.passes, *["--apart"] * apart]
    words += ["--gradient_checkpointing" if options.gradient_checkpointing else "--no-gradient_checkpointing"]
    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        setting.make_data(folder, options.images).rename(folder / "data")
        BACKBONES["qwen2_5_vl"].build_tiny(folder / "model", setting.texts_of(folder / "data"), 0)
        runs = [(sharding, tuning) for tuning in options.tunings for sharding in options.shardings]
        for number in range(options.rounds):
            rounds.append([])
            for sharding, tuning in tqdm(runs, desc=f"round {number + 1} of {options.rounds}"):
                launcher = [*NAMESPACE[: None if apart else 0], sys.executable]
                if sharding != ALONE:
                    launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
                out = folder / f"{number}-{len(rounds[-1])}.json"
                own = ["--shardings", sharding, "--tunings", tuning, "--folder", folder, *words]
                rounds[-1].append(setting.run_apart(__file__, own, out, launcher))
    runs = combine(rounds)
    print(table(runs))
    of_all = {"passes": options.passes, "gradient_checkpointing": options.gradient_checkpointing, "row": ROW}
    of_all |= {"rounds": options.rounds, "steps": options.steps, "own_network_namespace": apart}
    versions = setting.versions() | {"deepspeed": deepspeed.__version__}
    setting.write_result(options.out, {"hardware": setting.hardware(), "versions": versions, **of_all, "runs": runs})


if __name__ == "__main__":
    main()
