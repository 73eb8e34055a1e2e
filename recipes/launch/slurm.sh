#!/bin/bash
# A recipe as a Slurm job that goes on by itself after preemption, its time limit and the loss of a node
# (docs/operations.md). Activate .venv and submit from the top of the repository; one task per GPU:
#
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 8 recipes/launch/slurm.sh \
#       recipes/qwen_lora.py --config recipes/configs/qwen2_5_vl_7b_lora.yaml
#   sbatch --ntasks 2 recipes/launch/slurm.sh recipes/qwen_lora.py --save_strategy steps --save_steps 50   # the demo
#
#SBATCH --job-name=sarlang
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600      # so many seconds before the limit; must be longer than a step and a checkpoint take
#SBATCH --requeue              # let Slurm put the job back, and the last but one line
#SBATCH --open-mode=append     # one log for all its lives
#SBATCH --output=%x-%j.log

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # which srun does not inherit from sbatch

# Under srun, for Slurm signals only its tasks; without torchrun, which would hide exit code 75.
# --wait: the other ranks of one that died wait for it no longer than this.
srun --wait=60 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec python "$@"' rank "$@"
code=$?
# 75: stopped on request, with a checkpoint; 143: ended by SIGTERM while Python still started. Errors are not repeated.
[ $code = 75 ] || [ $code = 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit $code
