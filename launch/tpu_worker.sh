#!/usr/bin/env bash
# What runs on each host of a TPU slice; launch/tpu_pod.sh calls it there, in the copied checkout.
#
#   install             sets up .venv with the pinned requirements and JAX for TPUs
#   start [--data-bucket BUCKET] [--copy-data gs://BUCKET/... [--copy-to DIR]] -- ARGS
#                       starts convnext_jax.main ARGS, unless it runs; does not wait. 127
#                       where nothing is installed, 2 where trying again would not help
#   follow              shows the log of the run until it ends
#   status              prints: running, the exit status, or none (not started, or cut off)
#   stop                asks the run to save and end, and waits until it has
#
# The run does not hang on the connection that started it: who follows it can leave and come back.
set -euo pipefail

UV_VERSION=0.13.8
PYTHON_VERSION=3.12
GCSFUSE_VERSION=3.6.0
DATA_DIR=/mnt/data
STATE=$HOME/.convnext_jax # log, process ids and exit status of the newest run
PREEMPTED=75

cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$STATE"

is_running() {
  local pid
  pid=$(cat "$STATE/supervisor" 2>/dev/null) || return 1
  # After a reboot the number may be another program's.
  kill -0 "$pid" 2>/dev/null && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q "tpu_worker.sh supervise"
}

install() {
  # The system's Python is too old; uv brings its own.
  python3 -m pip install --quiet --user "uv==$UV_VERSION"
  local uv=$HOME/.local/bin/uv
  "$uv" venv --quiet --allow-existing --python "$PYTHON_VERSION" .venv
  "$uv" pip install --quiet -r requirements.txt 'jax[tpu]'
  "$uv" pip install --quiet --no-deps -e .
}

mount_bucket() {
  if mountpoint -q "$DATA_DIR"; then return; fi
  if ! command -v gcsfuse >/dev/null; then
    local package=gcsfuse_${GCSFUSE_VERSION}_amd64.deb
    local releases=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download
    curl --fail --silent --show-error --location --remote-name \
      "$releases/v$GCSFUSE_VERSION/$package"
    sudo apt-get install --yes --quiet "./$package"
    rm "$package"
  fi
  sudo mkdir -p "$DATA_DIR"
  sudo chown "$(id -un)" "$DATA_DIR"
  # What is known of a file holds for good, as nobody changes the data during a run.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=-1 -o ro "$1" "$DATA_DIR"
}

start() {
  if is_running; then
    echo "already running"
    return
  elif [[ ! -x .venv/bin/python ]]; then
    exit 127 # as where this script is missing too
  fi
  local copied='' copy_to=/dev/shm/data
  while [[ $1 != -- ]]; do
    case $1 in
      --data-bucket) mount_bucket "$2" ;;
      --copy-data) copied=$2 ;;
      --copy-to) copy_to=$2 ;;
    esac
    shift 2
  done
  shift # the --
  if [[ -n $copied ]]; then
    # A copy that an earlier start began, and whose connection was lost, may go on still.
    flock "$STATE/copying" launch/copy_data.sh "$copied" "$copy_to"
  fi
  rm -f "$STATE/status" "$STATE/child"
  touch "$STATE/log"
  stat --format=%s "$STATE/log" >"$STATE/offset"
  setsid "launch/tpu_worker.sh" supervise "$@" </dev/null >>"$STATE/log" 2>&1 &
  echo $! >"$STATE/supervisor"
}

# Runs the program and leaves its exit status. A shutdown of the machine signals both; this one stays
# until the program has ended.
supervise() {
  local interrupted code
  trap 'interrupted=1' TERM
  # A TPU that cannot be reached is an error, not a reason to train on the CPU.
  JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} .venv/bin/python -m convnext_jax.main "$@" &
  echo $! >"$STATE/child"
  while :; do
    interrupted=0
    wait "$!" && code=0 || code=$?
    ((interrupted)) || break
  done
  echo "$code" >"$STATE/status.partial"
  mv "$STATE/status.partial" "$STATE/status"
}

follow() {
  local first=$(($(cat "$STATE/offset" 2>/dev/null || echo 0) + 1))
  if is_running; then
    tail --bytes=+"$first" --follow=name --pid="$(cat "$STATE/supervisor")" "$STATE/log"
  elif [[ -f $STATE/log ]]; then
    tail --bytes=+"$first" "$STATE/log"
  fi
}

status() {
  if is_running; then
    echo running
  elif [[ -f $STATE/status ]]; then
    cat "$STATE/status"
  else
    echo none
  fi
}

stop() {
  if is_running; then
    kill -TERM "$(cat "$STATE/child")"
    tail --follow --pid="$(cat "$STATE/supervisor")" /dev/null
  fi
  local ended
  ended=$(status)
  echo "$HOSTNAME: $ended"
  [[ $ended == "$PREEMPTED" || $ended == 0 || $ended == none ]]
}

case ${1-} in
  install | start | supervise | follow | status | stop) "$@" ;;
  *)
    echo "error: the command (=${1-}) must be install, start, follow, status or stop" >&2
    exit 2
    ;;
esac
