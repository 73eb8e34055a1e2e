#!/usr/bin/env bash
# Throughput on one GPU, offline, with random weights in bf16: 7B LoRA on all paths and at 1, 4, 9 and 16 questions per
# image, 3B LoRA and full, LLaVA-1.5-7B LoRA. Meant to take less than 9 minutes on an H200.
#
#   benchmarks/gpu.sh [benchmarks/results/gpu.json]
#
# Every forward pass holds about 8,000 tokens, so that activations fit without checkpointing on 140 GB. Give
# REAL_PROCESSOR=DIR for the real Qwen tokenizer's token counts.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-benchmarks/results/gpu.json}
PYTHON=${PYTHON:-python}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

throughput() {
    "$PYTHON" benchmarks/throughput.py --folder "$SCRATCH" --images 150 --workers 4 --out "$OUT" \
        ${REAL_PROCESSOR:+--real_processor "$REAL_PROCESSOR"} "$@"
}

rm -f "$OUT"
throughput --shape qwen2_5_vl_7b --turns 9 --images_per_step 12 --batch 27 --trees_per_row 12 --steps 3
throughput --shape qwen2_5_vl_7b --turns 1 --images_per_step 27 --batch 27 --trees_per_row 27 --steps 2 --paths trl_stock trees
throughput --shape qwen2_5_vl_7b --turns 4 --images_per_step 14 --batch 28 --trees_per_row 14 --steps 2 --paths trl_stock trees
throughput --shape qwen2_5_vl_7b --turns 16 --images_per_step 8 --batch 32 --trees_per_row 8 --steps 2 --paths trl_stock trees
throughput --shape qwen2_5_vl_3b --turns 9 --images_per_step 12 --batch 27 --trees_per_row 12 --steps 2 --paths trl_stock trees
throughput --shape qwen2_5_vl_3b --tuning full --turns 9 --images_per_step 12 --batch 27 --trees_per_row 12 --steps 2 --paths trl_stock trees
throughput --shape llava_1_5_7b --turns 9 --images_per_step 8 --batch 12 --trees_per_row 8 --steps 2 --paths trl_stock trees
"$PYTHON" benchmarks/generation.py --shape qwen2_5_vl_7b --images 6 --batch 54 --out "${OUT%.json}_generation.json"
