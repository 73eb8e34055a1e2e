"""Check the network of a launch in a minute, before a training is started on it.

    torchrun --nproc_per_node 8 recipes/launch/check_network.py
    NODES=2 NODE_RANK=0 MASTER_ADDR=node0 recipes/launch/torchrun_nodes.sh recipes/launch/check_network.py
    sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 recipes/launch/slurm.sh recipes/launch/check_network.py

Prints where each rank listens, whether an all-reduce is right and how fast, and what is wrong in one line, with exit
code 2. Over NCCL where there are GPUs, else over gloo.
"""

from dataclasses import dataclass, field

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.network_check import check_network
from sarlang_sft.roll_call import ending_together


@dataclass
class NetworkArguments:
    """How to look."""

    backend: str = field(default="auto", metadata={"help": "nccl, gloo, or auto: nccl where there is a GPU."})
    rendezvous_timeout: float = field(default=300, metadata={"help": "Seconds that the ranks wait for each other."})


def main() -> None:
    [options] = parse_arguments([NetworkArguments], __doc__)
    check_network(options.backend, options.rendezvous_timeout)


if __name__ == "__main__":
    with ending_together():
        main()
