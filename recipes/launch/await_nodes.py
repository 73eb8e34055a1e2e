"""Return when all nodes of a launch have come, with the same libraries; else say in one line who has not.

    python recipes/launch/await_nodes.py --nodes 2 --node_rank 0 --address node0 --port 29501 --timeout 300

The same command on every node, each with its own `--node_rank`; `torchrun_nodes.sh` calls it before torchrun, whose
own message about a missing node is a traceback without a name. Exit code 2 if one is missing or unlike the others.
"""

import os
from dataclasses import dataclass, field

from sarlang_sft.configuration import parse_arguments
from sarlang_sft.roll_call import call_roll, ending_together


@dataclass
class AwaitArguments:
    """Whom to wait for."""

    nodes: int = field(metadata={"help": "How many nodes the launch has."})
    node_rank: int = field(metadata={"help": "Number of this node; 0 is the one at `--address`."})
    address: str = field(metadata={"help": "Name or address of node 0, as the others reach it."})
    port: int = field(default=29501, metadata={"help": "A free port of node 0, not torchrun's."})
    timeout: float = field(default=300, metadata={"help": "Seconds to wait."})


def main() -> None:
    [options] = parse_arguments([AwaitArguments], __doc__)
    os.environ |= {
        "RANK": str(options.node_rank), "WORLD_SIZE": str(options.nodes), "GROUP_WORLD_SIZE": str(options.nodes),
        "MASTER_ADDR": options.address, "MASTER_PORT": str(options.port),
    }  # fmt: skip
    call_roll(options.timeout)
    if options.node_rank == 0:
        print(f"All {options.nodes} nodes are here", flush=True)


if __name__ == "__main__":
    with ending_together():
        main()
