#!/usr/bin/env bash
# From two Chinese texts to a small GPT-3 that writes Chinese, on this machine's CPU: bash launch/quickstart.sh [--fresh]
#
# Run it again to go on where it stopped: a step whose output is newer than its input is not repeated, and training
# continues from its last checkpoint. --fresh removes data/quickstart and runs/quickstart of this repository first.
set -Eeuo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
DATA=data/quickstart
RUN=runs/quickstart
STARTED=$SECONDS
STEP="set-up"

case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$DATA" "$RUN" ;;
    *) echo "usage: bash launch/quickstart.sh [--fresh]" >&2 && exit 2 ;;
esac
[ $# -le 1 ] || { echo "usage: bash launch/quickstart.sh [--fresh]" >&2 && exit 2; }

stopped() {
    printf '\nstopped in step "%s" (status %s); what is done is kept.\nTo go on: bash launch/quickstart.sh\n' "$STEP" "$1" >&2
    printf 'To start over: bash launch/quickstart.sh --fresh\n' >&2
}
trap 'stopped $?' ERR

# is_newer OUTPUT INPUT...: the output is there and no input is newer.
is_newer() {
    local output="$1" input
    shift
    [ -e "$output" ] || return 1
    for input in "$@"; do
        if [ "$input" -nt "$output" ]; then return 1; fi
    done
}

# step TITLE OUTPUT [INPUT...] -- COMMAND...: runs the command unless its output is newer than its inputs.
step() {
    local title="$1" output="$2" inputs=()
    shift 2
    while [ "$1" != -- ]; do inputs+=("$1") && shift; done
    shift
    STEP="$title"
    if is_newer "$output" ${inputs[@]+"${inputs[@]}"}; then
        printf '\n== %s: done before (%s)\n' "$title" "$output"
        case "$output" in *.txt) cat "$output" ;; esac
    else
        printf '\n== %s\n' "$title"
        "$@"
    fi
}

# Shows the command's output and keeps it in the file, which appears when all of it is there.
keep() {
    local file="$1"
    shift
    "$@" | tee "$file.partial"
    mv "$file.partial" "$file"
}

samples() {
    megagpt generate "$RUN" --prompt "话说天下大势，" --prompt "却说曹操" --prompt "第一条" \
        --max-new-tokens 80 --temperature 0.8 --top-k 40 --seed 1
}

printf '== Environment\n'
RANKS=2
export RANKS_PER_MACHINE=$RANKS MEGAGPT_EXTRAS=export
. launch/env.sh
INSTALLED=$SECONDS
mkdir -p "$DATA" "$RUN"

step "Sample texts: 三国演义 and the statutes of the PRC" $DATA/corpus.jsonl -- \
    megagpt data sample sanguo law --output $DATA/corpus.jsonl

step "Tokenizer: SentencePiece BPE, 8000 ids" $DATA/tokenizer.model $DATA/corpus.jsonl -- \
    megagpt tokenizer train $DATA/corpus.jsonl --output $DATA/tokenizer.model --vocab-size 8000

step "Dataset: token ids of all documents" $DATA/corpus.idx $DATA/corpus.jsonl $DATA/tokenizer.model -- \
    megagpt data build $DATA/corpus.jsonl --output $DATA/corpus --tokenizer $DATA/tokenizer.model --overwrite

STEP="Plan"
printf '\n== Plan\n'
megagpt plan configs/quickstart.toml --gpus $RANKS > $RUN/plan.txt || { cat $RUN/plan.txt && false; }
printf 'written to %s; the same for any model: megagpt plan gpt3-13b --gpus 64\n' $RUN/plan.txt

# The address is given because torchrun would look up this machine's name, which hangs where that cannot be resolved.
STEP="Training on $RANKS ranks"
printf '\n== %s\n' "$STEP"
torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node $RANKS pretrain/pretrain_gpt.py configs/quickstart.toml

LATEST=$RUN/checkpoints/latest
step "Evaluation on held-out text" $RUN/evaluation.txt $LATEST -- keep $RUN/evaluation.txt megagpt evaluate $RUN
step "Text that the model writes" $RUN/samples.txt $LATEST -- keep $RUN/samples.txt samples
step "Export for Hugging Face transformers" $RUN/huggingface/config.json $LATEST -- \
    megagpt export $RUN --format hf --output $RUN/huggingface --overwrite

cat << END

==============================================================================
 Done in $((SECONDS - STARTED)) s ($((INSTALLED - STARTED)) s of them the environment). In $PWD:

   $DATA/tokenizer.model   the tokenizer
   $DATA/corpus.bin, .idx  the dataset
   $RUN/plan.txt          what the configuration comes to
   $RUN/metrics.jsonl     loss, speed and learning rate of every step
   $RUN/checkpoints       checkpoints; training goes on from the latest
   $RUN/samples.txt       the texts above
   $RUN/huggingface       the model for transformers

 Next (. .venv/bin/activate first):
   megagpt generate $RUN --prompt "玄德曰" --max-new-tokens 100
   megagpt plan gpt3-1.3b --gpus 8
   your own texts and models: docs/quickstart.md
==============================================================================
END
