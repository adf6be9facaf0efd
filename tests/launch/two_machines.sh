#!/usr/bin/env bash
# Runs two commands as on two machines of one network, and ends when both have: machines 10.77.0.1 and 10.77.0.2, each with
# a network namespace and a host name of its own that neither resolves.
#
#     unshare --map-root-user --net --uts bash two_machines.sh COMMAND_0 COMMAND_1
#
# The exit statuses are printed last: "statuses 0 0".
set -euo pipefail
hostname machine-0
ip link set lo up
ip link add v0 type veth peer name v1
ip address add 10.77.0.1/24 dev v0
ip link set v0 up

# shellcheck disable=SC2016
unshare --net --uts bash -euc '
    hostname machine-1
    until ip link show v1 >/dev/null 2>&1; do sleep 0.05; done
    ip link set lo up
    ip address add 10.77.0.2/24 dev v1
    ip link set v1 up
    eval "exec $1"' - "$2" &
other=$!
while [[ $(readlink "/proc/$other/ns/net") == "$(readlink /proc/self/ns/net)" ]]; do sleep 0.05; done
ip link set v1 netns "$other"

first=0 second=0
(eval "exec $1") || first=$?
wait "$other" || second=$?
echo "statuses $first $second"
