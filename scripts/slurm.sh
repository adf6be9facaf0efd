#!/usr/bin/env bash
#SBATCH --job-name=sinktrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# `sinktrain fit` as a SLURM job, one task a GPU, that goes on where it was after each time limit, preemption or failure.
# Submit it where `sinktrain` or .venv is; the arguments are those of fit. Options of sbatch win over the lines above; change
# --ntasks-per-node and --gpus-per-node together.
#
#     sbatch scripts/slurm.sh --config my.yaml --checkpoints.folder runs/my            8 GPUs of one node
#     sbatch --nodes=4 scripts/slurm.sh ...                                            of four
#     sbatch --array=1-10%1 scripts/slurm.sh ...                                       a chain: ten jobs, one after another
#     DRY_RUN=1 [SLURM_NNODES=4] bash scripts/slurm.sh ...                             print what a job would run, no more
#
# SLURM signals the ranks (USR1 180 seconds before the time limit, TERM when it preempts); they save and end. Then:
#
#     the limit is near    the job requeues itself; in a chain, the next job goes on
#     preempted            SLURM requeues the job (--requeue, where PreemptMode is REQUEUE)
#     a rank failed        the job requeues itself while SLURM_RESTART_COUNT is below SINKTRAIN_RETRIES (3), which counts
#                          every requeue; in a chain, the next job is the next try
#     a mistake (2)        no requeue; the rest of a chain is cancelled
#     training is done     exit status 0; the rest of a chain is cancelled
#
#     PYTHON=/path/to/python     else that of .venv, else python3
#     SINKTRAIN="a command"      what to run instead of python -m sinktrain
#     OMP_NUM_THREADS            else --cpus-per-task
set -euo pipefail

say() { printf 'slurm: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

read_directive() { sed -n "s/^#SBATCH --$1=//p" "${BASH_SOURCE[0]}"; }

has_checkpoints_folder() { # on the command line, or in a file that it names
    local argument
    for argument in "$@"; do
        if [[ $argument == --checkpoints.folder* ]]; then return 0; fi
        if [[ -f ${argument#--config=} ]] && grep -q '^checkpoints:' "${argument#--config=}"; then return 0; fi
    done
    return 1
}

is_alone() { # jobs of a chain write into one folder
    local others
    others=$(squeue --noheader --states=RUNNING --format=%A --jobs="$SLURM_ARRAY_JOB_ID" 2>/dev/null |
        grep -vx "$SLURM_JOB_ID") || true
    [[ -z $others ]]
}

requeue() {
    if ! scontrol requeue "$SLURM_JOB_ID"; then
        say "scontrol could not requeue job $SLURM_JOB_ID; submit it again, with the same --checkpoints.folder."
    fi
}

end_chain() {
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" || say "scancel could not cancel the rest of the array."
    fi
}

wait_for() { # wait_for PID: sets `status` to that of the process, whatever signals come in the meantime
    local code
    status=0
    while :; do
        interrupted='' code=0
        wait "$1" || code=$?
        if ((code != 127)); then status=$code; fi # 127: it was waited for already, when a signal came too
        if [[ -z $interrupted ]] || ((code == 127)); then return; fi
    done
}

pass_on() { # pass_on SIGNAL: for a signal that this script alone has got; ranks that have it already do not mind
    interrupted=yes
    if [[ -n ${step:-} ]]; then kill -s "$1" "$step" 2>/dev/null || true; fi
}

# ---- the command

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '/^# `sinktrain/,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
fi
if [[ -z ${DRY_RUN:-} && -z ${SLURM_JOB_ID:-} ]]; then
    fail "this is no SLURM job; submit it with sbatch scripts/slurm.sh ..., or see what it would run with DRY_RUN=1."
fi
has_checkpoints_folder "$@" || fail "--checkpoints.folder is missing; give a folder that every node sees:" \
    "a job that starts again goes on from the checkpoints there."
nodes=${SLURM_NNODES:-$(read_directive nodes)}
tasks=${SLURM_NTASKS_PER_NODE:-$(read_directive ntasks-per-node)}
cores=${SLURM_CPUS_PER_TASK:-$(read_directive cpus-per-task)}
[[ $tasks =~ ^[1-9][0-9]*$ ]] || fail "--ntasks-per-node must be one number, that of a node's GPUs, not '$tasks'."

python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x $PWD/.venv/bin/python ]]; then python=$PWD/.venv/bin/python; fi
if [[ -n ${SINKTRAIN:-} ]]; then read -ra program <<<"$SINKTRAIN"; else program=("$python" -u -m sinktrain); fi

# Ranks that stop end one after another, with a status that says why. --kill-on-bad-exit=1 (a cluster may have it as its
# default) would kill the later ones at the first, and srun's status be that of the kill. --wait does end those that hang
# after another has died.
command=(env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}" srun "--nodes=$nodes" "--ntasks-per-node=$tasks"
    "--cpus-per-task=$cores" --kill-on-bad-exit=0 --wait=120
    "${program[@]}" fit "$@" --trainer.num_nodes "$nodes" --trainer.devices "$tasks")
if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}" | sed 's/ $//'
    printf '\n'
    exit 0
fi

# ---- the job

chain=${SLURM_ARRAY_JOB_ID:-}
restarts=${SLURM_RESTART_COUNT:-0}
retries=${SINKTRAIN_RETRIES:-3}
[[ $retries =~ ^[0-9]+$ ]] || fail "SINKTRAIN_RETRIES must be a number from 0, not '$retries'."
if [[ -n $chain ]] && ! is_alone; then
    fail "another job of array $chain is running; a chain needs %1, as in sbatch --array=1-10%1."
fi

step=''
for name in USR1 TERM INT; do
    # shellcheck disable=SC2064
    trap "pass_on $name" "$name"
done
place=${chain:+, ${SLURM_ARRAY_TASK_ID:-?} of ${SLURM_ARRAY_TASK_MAX:-?} in chain $chain}
say "job $SLURM_JOB_ID$place, start $((restarts + 1))"
"${command[@]}" &
step=$!
wait_for "$step"
case $status in
    0) say "training is done."; end_chain ;;
    2) say "a mistake in the options or the data; mend it and submit again."; end_chain ;;
    130) say "interrupted, and saved; submit it again to go on." ;;
    138)
        if [[ -z $chain ]]; then
            say "saved before the time limit; requeued."
            requeue
        elif [[ ${SLURM_ARRAY_TASK_ID:-} != "${SLURM_ARRAY_TASK_MAX:-}" ]]; then
            say "saved before the time limit; the next job of the chain goes on."
        else
            say "saved before the time limit, and this was the last job of the chain; submit it again to go on."
        fi
        ;;
    143) say "preempted or cancelled, and saved; when it was preempted, SLURM requeues the job." ;;
    *)
        if [[ -n $chain ]]; then
            say "failed with status $status; the next job of the chain, if there is one, tries again."
        elif ((restarts < retries)); then
            say "failed with status $status; requeued ($restarts requeues before, SINKTRAIN_RETRIES is $retries)."
            requeue
        else
            say "failed with status $status after $restarts requeues; no more, since SINKTRAIN_RETRIES is $retries."
        fi
        ;;
esac
exit "$status"
