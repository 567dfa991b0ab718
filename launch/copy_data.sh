#!/usr/bin/env bash
# Copies a prepared dataset from a bucket to this host, before a run that reads it there:
#
#   launch/copy_data.sh gs://BUCKET/tfds/imagenet2012/5.1.0 /dev/shm/data
#
# It then is in /dev/shm/data/imagenet2012/5.1.0, and `data.dir` is /dev/shm/data. A copy that is
# complete is kept, one that is not continues. Ends after a sentence with 2 where trying again would
# not help (the source is not there, the host has no room), with 75 where it would. tpu_worker.sh calls it, and
# k8s/render.py puts it into an init container. Needs gcloud.
set -euo pipefail

source=${1%/} root=$2
if [[ ! $source =~ ^gs://[^/]+/(.*/)?([^/]+)/([^/]+)$ ]]; then
  echo "error: the source (=$source) must be gs://BUCKET/.../NAME/VERSION, as TFDS prepares it" >&2
  exit 2
fi
target=$root/${BASH_REMATCH[2]}/${BASH_REMATCH[3]}
# Written last, and of another source's copy not the same.
complete=$target/.complete
if [[ -f $complete && $(<"$complete") == "$source" ]]; then
  echo "$target is complete"
  exit
fi

status=0
listed=$(gcloud storage du --summarize "$source" 2>&1) || status=$?
if ((status)); then
  echo "error: the size of $source is not known: $listed" >&2
  # Only an answer is final; no connection is not.
  [[ $listed == *"matched no objects"* ]] && exit 2
  exit 75
fi
needed=$(awk '$1 ~ /^[0-9]+$/ { size = $1 } END { printf "%.0f", size }' <<<"$listed")
if ((needed == 0)); then
  echo "error: the source (=$source) must have files" >&2
  exit 2
fi

mkdir -p "$target"
rm -f "$complete"
present=$(du --summarize --block-size=1 "$target" | cut -f 1)
free=$(df --output=avail --block-size=1 "$target" | tail -n 1)
# A twentieth more, for what a file system needs beside the files.
if ((needed + needed / 20 > free + present)); then
  echo "error: the copy of $source needs $((needed / 10 ** 9)) GB, and $root has" \
    "$(((free + present) / 10 ** 9)) GB free" >&2
  exit 2
fi
echo "copying $((needed / 10 ** 9)) GB from $source to $target"
# What is there already with the right size and time is passed over; a file comes to its name whole.
if ! gcloud storage rsync --recursive --no-user-output-enabled "$source" "$target"; then
  echo "error: the copy of $source broke off; another start continues it" >&2
  exit 75
fi
copied=$(find "$target" -type f ! -name '*_.gstmp' -printf '%s\n' | awk '{ size += $1 } END { printf "%.0f", size }')
if ((copied < needed)); then
  echo "error: only $copied of $needed bytes of $source arrived" >&2
  exit 75
fi
echo "$source" >"$complete"
