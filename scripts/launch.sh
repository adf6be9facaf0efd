#!/usr/bin/env bash
# `sinktrain fit` on many GPUs of one machine or of several, by torchrun. What comes after -- goes to fit.
#
#     scripts/launch.sh -- --config my.yaml --checkpoints.folder runs/my           all GPUs of this machine
#     scripts/launch.sh --gpus 4 --restarts 3 -- ...                               four; three failures are forgiven
#     scripts/launch.sh --nodes 2 --rdzv HOST:PORT -- ...                          this same command on each of 2 machines
#     scripts/launch.sh --nodes 2 --node-rank R --master HOST:PORT -- ...          or with numbers: HOST is machine 0
#     scripts/launch.sh --dry-run ... -- ...                                       print what would run where, no more
#
#     --gpus G, --cpus P     ranks on this machine, one a GPU or on the CPU; without either, as many as it has GPUs
#     --nodes N              machines; HOST is one of them, PORT (29500 if left out) a free port there
#     --restarts K           how often all ranks start again after one has failed, from the newest checkpoint
#     --save-seconds S       how long ranks that were asked to stop may take to save before they are killed (600)
#
# SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks, which save and end. The exit status is 0 when training is done,
# 128 + signal (143, 130, 138) when it has stopped for a signal to any rank of any machine, else that of a rank that failed.
# No rank outlives its launcher. A run goes on where it was when it is started again with the same --checkpoints.folder.
#
#     PYTHON=/path/to/python     else that of .venv, else python3
#     SINKTRAIN="a command"      what to run instead of python -m sinktrain
#     OMP_NUM_THREADS            else the cores of this machine, shared out among its ranks
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { printf 'launch: %s\n' "$*" >&2; exit 2; }
is_positive() { [[ $1 =~ ^[1-9][0-9]*$ ]]; }
is_number() { [[ $1 =~ ^(0|[1-9][0-9]*)$ ]]; }

nodes='' node_rank='' master='' rdzv='' gpus='' cpus='' restarts=0 save_seconds=600 dry_run=
while [[ $# -gt 0 ]]; do
    option=$1
    case $option in
        --nodes | --node-rank | --master | --rdzv | --gpus | --cpus | --restarts | --save-seconds)
            [[ $# -ge 2 && $2 != --* ]] || fail "$option needs a value."
            name=${option#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift 2
            ;;
        --dry-run) dry_run=yes; shift ;;
        -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$root/scripts/launch.sh"; exit 0 ;;
        --) shift; break ;;
        *) fail "$option is no option of launch.sh; what is meant for sinktrain fit comes after --." ;;
    esac
done

find_python() {
    if [[ -n ${PYTHON:-} ]]; then echo "$PYTHON"
    elif [[ -x $root/.venv/bin/python ]]; then echo "$root/.venv/bin/python"
    else echo python3; fi
}

# ---- the ranks of a machine

[[ -z $gpus || -z $cpus ]] || fail "--gpus and --cpus exclude each other; give one."
if [[ -z $gpus$cpus ]]; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || true
    is_positive "$gpus" || fail "this machine has no NVIDIA GPU; give --gpus G for others, or --cpus P."
fi
ranks=$gpus$cpus accelerator=gpu
if [[ -n $cpus ]]; then accelerator=cpu; fi
is_positive "$ranks" || fail "--gpus and --cpus take a number of ranks from 1, not $ranks."
is_number "$restarts" || fail "--restarts takes a number from 0, not $restarts."
is_number "$save_seconds" || fail "--save-seconds takes a whole number, not $save_seconds."

# ---- the machines

if [[ -n $rdzv || -n $master ]]; then
    [[ -n $nodes ]] || fail "${rdzv:+--rdzv}${master:+--master} needs --nodes, the number of machines."
fi
nodes=${nodes:-1}
is_positive "$nodes" || fail "--nodes takes a number from 1, not $nodes."
[[ -z $rdzv || -z $master$node_rank ]] || fail "--rdzv excludes --master and --node-rank; give one or the others."
[[ -z $node_rank || -n $master ]] || fail "--node-rank needs --master HOST:PORT."
[[ $nodes == 1 || -n $rdzv$master ]] || fail "--nodes $nodes needs --rdzv HOST:PORT, or --master HOST:PORT and --node-rank."
meeting=$rdzv$master
if [[ -n $meeting ]]; then
    if [[ $meeting != *:* ]]; then meeting+=:29500; fi
    [[ $meeting =~ ^[^:]+:[1-9][0-9]*$ ]] || fail "${rdzv:+--rdzv}${master:+--master} takes HOST:PORT, not $rdzv$master."
fi
if [[ -n $master && -z $dry_run ]]; then
    [[ -n $node_rank ]] || fail "--master needs --node-rank, from 0 on the machine HOST to $((nodes - 1))."
fi
if [[ -n $node_rank ]]; then
    if ! is_number "$node_rank" || ((node_rank >= nodes)); then
        fail "--node-rank takes 0 to $((nodes - 1)), not $node_rank."
    fi
fi

# ---- the command

python=$(find_python)
if [[ -n ${SINKTRAIN:-} ]]; then read -ra program <<<"$SINKTRAIN"; else program=("$python" -u -m sinktrain); fi
# Should the launcher be killed by SIGKILL, the system kills the ranks.
if command -v setpriv >/dev/null; then program=(setpriv --pdeathsig KILL -- "${program[@]}"); fi

command_for() { # command_for NODE_RANK: sets `command`
    local options=("--nnodes=$nodes" "--nproc-per-node=$ranks" "--max-restarts=$restarts")
    options+=(--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1)
    if [[ -n $rdzv ]]; then
        options+=(--rdzv-backend=c10d "--rdzv-endpoint=$meeting" --rdzv-id=sinktrain)
        options+=(--rdzv-conf=join_timeout=900,read_timeout=900)
    elif [[ -n $master ]]; then
        options+=("--master-addr=${meeting%:*}" "--master-port=${meeting##*:}" "--node-rank=$1")
    fi
    command=(env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads}" "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$save_seconds"
        "$python" "$root/scripts/agent.py" "${options[@]}" --no-python "${program[@]}" fit ${arguments[@]+"${arguments[@]}"}
        --trainer.accelerator "$accelerator" --trainer.num_nodes "$nodes" --trainer.devices "$ranks")
}

arguments=("$@")
threads=$(($(nproc) / ranks))
if ((threads < 1)); then threads=1; fi

if [[ -z $dry_run ]]; then
    command_for "$node_rank"
    exec "${command[@]}"
fi
for ((node = 0; node < nodes; node++)); do
    if [[ -n $node_rank && $node != "$node_rank" ]]; then continue; fi
    command_for "$node"
    if ((nodes > 1)); then printf '# machine %d\n' "$node"; fi
    printf '%q ' "${command[@]}" | sed 's/ $//'
    printf '\n'
done
