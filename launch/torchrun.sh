#!/usr/bin/env bash
# Starts training with torchrun: bash launch/torchrun.sh CONFIG [--section.key VALUE ...]
#
# One machine: every GPU becomes a rank (NPROC=N for another number, and on CPU). Several machines: run the same line on
# each, with NNODES machines, NODE_RANK 0, 1, ... and MASTER_ADDR of machine 0:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash launch/torchrun.sh configs/models/gpt3-1.3b.toml
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2; }

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GPUS="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
NPROC="${NPROC:-$((GPUS > 0 ? GPUS : 1))}"
export RANKS_PER_MACHINE=$NPROC
. "$ROOT/launch/env.sh"

if [ "${NNODES:-1}" -eq 1 ]; then
    # torchrun would look up this machine's name, which hangs where that cannot be resolved.
    where=(--standalone --local-addr 127.0.0.1)
else
    where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?set NODE_RANK to this machine\'s number, from 0}"
        --master-addr "${MASTER_ADDR:?set MASTER_ADDR to the address of machine 0}" --master-port "${MASTER_PORT:-29500}")
fi
exec torchrun "${where[@]}" --nproc-per-node "$NPROC" "$ROOT/pretrain/pretrain_gpt.py" "$@"
