#!/usr/bin/env bash
# Compares sinktrain with its peers on one machine, in one run, on the same weights and tokens:
#
#     scripts/bench_peers.sh                                    SmolLM2-135M at cache 4+252: about 20 minutes on 2 cores
#     scripts/bench_peers.sh --cache 1+1023 --contestants "attention_sinks stream_nll dense"
#     scripts/bench_peers.sh --cache 1+4095 --contestants "attention_sinks SinkCache StaticCache" --agreement false
#     scripts/bench_peers.sh --help                             all options
#
# The peers: attention_sinks 0.4.0, the last that others have released, and stock transformers' StaticCache and plain
# forward. Prints tokens/s, ratios, and how far our NLLs are from those of attention_sinks, an independent check that
# they are right. Writes runs/peers/peers.json and runs/peers/nll.npz.
#
# attention_sinks needs a transformers of 2023, so it gets an environment of its own, .venv-peers, from
# scripts/peers/constraints.txt. PEERS_VENV=FOLDER puts it, or finds it, elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
peers=${PEERS_VENV:-$PWD/.venv-peers}
constraints=scripts/peers/constraints.txt
stamp=$peers/constraints-installed.txt # a copy of the constraints, written last

fail() { printf 'bench_peers: %s\n' "$*" >&2; exit 2; }
pip() { "$peers/bin/python" -m pip --disable-pip-version-check "$@"; }

install_torch() { # the build that .venv has, of the release in the constraints; setup.sh says why it takes three ways
    local release build
    release=$(sed -n 's/^torch==//p' $constraints)
    build=$(.venv/bin/python -c 'import torch; print("gpu" if torch.version.cuda or torch.version.hip else "cpu")')
    if [[ $build == cpu ]] && pip install -qq -c $constraints "torch==$release+cpu" 2>/dev/null; then return; fi
    if [[ $(uname -s) == Linux ]]; then
        pip install -qq uv
        "$peers/bin/python" -m uv pip install --quiet --python "$peers/bin/python" -c $constraints \
            --torch-backend="$([[ $build == cpu ]] && echo cpu || echo auto)" "torch==$release" && return
    fi
    pip install -qq -c $constraints "torch==$release"
}

make_peers() {
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] > (3, 12))' ||
        fail ".venv has a Python newer than 3.12, for which transformers 4.34.0 has no tokenizers;" \
            "make .venv with PYTHON=python3.11 scripts/setup.sh."
    printf 'bench_peers: making %s; this takes a minute or more\n' "$peers"
    .venv/bin/python -m venv --clear "$peers"
    install_torch
    pip install -qq -c $constraints attention_sinks transformers numpy einops
    cp $constraints "$stamp"
}

for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
        if [[ -x .venv/bin/python ]]; then PYTHONPATH=scripts exec .venv/bin/python -m peers.compare --help; fi
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' scripts/bench_peers.sh
        exit 0
    fi
done
scripts/setup.sh --with-smollm2
if ! cmp -s $constraints "$stamp"; then make_peers; fi
HF_HUB_OFFLINE=1 PYTHONPATH=scripts exec .venv/bin/python -m peers.compare --peers_python "$peers/bin/python" "$@"
