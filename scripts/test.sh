#!/usr/bin/env bash
# All checks of the project: set-up, lint, format, types, rooms, tests. Stops at the first that fails.
#
#     scripts/test.sh                     the quick tests, in two processes
#     scripts/test.sh --slow              the slow ones too, in one: those of many ranks fill the machine
#     scripts/test.sh tests/base -x       further arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

arguments=()
which_tests=(-m "not slow" -n 2 --dist worksteal)
for argument in "$@"; do
    if [[ $argument == --slow ]]; then which_tests=(); else arguments+=("$argument"); fi
done

step() {
    printf '\n== %s\n' "$1"
    shift
    "$@" || { status=$?; printf '\nfailed: %s\n' "$*" >&2; exit "$status"; }
}

browser() { # the tests look at the page in one; without it they say that they did not
    if command -v chromium >/dev/null || [[ -n ${SINKTRAIN_CHROMIUM:-} || $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        return
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium \
        fonts-dejavu-core; } >/dev/null 2>&1 || echo "no Chromium: the tests of the page in a browser are skipped"
}

step "set-up" bash scripts/setup.sh deepspeed wandb # DeepSpeed's strategies are tested on a CPU
step "a browser" browser

export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1         # a test that needs the network fails at once, everywhere
export TOKENIZERS_PARALLELISM=true                    # decided here, so that no forked worker warns about it
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"        # the tests' models are tiny: more threads only wait

step "lint (ruff check)" python -m ruff check .
step "format (ruff format --check)" python -m ruff format --check .
step "types (mypy)" python -m mypy
step "rooms (lint-imports)" lint-imports --no-logo
printf '\n== %s\n' "tests (pytest)"
exec python -m pytest ${which_tests[@]+"${which_tests[@]}"} ${arguments[@]+"${arguments[@]}"}
