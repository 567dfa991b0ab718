#!/usr/bin/env bash
# Runs one training as N processes on this machine, to try out what several hosts do:
#
#   launch/local.sh N --config FILE[:RUN] --workdir DIR [--config.KEY=VALUE ...]
#
# Process i uses GPU i, if there are GPUs. SIGTERM and Ctrl-C reach every process. The first process
# that fails ends the others, and its status is the script's; 75 (preempted after saving) comes back
# only if every process ended with it. Needs bash 5.1 or newer.
set -euo pipefail

# How long the others may take to end after one has failed, before they are killed.
GRACE_SECONDS=${GRACE_SECONDS:-30}
PREEMPTED=75

if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument (=${1-}) must be the number of processes" >&2
  exit 2
fi
count=$1
shift

port=${JAX_COORDINATOR_PORT:-$(python -c \
  'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$count"

declare -A running=() # process id of the system -> JAX_PROCESS_ID
signal_all() {
  local pid
  for pid in "${!running[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
# Processes in the background of a script ignore SIGINT, so Ctrl-C becomes SIGTERM.
trap 'signal_all TERM' TERM INT HUP

for ((index = 0; index < count; index++)); do
  JAX_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index python -m convnext_jax.main "$@" &
  running[$!]=$index
done

failure=0
preempted=0
timer=
while ((${#running[@]})); do
  ended=
  wait -n -p ended "${!running[@]}" ${timer:+"$timer"} && status=0 || status=$?
  if [[ -z ${ended-} ]]; then
    continue # a signal came while waiting
  elif [[ $ended == "$timer" ]]; then
    timer=
    signal_all KILL
    continue
  fi
  index=${running[$ended]}
  unset "running[$ended]"
  if ((status == PREEMPTED)); then
    ((++preempted))
  elif ((status != 0 && failure == 0)); then
    failure=$status
    echo "process $index ended with status $status; ending the others" >&2
    signal_all TERM
    # Without the script's own outputs: who reads them should not wait for the timer.
    sleep "$GRACE_SECONDS" >/dev/null 2>&1 &
    timer=$!
  fi
done
if [[ -n $timer ]]; then kill "$timer" 2>/dev/null || true; fi

if ((failure)); then
  exit "$failure"
elif ((preempted == count)); then
  exit "$PREEMPTED"
elif ((preempted)); then
  echo "error: only $preempted of $count processes ended with status $PREEMPTED" >&2
  exit 1
fi
