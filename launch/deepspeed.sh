#!/usr/bin/env bash
# Starts training with DeepSpeed's launcher: bash launch/deepspeed.sh CONFIG [--section.key VALUE ...]
#
# One machine: every GPU becomes a rank (NPROC=N for another number, and on CPU). Several: HOSTFILE=path, lines such as
# "worker-1 slots=8"; it needs pdsh here, ssh to each without a password, and this repository and its .venv at the same path
# on each. MASTER_ADDR=address of the first, where it is not the first that `hostname -I` says there. The layout comes from
# CONFIG alone: DeepSpeed gets no JSON of its own.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2; }

fail() {
    printf 'error: %s\n' "$@" >&2
    exit 2
}

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GPUS="$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)"
NPROC="${NPROC:-$((GPUS > 0 ? GPUS : 1))}"

where=()
if [ -n "${HOSTFILE:-}" ]; then
    [ -f "$HOSTFILE" ] || fail "HOSTFILE=$HOSTFILE is not a file; it has a line for each machine, such as: worker-1 slots=8"
    mapfile -t hosts < <(sed -n 's/^[[:space:]]*\([^#[:space:]][^[:space:]]*\)[[:space:]].*slots=.*/\1/p' "$HOSTFILE")
    NPROC="$(sed -n 's/^[[:space:]]*[^#[:space:]].*slots=\([0-9]\{1,\}\).*/\1/p' "$HOSTFILE" | sort -n | tail -n 1)"
    [ ${#hosts[@]} -gt 0 ] && [ -n "$NPROC" ] ||
        fail "HOSTFILE=$HOSTFILE names no machine; it has a line for each, such as: worker-1 slots=8"
    where=(--hostfile "$HOSTFILE")
    if [[ "${hosts[*]}" = localhost || "${hosts[*]}" = 127.0.0.1 ]]; then
        where+=(--no_ssh_check --master_addr 127.0.0.1) # DeepSpeed would ask this machine its address over ssh
    else
        command -v pdsh >/dev/null || fail "DeepSpeed starts other machines with pdsh, which is not installed here" \
            "install it (Debian, Ubuntu: apt install pdsh), or use launch/torchrun.sh on each machine"
        where+=(--force_multi) # a single machine that is not this one would be taken for this one
        [ -z "${MASTER_ADDR:-}" ] || where+=(--master_addr "$MASTER_ADDR")
    fi
elif [ "$GPUS" -gt 0 ]; then
    where=(--num_gpus "$NPROC")
else
    where=(--num_accelerators "$NPROC")
fi
export RANKS_PER_MACHINE=$NPROC
. "$ROOT/launch/env.sh"
# not the script `deepspeed`: it does not start from a path with a blank
exec python -m deepspeed.launcher.runner "${where[@]}" --master_port "${MASTER_PORT:-29500}" \
    "$ROOT/pretrain/pretrain_gpt.py" "$@"
