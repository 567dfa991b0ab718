#!/usr/bin/env bash
# Runs one training as N processes on this machine, to try out what several hosts do:
#
#   launch/local.sh N --config FILE[:RUN] --workdir DIR [--config.KEY=VALUE ...]
#
# Process i uses GPU i, if there are GPUs. SIGTERM and Ctrl-C reach every process; a second Ctrl-C
# ends them at once. The first process that fails ends the others. When the script ends, nothing that
# it started is left. Its status: 2 or 1, if a process said so; 75 (preempted after saving), if all
# did; 130, if that was Ctrl-C's doing; 76 (start again), if processes were killed or lost what they need.
set -euo pipefail

# How long the others may take to end after one has failed, before they are killed; and to find out by
# themselves that one was killed, or why it lost them, before they are asked to.
GRACE_SECONDS=${GRACE_SECONDS:-30}
PATIENCE_SECONDS=${PATIENCE_SECONDS:-5}
PREEMPTED=75
LOST=76
INTERRUPTED=130

if [[ ! ${1-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: the first argument (=${1-}) must be the number of processes" >&2
  exit 2
fi
count=$1
shift

port=${JAX_COORDINATOR_PORT:-$(python -c \
  'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS="localhost:$port" JAX_NUM_PROCESSES="$count"

started=()           # process ids of the system
declare -A running=() # those that run -> JAX_PROCESS_ID
signal_all() {
  local pid
  for pid in "${!running[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
interrupted=0
interrupt() {
  if ((++interrupted == 1)); then signal_all TERM; else signal_all KILL; fi
}
trap 'signal_all TERM' TERM HUP
trap interrupt INT

# Whether two seconds pass and there still is something that the processes started.
groups_stay() {
  local pid tenth left
  for ((tenth = 0; tenth < 20; tenth++)); do
    left=''
    for pid in "${started[@]}"; do
      if kill -0 -- "-$pid" 2>/dev/null; then left=yes; fi
    done
    if [[ -z $left ]]; then return 1; fi
    sleep 0.1
  done
}
# Ends what processes left behind, and sees it gone: what is killed takes its time where others compute.
end_groups() {
  local pid
  if groups_stay; then
    for pid in "${started[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    groups_stay || true
  fi
}
trap end_groups EXIT

for ((index = 0; index < count; index++)); do
  # setsid: it leads a group of its own, in which those that it starts are.
  JAX_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index setsid python -m convnext_jax.main "$@" &
  running[$!]=$index
  started+=($!)
done

failure=0 # the first that starting again would not mend, 2 before all others
lost=0
preempted=0
next=''     # signal for those that still run
deadline='' # when they get it, in seconds of the script
later() { next=$2 deadline=$((SECONDS + $1)); }
end_others() {
  echo "ending the others" >&2
  signal_all TERM
  later "$GRACE_SECONDS" KILL
}

# What the end of one process means for all.
take() {
  local index=$1 status=$2
  case $status in
    0) return ;;
    "$PREEMPTED" | "$INTERRUPTED")
      ((++preempted))
      return
      ;;
    # By the name of it, or killed by a signal.
    "$LOST" | 134 | 137 | 143) ((++lost)) ;;
    2) failure=2 ;;
    *) if ((failure == 0)); then failure=$status; fi ;;
  esac
  echo "process $index ended with status $status" >&2
  if ((failure)); then
    if [[ $next != KILL ]]; then end_others; fi
  elif ((lost == 1)); then
    later "$PATIENCE_SECONDS" TERM
  fi
}

# Not `wait -n`, which overlooks a process that ends while another is being looked after.
while ((${#running[@]})); do
  sleep 0.1
  for pid in "${!running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    wait "$pid" && status=0 || status=$?
    index=${running[$pid]}
    unset "running[$pid]"
    take "$index" "$status"
  done
  if [[ -n $next ]] && ((SECONDS >= deadline && ${#running[@]})); then
    if [[ $next == TERM ]]; then end_others; else signal_all KILL; fi
  fi
done

if ((failure)); then
  exit "$failure"
elif ((interrupted)); then
  exit "$INTERRUPTED"
elif ((lost)); then
  exit "$LOST"
elif ((preempted == count)); then
  exit "$PREEMPTED"
elif ((preempted)); then
  echo "error: only $preempted of $count processes ended with status $PREEMPTED" >&2
  exit 1
fi
