#!/usr/bin/env bash
# Starts training with DeepSpeed's launcher: bash launch/deepspeed.sh CONFIG [--section.key VALUE ...]
#
# One machine: every GPU becomes a rank (NPROC=N for fewer). Several: HOSTFILE=path, lines such as "worker-1 slots=8", with
# ssh between them, and this repository and its .venv at the same path on each. The layout comes from CONFIG alone:
# DeepSpeed gets no JSON of its own.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2; }

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GPUS="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
NPROC="${NPROC:-$((GPUS > 0 ? GPUS : 1))}"
export RANKS_PER_MACHINE=$NPROC
. "$ROOT/launch/env.sh"

if [ -n "${HOSTFILE:-}" ]; then
    where=(--hostfile "$HOSTFILE")
elif [ "$GPUS" -gt 0 ]; then
    where=(--num_gpus "$NPROC")
else
    where=(--num_accelerators "$NPROC")
fi
# not the script `deepspeed`: it does not start from a path with a blank
exec python -m deepspeed.launcher.runner "${where[@]}" "$ROOT/pretrain/pretrain_gpt.py" "$@"
