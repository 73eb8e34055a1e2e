"""What every named way to tune learns in the same steps: VQA accuracy on the demo's held-out scenes.

    python benchmarks/accuracy.py --base outputs/families/qwen2_5_vl/base --data outputs/families/data --out FILE

Each way starts from the same taught tiny model (`pytest tests/test_reach.py -k learns` makes one of every family) and
trains with the demo's config, at one learning rate for adapters and one for weights in full: no way's rate was sought.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import setting

from sarlang_sft.backbones import find_backbone
from sarlang_sft.reporting.tables import right_answers
from sarlang_sft.scoring.predictions import join_predictions
from sarlang_sft.tuning import TUNINGS, TuningArguments

ROOT = Path(__file__).parent.parent


def call(*words: object) -> None:
    finished = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{words} failed:\n{finished.stderr[-4000:]}")


def measure(options: argparse.Namespace, way: str, folder: Path) -> dict[str, Any]:
    """Train one way, answer the test split, count the right answers."""
    tuning = TuningArguments(tuning=way)
    rate = options.learning_rate if tuning.adapts() else options.full_learning_rate
    recipe = f"recipes/{find_backbone(str(options.base)).recipes}_{'lora' if tuning.adapts() else 'full'}.py"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, recipe]
    words += ["--config", "recipes/configs/demo.yaml", "--model_name_or_path", options.base, "--data", options.data]
    words += ["--tuning", way, "--learning_rate", rate, "--max_steps", options.steps, "--output_dir", folder]
    call(*words)
    answer = ["eval/generate.py", "--data", options.data, "--subsets", "vqa1", "vqa2", "--out", folder]
    if tuning.adapts():
        answer += ["--model", options.base, "--adapter", folder]
        answer += ["--load_in_4bit"] * (tuning.bits() == 4) + ["--load_in_8bit"] * (tuning.bits() == 8)
    else:
        answer += ["--model", folder]
    call(*answer)
    right = right_answers(join_predictions(folder / "predictions.jsonl", options.data, "test", captions=False).rows)
    seconds = json.loads((folder / "train_results.json").read_text(encoding="utf-8"))["train_runtime"]
    return {
        "way": way,
        "learning_rate": rate,
        "accuracy": sum(right) / len(right),
        "n": len(right),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a tiny model taught on optical renderings")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the radar renderings")
    parser.add_argument("--ways", nargs="+", choices=list(TUNINGS), default=list(TUNINGS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="of adapters")
    parser.add_argument("--full_learning_rate", type=float, default=5e-4, help="where no component has adapters")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    options.base, options.data = options.base.resolve(), options.data.resolve()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for way in options.ways:
            runs.append(measure(options, way, Path(scratch) / way))
            print(f"{way:16} {runs[-1]['accuracy']:.1%}  {runs[-1]['seconds']:.0f} s", flush=True)
    setting.write_result(
        options.out,
        {"hardware": setting.hardware(), "versions": setting.versions(), "steps": options.steps, "runs": runs},
    )


if __name__ == "__main__":
    main()
