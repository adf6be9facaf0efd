#!/usr/bin/env bash
# The gate at the end of a training run: streams a text through the model, judges whether one sink is enough, and exits
# with the answer.
#
#     recipes/ci/verify.sh MODEL TEXT OUT [further options of `sinktrain evaluate`]
#
# MODEL   a checkpoint, an exported folder, or any name that `sinktrain evaluate --model.name` takes
# TEXT    held-out text: a folder of `sinktrain prepare`, or a source
# OUT     the result folder; holds results.json, verdict.json and summary.txt afterwards
#
# Exit status: 0 proven, 1 not proven, 2 could not be judged (verdict.json says why), 3 nothing was measured or judged: a
# mistake in the options, no memory, a dead machine.
set -euo pipefail
if [[ $# -lt 3 ]]; then
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 3
fi
model=$1 text=$2 out=$3
shift 3
caches=${CACHES:-0+256 1+255 4+252} # what is measured
cache=${CACHE:-1+255}               # is this one as good
against=${AGAINST:-4+252}           # as this one, and as recomputing?
margin=(${MARGIN:+--margin "$MARGIN"})

rm -f "$out/verdict.json" "$out/summary.txt" # an old answer must not outlive a run that fails
sinktrain evaluate --model.name "$model" --text "$text" --caches "$caches" --tokens "${TOKENS:-8192}" \
    --recompute "${RECOMPUTE:-400}" --out "$out" --overwrite true "$@" || exit 3

status=0
sinktrain verify --results "$out" --cache "$cache" --against "$against" ${margin[@]+"${margin[@]}"} > "$out/summary.txt" ||
    status=$?
cat "$out/summary.txt"
if [[ $status -gt 2 || ! -f $out/verdict.json ]]; then exit 3; fi
exit "$status"
