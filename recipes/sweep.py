"""Search the options of a recipe: trials by grid, at random or by Bayesian optimisation, the worst stopped early.

    python recipes/sweep.py --sweep recipes/sweeps/demo.yaml                       # on a CPU, after `make demo`
    python recipes/sweep.py --sweep recipes/sweeps/qwen_lora.yaml --parallel 4     # of 8 GPUs each takes 2
    python recipes/sweep.py --sweep recipes/sweeps/qwen_lora.yaml --backend wandb  # W&B's server and agents instead

The file is an ordinary W&B sweep file. Killed at any moment and started again with the same command, the sweep repeats
no finished trial and goes on with the others from their checkpoints. SIGTERM and Ctrl-C stop it with exit code 75.
Table, picture and the best options as a config land in `--out` (docs/operations.md).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.errors import STOPPED_EXIT, exit_on_bad_input
from sarlang_sft.sweep_files import read_sweep
from sarlang_sft.sweep_options import check_options
from sarlang_sft.sweeping import choose_out, open_sweep, report_sweep, run_sweep, visible_gpus
from sarlang_sft.trial_processes import split_gpus


@dataclass
class SweepArguments:
    sweep: str | None = field(default=None, metadata={"help": "A sweep file; not needed with --report_only."})
    out: str | None = field(default=None, metadata={"help": "Folder of the sweep; default: runs/sweeps/NAME."})
    backend: str = field(default="local", metadata={"help": "local: no server is needed; or wandb."})
    parallel: int = field(default=1, metadata={"help": "Trials at once; each gets an equal set of the visible GPUs."})
    nproc_per_node: int | None = field(
        default=None, metadata={"help": "Processes of a trial; default: one per GPU of its set, or one."}
    )
    seed: int = field(default=0, metadata={"help": "Of the search (random, bayes); --backend local."})
    retry_failed: bool = field(default=False, metadata={"help": "Start failed trials again."})
    report_only: bool = field(default=False, metadata={"help": "Only write table, picture and best options anew."})


def main() -> None:
    (args,) = parse_arguments([SweepArguments], __doc__)
    out = choose_out(args.sweep, args.out)
    if args.report_only:
        report_sweep(out)
        return
    sweep = read_sweep(Path(args.sweep or ""))
    check_options(sweep)
    slots = split_gpus(visible_gpus(), args.parallel, args.nproc_per_node)
    opened = open_sweep(sweep, out, args.backend, args.seed, slots[0].ranks, args.retry_failed)
    done = run_sweep(opened, slots)
    report_sweep(out)
    if not done:
        print("Stopped: the same command goes on", flush=True)
        sys.exit(STOPPED_EXIT)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
