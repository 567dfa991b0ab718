#!/usr/bin/env bash
# One training on a Cloud TPU slice, or on several, from your own machine:
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
#   --slices N          as many slices of that type, NAME-0 and so on, for one run; for every command
#   --version VERSION   runtime image; follows the type, unless given
#   --spot              a slice that can be taken away at any time, for less money
#   --reserved          from your reservation
#   --service-account EMAIL, --network NAME, --subnetwork NAME
#                       of the hosts; the project's default ones, unless given
#   --data-bucket NAME  mount this bucket, reading only, at /mnt/data on every host
#   --copy-data gs://BUCKET/.../NAME/VERSION
#                       copy this prepared dataset to every host before the start, for `data.dir`
#                       /dev/shm/data, which is memory
#   --copy-to DIR       another place for it; its `data.dir`
#   --delete            give the slice back when train or run ends with 0
#   --dry-run           print the commands, run none
#
# Ends with the program's status: 0 done, 1 had to stop, 2 unusable input, 75 started again more often
# than MAX_RESTARTS. 75, 76 (lost what may come back), and hosts whose program was killed or that
# were cut off, are started again. Leaving with Ctrl-C does not end the run; `run` follows it again.
set -euo pipefail

MAX_RESTARTS=${MAX_RESTARTS:-100}
PREEMPTED=75
# Ends after which the same command goes on: 75 and 76 say so; 134, 137 and 143 are a process killed by
# a signal; none is a host that was cut off.
AGAIN="$PREEMPTED|76|134|137|143|none"
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
COPIED=(convnext_jax configs launch requirements.txt setup.cfg pyproject.toml README.md LICENSE)
WORKER=convnext_jax/launch/tpu_worker.sh # on the hosts, from the home directory
UNINSTALLED=127                            # what a shell says where that is missing

fail() {
  echo "error: $1" >&2
  exit "${2-2}"
}

command=${1-}
case $command in
  train | create | install | run | follow | status | stop | delete) shift ;;
  *) fail "the command (=$command) must be train, create, install, run, follow, status, stop or delete" ;;
esac
name='' zone='' type='' version='' slices=1 data=() delete='' dry='' extra=() project=()
while (($#)); do
  case $1 in
    --name | --zone | --project | --type | --slices | --version | --data-bucket | \
      --copy-data | --copy-to | --service-account | --network | --subnetwork)
      if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then fail "\`$1\` must have a value"; fi
      case $1 in
        --name) name=$2 ;; --zone) zone=$2 ;; --project) project=("--project=$2") ;;
        --type) type=$2 ;; --slices) slices=$2 ;; --version) version=$2 ;;
        --data-bucket) data+=("$1" "${2#gs://}") ;; --copy-*) data+=("$1" "$2") ;;
        *) extra+=("$1=$2") ;;
      esac
      shift 2
      ;;
    --spot | --reserved) extra+=("$1") && shift ;;
    --delete) delete=yes && shift ;;
    --dry-run) dry=yes && shift ;;
    --) shift && break ;;
    *) fail "\`$1\` is not an option; what convnext_jax.main gets comes after --" ;;
  esac
done
program=("$@")
[[ -n $name ]] || fail "\`--name\` must be given"
[[ -n $zone ]] || fail "\`--zone\` must be given"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "\`--slices\` (=$slices) must be a positive whole number"
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
shape=("--accelerator-type=$type" "--runtime-version=$version" "${extra[@]}")
nodes=("$name") # as gcloud names the slices of one queued resource
if ((slices > 1)); then
  nodes=()
  for ((index = 0; index < slices; index++)); do nodes+=("$name-$index"); done
fi

note() { if [[ -n $dry ]]; then echo "# $*"; else echo "# $*" >&2; fi; }

# shellcheck source=launch/tpu_slice.sh
source "$ROOT/launch/tpu_slice.sh"

delete() {
  if [[ -n $dry ]]; then
    call gcloud compute tpus queued-resources delete "$name" "${place[@]}" --quiet --force
    return
  fi
  ask_state
  [[ -n $state ]] || fail "the slice (=$name) is not there" 1
  give_back
}

install() {
  local archive=convnext_jax.tar.gz directory=''
  if [[ -z $dry ]]; then
    directory=$(mktemp -d)
    archive=$directory/$archive
  fi
  # The files as they are, committed or not.
  call tar -C "$ROOT" -czf "$archive" --exclude=__pycache__ "${COPIED[@]}"
  to_workers "$archive"
  patiently on_workers \
    "mkdir -p convnext_jax && tar -C convnext_jax -xzf convnext_jax.tar.gz && $WORKER install"
  if [[ -n $directory ]]; then rm -r "$directory"; fi
}

# Makes the slice usable, for `train` also by asking for it, again if it was lost.
ensure_slice() {
  if [[ $command != train ]]; then
    await_slice || fail "the slice (=$name) is not there; \`train\` creates it" 1
    return
  fi
  provide
  if [[ -n $new ]]; then
    install
    started=''
  elif [[ -z $installed ]]; then
    # Not under a run that goes on.
    patiently reported
    if [[ $result != running ]]; then install; fi
  fi
  installed=yes
}

# Whether all hosts said how they are. Leaves one word for it in `result`: running, again, or the
# status to end with: 2 before all others, which repeat it where they can; 0 if all have it.
reported() {
  local words status=0 final
  words=$(on_workers "$WORKER status") || status=$?
  if ((status == UNINSTALLED)); then words=none; elif ((status)); then return 1; fi
  words=$(grep -xE 'running|none|[0-9]+' <<<"$words" | sort -nu) || return 1
  final=$(grep -vxE "running|0|$AGAIN" <<<"$words") || true
  if grep -qx 2 <<<"$final"; then final=2; fi
  case $words in
    *running*) result=running ;;
    0) result=0 ;;
    *) result=${final%%$'\n'*} && result=${result:-again} ;;
  esac
}

# Starts on every host where it does not run yet; 1 if one could not be reached, or has nothing
# installed, which `train` makes up for. Leaves 2 in `result` where a host says that it is no use.
start() {
  local status=0 worker
  worker=("$WORKER" start "${data[@]}" -- "${program[@]}")
  on_workers "$(quoted "${worker[@]}")" || status=$?
  if ((status == UNINSTALLED)); then
    [[ $command == train ]] || fail "nothing is installed on $name; \`install\` comes first"
    installed=''
  elif ((status == 2)); then
    result=2
  fi
  ((status == 0 || status == 2))
}

# Starts and follows until the end; leaves the program's status in `final`.
run() {
  local result restarts=0 unreachable=0
  started='' installed=''
  while :; do
    ensure_slice
    result=''
    if [[ -z $started ]] && start; then started=yes; fi
    if [[ -n $started && -z $result ]]; then
      on_workers "$WORKER follow" || true
      if [[ -n $dry ]]; then
        on_workers "$WORKER status"
        note "75, 76, killed or none: from the wait on again; 0, 1, 2: the end"
        final=0
        return
      fi
      reported || true
    fi
    case $result in
      '' | running)
        if [[ $result == running ]]; then unreachable=0; fi
        ((++unreachable <= MAX_UNREACHABLE)) || fail "the hosts of $name cannot be reached" 1
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
    sleep "$POLL_SECONDS"
  done
}

case $command in
  train | run)
    run
    if [[ -n $delete && $final == 0 ]]; then delete; fi
    exit "$final"
    ;;
  follow | status | stop) on_workers "$WORKER $command" ;;
  create) provide ;;
  *) "$command" ;;
esac
