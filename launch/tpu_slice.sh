#!/usr/bin/env bash
# The slice of launch/tpu_pod.sh as gcloud sees it: is it there, make it, give it back, reach its hosts.
#
# To be sourced. It reads name, nodes, place, shape and dry of that script, and calls its fail and note.
# gcloud may fail at any call for reasons that pass: no connection, an expired login, a quota, a 503.
# That says nothing about the slice, so every call is made again, and only an answer counts.
# shellcheck disable=SC2154 # assigned by tpu_pod.sh

POLL_SECONDS=${POLL_SECONDS:-30}
MAX_UNREACHABLE=20 # attempts in a row at the hosts
MAX_FIRST=3        # attempts at the first question, which an option that is wrong lets fail for ever
answered=''

# Arguments as a shell reads them.
quoted() {
  local argument separator=''
  for argument in "$@"; do
    if [[ ! $argument =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then argument=${argument@Q}; fi
    printf '%s%s' "$separator" "$argument"
    separator=' '
  done
}

call() {
  if [[ -n $dry ]]; then
    quoted "$@" && echo
  else
    "$@"
  fi
}

# Makes a call until it succeeds, so often as hosts that have just been made need to answer.
patiently() {
  local attempts=0
  until "$@"; do
    ((++attempts < MAX_UNREACHABLE)) || fail "the hosts of $name cannot be reached" 1
    sleep "$POLL_SECONDS"
  done
}

# Calls gcloud; leaves what it printed in `answer`, and where it failed why in `message`.
ask() {
  local errors status=0
  errors=$(mktemp)
  answer=$(gcloud "$@" 2>"$errors") || status=$?
  message=$(grep -m 1 ERROR "$errors" || tail -n 1 "$errors")
  rm "$errors"
  return "$status"
}

# Asks for one kind of resource of this name. Leaves its state in `state`, empty where there is none;
# 1 where gcloud did not say.
describe() {
  local kind_asked=$1 field=$2
  if ask compute tpus "$kind_asked" describe "$name" "${place[@]}" "--format=value($field)"; then
    state=$answer kind=$kind_asked
    [[ -n $state ]]
  elif [[ $message =~ NOT_FOUND|[Rr]esource\ .*\ (was|could)\ not\ (be\ )?found ]]; then
    state='' kind=''
  else
    return 1
  fi
}

# Leaves the state of the queued resource, or of a slice made without one, in `state`, and which of
# the two it is in `kind`. Asks until gcloud answers.
ask_state() {
  local attempts=0 shown=''
  until describe queued-resources state.state && { [[ -n $state ]] || describe tpu-vm state; }; do
    if [[ -z $answered ]] && ((++attempts >= MAX_FIRST)); then
      fail "gcloud does not say whether $name is there: $message" 1
    fi
    if [[ $message != "$shown" ]]; then note "gcloud does not answer; asking again: $message"; fi
    shown=$message
    sleep "$POLL_SECONDS"
  done
  answered=yes
}

# States from which a slice does not come back.
is_lost() { [[ $state =~ ^(FAILED|SUSPENDED|PREEMPTED|TERMINATED)$ ]]; }

# Waits until the slice can be used; 1 if it is not there or lost, which `state` tells.
await_slice() {
  local shown=unknown
  if [[ -n $dry ]]; then
    note "wait until this says ACTIVE:"
    call gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
      '--format=value(state.state)'
    return
  fi
  while :; do
    ask_state
    if [[ $state != "$shown" ]]; then note "$name: ${state:-not there}"; fi
    shown=$state
    if [[ $state == ACTIVE || $state == READY ]]; then return 0; fi
    if [[ -z $state ]] || is_lost; then return 1; fi
    sleep "$POLL_SECONDS"
  done
}

# Asks for the slice. That it is there already is an answer too: the one to an earlier call was lost.
request() {
  local create=(gcloud compute tpus queued-resources create "$name") shown='' status
  if ((${#nodes[@]} == 1)); then
    create+=("--node-id=$name")
  else
    create+=("--node-count=${#nodes[@]}" "--node-prefix=$name")
  fi
  create+=("${place[@]}" --quiet "${shape[@]}")
  if [[ -n $dry ]]; then
    call "${create[@]}"
    return
  fi
  while :; do
    status=0
    ask "${create[@]:1}" || status=$?
    if ((status == 0)) || [[ $message == *ALREADY_EXISTS* || $message == *already\ exists* ]]; then
      return
    elif ((status == 2)) || [[ $message =~ INVALID_ARGUMENT|PERMISSION_DENIED|NOT_FOUND ]]; then
      fail "the slice (=$name) cannot be asked for: $message"
    fi
    if [[ $message != "$shown" ]]; then note "asking for $name again: $message"; fi
    shown=$message
    sleep "$POLL_SECONDS"
  done
}

# Makes sure that there is a slice that can be used: asks for one where there is none, also instead
# of one that was lost. Leaves in `new` whether there is another one than before.
provide() {
  new=''
  if [[ -n $dry ]]; then
    request
    await_slice
    new=yes
    return
  fi
  until await_slice; do
    if [[ -n $new && $state == FAILED ]]; then fail "the slice (=$name) cannot be had" 1; fi
    # Once more, right before something is done about it.
    ask_state
    if is_lost; then
      give_back
    elif [[ -z $state ]]; then
      request
      new=yes
    fi
  done
}

# Gives back what `ask_state` found, and asks again until it is gone or on its way.
give_back() {
  local force=() shown=''
  while [[ -n $state && $state != DELETING ]]; do
    if [[ $kind == queued-resources ]]; then force=(--force); fi
    if ask compute tpus "$kind" delete "$name" "${place[@]}" --quiet "${force[@]}"; then return; fi
    if [[ $message != "$shown" ]]; then note "giving $name back again: $message"; fi
    shown=$message
    sleep "$POLL_SECONDS"
    ask_state
  done
}

# Runs one command line on every host at once; not 0 if a host failed or could not be reached.
on_workers() {
  local node pid status=0 pids=()
  local ssh=(gcloud compute tpus tpu-vm ssh) rest=("${place[@]}" --quiet --worker=all "--command=$1")
  if [[ -n $dry ]] || ((${#nodes[@]} == 1)); then
    # In the foreground, where Ctrl-C ends it.
    for node in "${nodes[@]}"; do call "${ssh[@]}" "$node" "${rest[@]}" || return; done
    return
  fi
  for node in "${nodes[@]}"; do
    "${ssh[@]}" "$node" "${rest[@]}" &
    pids+=($!)
  done
  trap 'kill "${pids[@]}" 2>/dev/null || true; exit 130' INT TERM
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  trap - INT TERM
  return "$status"
}

# Copies a file to the home directory of every host, under its own name.
to_workers() {
  local node
  for node in "${nodes[@]}"; do
    patiently call gcloud compute tpus tpu-vm scp "$1" "$node:${1##*/}" "${place[@]}" --quiet \
      --worker=all
  done
}
