"""Started by torchrun: runs a recipe, and writes what torch's allocator gave each rank at most, and for which batch.

torchrun --nproc_per_node 2 tests/rank_memory.py OUT recipes/qwen_full.py --option value ...
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from torch.profiler import ProfilerActivity, profile, record_function

from sarlang_sft.run_trainer import RunTrainer

TRAINED = "training is over"
batches: list[dict[str, int]] = []


class MeasuredTrainer(RunTrainer):
    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *words: Any) -> torch.Tensor:
        batches.append({"tokens": inputs["input_ids"].shape[1], "images": len(inputs["image_grid_thw"])})
        return super().training_step(model, inputs, *words)

    def train(self) -> Any:
        result = super().train()
        with record_function(TRAINED):
            return result


def main() -> None:
    out, recipe = sys.argv[1], sys.argv[2]
    sys.argv = sys.argv[2:]
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = 64  # as tests/test_planning_memory.py does, and why
    import sarlang_sft.training as training

    training.RunTrainer = MeasuredTrainer
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        runpy.run_path(recipe, run_name="__main__")
    path = Path(f"{out}.{os.environ['RANK']}")
    recorded.export_chrome_trace(str(path))
    live: dict[int, int] = {}  # bytes by address: one that is given out again was freed, if in a thread not recorded
    total = peak = 0
    for event in sorted(json.loads(path.read_text())["traceEvents"], key=lambda event: event.get("ts", 0)):
        if event.get("name") == TRAINED:
            break
        if event.get("name") == "[memory]":
            address, size = event["args"]["Addr"], event["args"]["Bytes"]
            total += max(size, 0) - live.pop(address, 0)
            if size > 0:
                live[address] = size
            peak = max(peak, total)
    path.write_text(json.dumps({"peak": peak, "tokens": max(one["tokens"] for one in batches),
                                "images": max(one["images"] for one in batches)}))  # fmt: skip


if __name__ == "__main__":
    main()
