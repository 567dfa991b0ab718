#!/usr/bin/env bash
# One training on a Cloud TPU slice, from your own machine:
#
#   launch/tpu_pod.sh COMMAND --name NAME --zone ZONE [options] [-- ARGS of convnext_jax.main]
#
#   train     all of it: create the slice unless it is there, install, run; after a preemption
#             create it again and go on
#   create    ask for the slice (a queued resource of the same name) and wait until it is active
#   install   copy the package and configs/ to every host and install there
#   run       start on every host, follow, start again after a preemption; on a run that goes on
#             already: follow it
#   follow    show the log until the run ends         status    what each host's run is doing
#   stop      save and end on every host              delete    give the slice back
#
#   --project PROJECT   gcloud's own default, unless given
#   --type TYPE         such as v5litepod-256, v6e-64, v4-128; for train and create
#   --version VERSION   runtime image; follows the type, unless given
#   --spot              a slice that can be taken away at any time, for less money
#   --data-bucket NAME  mount this bucket, reading only, at /mnt/data on every host
#   --delete            give the slice back when train or run ends with 0
#   --dry-run           print the commands, run none
#
# Ends with the program's status: 0 done, 1 had to stop, 2 unusable input, 75 preempted more often than
# MAX_RESTARTS. Leaving with Ctrl-C does not end the run; `run` follows it again.
set -euo pipefail

MAX_RESTARTS=${MAX_RESTARTS:-100}
POLL_SECONDS=${POLL_SECONDS:-30}
MAX_UNREACHABLE=20 # attempts in a row
PREEMPTED=75
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COPIED=(convnext_jax configs launch requirements.txt setup.cfg pyproject.toml README.md LICENSE)
WORKER=convnext_jax/launch/tpu_worker.sh # on the hosts, from the home directory

fail() {
  echo "error: $1" >&2
  exit "${2-2}"
}

command=${1-}
case $command in
  train | create | install | run | follow | status | stop | delete) shift ;;
  *) fail "the command (=$command) must be train, create, install, run, follow, status, stop or delete" ;;
esac
name='' zone='' type='' version='' bucket='' delete='' dry='' spot=() project=()
while (($#)); do
  case $1 in
    --name | --zone | --project | --type | --version | --data-bucket)
      if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then fail "\`$1\` must have a value"; fi
      case $1 in
        --name) name=$2 ;; --zone) zone=$2 ;; --project) project=("--project=$2") ;;
        --type) type=$2 ;; --version) version=$2 ;; --data-bucket) bucket=${2#gs://} ;;
      esac
      shift 2
      ;;
    --spot) spot=(--spot) && shift ;;
    --delete) delete=yes && shift ;;
    --dry-run) dry=yes && shift ;;
    --) shift && break ;;
    *) fail "\`$1\` is not an option; what convnext_jax.main gets comes after --" ;;
  esac
done
program=("$@")
[[ -n $name ]] || fail "\`--name\` must be given"
[[ -n $zone ]] || fail "\`--zone\` must be given"
if [[ $command == train || $command == run ]]; then
  ((${#program[@]})) || fail "arguments of convnext_jax.main must be given after --"
fi
if [[ $command == train || $command == create ]]; then
  [[ -n $type ]] || fail "\`--type\` must be given"
  case ${version:-$type} in
    "$version") ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v[234]-*) version=tpu-ubuntu2204-base ;;
    *) fail "\`--version\` must be given for the type (=$type)" ;;
  esac
fi
place=("--zone=$zone" "${project[@]}")

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

note() { if [[ -n $dry ]]; then echo "# $*"; else echo "# $*" >&2; fi; }

# Runs one command line on every host at once; 255 if one cannot be reached.
on_workers() {
  call gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --quiet --worker=all "--command=$1"
}

queued_state() {
  call gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    '--format=value(state.state)' 2>/dev/null
}

# The state of the queued resource, or of a slice made without one; empty if there is neither.
slice_state() {
  queued_state || gcloud compute tpus tpu-vm describe "$name" "${place[@]}" \
    '--format=value(state)' 2>/dev/null || true
}

# Waits until the slice can be used; 1 if it is not there, or not any more.
await_slice() {
  local state shown=unknown
  if [[ -n $dry ]]; then
    note "wait until this says ACTIVE:"
    queued_state
    return
  fi
  while :; do
    state=$(slice_state)
    if [[ $state != "$shown" ]]; then note "$name: ${state:-not there}"; fi
    shown=$state
    case $state in
      ACTIVE | READY) return 0 ;;
      '' | FAILED | SUSPENDED | PREEMPTED | TERMINATED) return 1 ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

create() {
  call gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${place[@]}" --quiet \
    "--accelerator-type=$type" "--runtime-version=$version" "${spot[@]}"
  await_slice || fail "the slice (=$name) cannot be had" 1
}

delete() {
  if [[ -n $dry ]] || queued_state >/dev/null; then
    call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force
  else
    gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

install() {
  local archive=convnext_jax.tar.gz directory='' attempts=0
  if [[ -z $dry ]]; then
    directory=$(mktemp -d)
    archive=$directory/$archive
  fi
  # The files as they are, committed or not.
  call tar -C "$ROOT" -czf "$archive" --exclude=__pycache__ "${COPIED[@]}"
  # A host that has just been made may not answer yet.
  until call gcloud compute tpus tpu-vm scp "$archive" "$name:convnext_jax.tar.gz" "${place[@]}" \
    --quiet --worker=all; do
    ((++attempts < MAX_UNREACHABLE)) || fail "the hosts of $name cannot be reached" 1
    sleep "$POLL_SECONDS"
  done
  on_workers "mkdir -p convnext_jax && tar -C convnext_jax -xzf convnext_jax.tar.gz && $WORKER install"
  if [[ -n $directory ]]; then rm -r "$directory"; fi
}

# Makes the slice usable, for `train` also by creating it, again if it was lost.
ensure_slice() {
  if [[ $command != train ]]; then
    await_slice || fail "the slice (=$name) is not there; \`train\` creates it" 1
  elif [[ -n $dry ]] || ! await_slice; then
    if [[ -z $dry && -n $(slice_state) ]]; then delete; fi
    create
    install
    started=''
  elif [[ -z $installed && $(outcome) != running ]]; then
    install
  fi
  installed=yes
}

# One word for what all hosts report: unreachable, running, again, or the status to end with.
outcome() {
  local words failed
  words=$(on_workers "$WORKER status" | grep -xE 'running|none|[0-9]+' | sort -u) || words=''
  failed=$(grep -vxE "running|none|0|$PREEMPTED" <<<"$words" | sort -n | head -n 1) || true
  case $words in
    '') echo unreachable ;;
    *running*) echo running ;;
    0) echo 0 ;;
    *) echo "${failed:-again}" ;;
  esac
}

# Starts and follows until the end; leaves the program's status in `final`.
run() {
  local start status result restarts=0 unreachable=0
  start=("$WORKER" start ${bucket:+--data-bucket "$bucket"} -- "${program[@]}")
  started='' installed=''
  while :; do
    ensure_slice
    result=''
    if [[ -z $started ]]; then
      status=0
      on_workers "$(quoted "${start[@]}")" || status=$?
      case $status in
        0) started=yes ;;
        255) result=unreachable ;;
        *) result=$status ;;
      esac
    fi
    if [[ -z $result ]]; then
      on_workers "$WORKER follow" || true
      if [[ -n $dry ]]; then
        on_workers "$WORKER status"
        note "$PREEMPTED, or none: from the wait on again; 0, 1, 2: the end"
        final=0
        return
      fi
      result=$(outcome)
    fi
    case $result in
      unreachable | running)
        if [[ $result == running ]]; then unreachable=0; fi
        ((++unreachable <= MAX_UNREACHABLE)) || fail "the hosts of $name cannot be reached" 1
        sleep "$POLL_SECONDS"
        ;;
      again)
        unreachable=0
        if ((++restarts > MAX_RESTARTS)); then
          final=$PREEMPTED
          return
        fi
        note "preempted after saving, or cut off; start number $((restarts + 1))"
        started=''
        ;;
      *)
        final=$result
        return
        ;;
    esac
  done
}

case $command in
  train | run)
    run
    if [[ -n $delete && $final == 0 ]]; then delete; fi
    exit "$final"
    ;;
  follow | status | stop) on_workers "$WORKER $command" ;;
  *) "$command" ;;
esac
