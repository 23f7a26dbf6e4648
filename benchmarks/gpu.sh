#!/usr/bin/env bash
# Everything that waits for a GPU, with one command: bash benchmarks/gpu.sh [--folder FOLDER] [PIECE ...]
#
# Pieces, in their order: tests, attention, head, optimizer, ceiling, then each size of the family (gpt3-2.7b), its
# fp8 run (gpt3-2.7b-fp8), the same with train.compile (gpt3-2.7b-compile), its peers (gpt3-2.7b-nanogpt,
# gpt3-2.7b-huggingface), and the loss curves (curve-bf16, curve-fp8, curve-seed). All of them without a name; `list` prints
# them. Each ends within 10 minutes
# (PIECE_SECONDS=N: others) and writes what it found at once, so that pieces can be run one at a time, also on different
# days: give the same folder. What is done is not done again; remove FOLDER/PIECE.done, or its lines of raw.jsonl.
# SMALL=1 runs all on any machine in a small form, to see that it works.
#
# It needs Python with torch, Triton, transformers, DeepSpeed, megatron-core and this package's other requirements,
# nothing of the network, and room for the data set that it makes of Python's own sources (under 200 MB).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
seconds=${PIECE_SECONDS:-590}
folder=benchmarks/results/gpu-$(date +%Y-%m-%d)
if [ "${1:-}" = --folder ]; then
    folder=${2:?--folder needs a folder}
    shift 2
fi
small=()
[ "${SMALL:-0}" = 1 ] && small=(--small)
pieces=(tests attention head optimizer ceiling
    gpt3-1.3b gpt3-2.7b gpt3-1.3b-fp8 gpt3-2.7b-fp8
    gpt3-1.3b-nanogpt gpt3-1.3b-huggingface gpt3-2.7b-nanogpt gpt3-2.7b-huggingface
    gpt3-1.3b-compile gpt3-2.7b-compile gpt3-base-compile gpt3-large-compile
    gpt3-base gpt3-base-nanogpt gpt3-base-huggingface gpt3-large gpt3-large-nanogpt gpt3-large-huggingface
    curve-bf16 curve-fp8 curve-seed gpt3-13b gpt3-13b-fp8)
if [ "${1:-}" = list ]; then
    printf '%s\n' "${pieces[@]}"
    exit 0
fi
[ $# -gt 0 ] && pieces=("$@")
mkdir -p "$folder" || exit 1

# Runs a command within the limit and keeps what it prints; the piece is done if it ends well.
run() {
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$folder/$name.log"
    local status=${PIPESTATUS[0]}
    [ "$status" = 0 ] && : >"$folder/$name.done"
    return "$status"
}

failed=()
for piece in "${pieces[@]}"; do
    name=$(basename "$piece")
    if [ -e "$folder/$name.done" ]; then
        echo "== $piece: done before"
        continue
    fi
    echo "== $piece"
    case $piece in
    tests)
        run "$python" -m pytest tests/gpu -q -p no:cacheprovider
        ;;
    attention | head | optimizer)
        run "$python" "benchmarks/gpu_$piece.py" "${small[@]}" --output "$folder/gpu-$piece.json"
        ;;
    *)
        run "$python" benchmarks/gpu_train.py "$piece" --folder "$folder" --data "${SUITE_DATA:-data/gpu-suite}" \
            --seconds "$((seconds - 15))" "${small[@]}"
        ;;
    esac || failed+=("$piece")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "not done: ${failed[*]} (the same command goes on with them); logs are in $folder"
    exit 1
fi
echo "all done: $folder"
