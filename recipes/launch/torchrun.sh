#!/usr/bin/env bash
# Trains a recipe on this node's GPUs, or, started on each of several nodes, on all of theirs.
#
#   recipes/launch/torchrun.sh RECIPE [KEY=VALUE]...
#
# Several nodes: the same command everywhere, with NNODES and MASTER_ADDR, a node that all others reach. When a process
# dies, all are started again and go on from the newest checkpoint. Each process has log files under LOGS.
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "usage: [NNODES=4 MASTER_ADDR=host] $0 RECIPE [KEY=VALUE]..." >&2
  exit 2
fi

NNODES=${NNODES:-1}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}
MASTER_ADDR=${MASTER_ADDR:-localhost}
MASTER_PORT=${MASTER_PORT:-29500}
JOB=${JOB:-moepp}             # the same on all nodes, another for each run
MAX_RESTARTS=${MAX_RESTARTS:-3}
LOGS=${LOGS:-logs/$JOB}
PYTHON=${PYTHON:-python}

if [[ $NNODES -gt 1 && $MASTER_ADDR == localhost ]]; then
  echo "NNODES=$NNODES needs MASTER_ADDR, a node that all others reach" >&2
  exit 2
fi

# From SIGTERM to SIGKILL: the running step and a checkpoint must fit; torchrun's own 30 seconds are short for big models.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-270}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# What NCCL finds wrong goes to the logs. How long processes wait for each other is the recipe's
# distributed.timeout_seconds.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# Memory that FSDP frees and takes again must not end up in pieces.
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}

exec "$PYTHON" -m torch.distributed.run \
  --nnodes "$NNODES" \
  --nproc-per-node "$GPUS_PER_NODE" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \
  --rdzv-id "$JOB" \
  --max-restarts "$MAX_RESTARTS" \
  --log-dir "$LOGS" \
  --redirects 3 \
  --tee 0:3 \
  -m moepp train "$@"
