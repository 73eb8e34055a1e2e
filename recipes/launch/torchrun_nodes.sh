#!/bin/bash
# A recipe on several nodes without a scheduler (docs/scale.md). Activate .venv and start the same line on every node,
# each with its own NODE_RANK:
#
#   NODES=2 NODE_RANK=0 MASTER_ADDR=node0 recipes/launch/torchrun_nodes.sh recipes/qwen_lora.py --config ...
#   NODES=2 NODE_RANK=1 MASTER_ADDR=node0 recipes/launch/torchrun_nodes.sh recipes/qwen_lora.py --config ...
#
# First, on all nodes: recipes/launch/torchrun_nodes.sh recipes/launch/check_network.py
set -eu
PORT=${MASTER_PORT:-29500}          # of torchrun's store; the one above it is used before
SECONDS_TO_COME=${RENDEZVOUS_TIMEOUT:-300}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

# torchrun waits 15 minutes for a node that does not come, and then shows a traceback.
python "$(dirname "$0")/await_nodes.py" --nodes "$NODES" --node_rank "$NODE_RANK" \
    --address "$MASTER_ADDR" --port $((PORT + 1)) --timeout "$SECONDS_TO_COME"

# --node_rank with an address, rather than a rendezvous that guesses from host names which node is the first.
exec torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$PORT" \
    --rdzv_conf timeout="$SECONDS_TO_COME" --nproc_per_node "${RANKS_PER_NODE:-gpu}" "$@"
