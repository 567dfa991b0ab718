"""launch/copy_data.sh: a dataset is on the host, whole, before a run reads it."""

import pytest
from fake_commands import LAUNCH, environment, install, run

SOURCE = "gs://my-data/tfds/imagenet2012/5.1.0"
# The bucket is a folder. A copy in passing trouble brings one file and half of the next.
GCLOUD = r"""
shift
bucket=$STAND_IN/bucket
echo "$1" >>"$STAND_IN/calls"
case $1 in
  du)
    [[ $* == "du --summarize gs://my-data/"* ]] || { echo "unusable: $*" >&2; exit 2; }
    if [[ -e $STAND_IN/offline ]]; then echo "ERROR: (gcloud.storage.du) no route" >&2; exit 1; fi
    if [[ $3 != gs://my-data/tfds/imagenet2012/5.1.0 ]]; then
      echo "ERROR: (gcloud.storage.du) One or more URLs matched no objects." >&2
      exit 1
    fi
    echo "$(($(cat "$bucket"/* | wc -c) + ${EXTRA:-0}))  $3"
    ;;
  rsync)
    [[ $* == "rsync --recursive --no-user-output-enabled gs://my-data/"* ]] || exit 2
    if [[ -e $STAND_IN/breaks ]]; then
      rm "$STAND_IN/breaks"
      cp "$bucket/a" "$5/a"
      head -c 3 "$bucket/b" >"$5/b_.gstmp"
      exit 1
    fi
    rm -f "$5"/*_.gstmp
    for file in "$bucket"/*; do
  if cmp -s "$file" "$5/${file##*/}"; then continue; fi
      cp "$file" "$5/"
      echo "${file##*/}" >>"$STAND_IN/copied"
    done
    ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "bucket").mkdir()
    for name in "abc":
        (tmp_path / "bucket" / name).write_text(name * 1000)

    def start(source=SOURCE, **variables):
        install(tmp_path, gcloud=GCLOUD)
        command = [LAUNCH / "copy_data.sh", source, tmp_path / "local"]
        return run(command, environment(tmp_path, [], **variables))

    return start


def test_a_copy_is_made_once(tmp_path, copy):
    first = copy()
    assert first.returncode == 0, first.stderr
    target = tmp_path / "local" / "imagenet2012" / "5.1.0"
    assert sorted(f.read_text() for f in target.glob("[a-z]")) == [n * 1000 for n in "abc"]
    assert copy().stdout == f"{target} is complete\n"
    assert (tmp_path / "calls").read_text().split() == ["du", "rsync"]


def test_a_copy_that_broke_off_continues(tmp_path, copy):
    (tmp_path / "breaks").touch()
    assert copy().returncode == 75
    assert not (tmp_path / "local/imagenet2012/5.1.0/.complete").exists()
    assert copy().returncode == 0
    assert (tmp_path / "copied").read_text().split() == ["b", "c"]  # a was there


def test_no_connection_is_a_reason_to_try_again(tmp_path, copy):
    (tmp_path / "offline").touch()
    result = copy()
    assert result.returncode == 75
    assert result.stderr.startswith(f"error: the size of {SOURCE} is not known: ERROR: (gcloud")


@pytest.mark.parametrize(
    "source, variables, sentence",
    [
        (SOURCE, {"EXTRA": str(10**17)}, f"error: the copy of {SOURCE} needs 100000000 GB, and "),
        ("gs://my-data/tfds/imagenet2012/9.9.9", {}, "error: the size of gs://my-data/tfds/"),
        ("my-data/tfds", {}, "error: the source (=my-data/tfds) must be gs://BUCKET/.../NAME/"),
    ],
)
def test_what_trying_again_would_not_help(tmp_path, copy, source, variables, sentence):
    result = copy(source, **variables)
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    calls = tmp_path / "calls"
    assert not calls.exists() or "rsync" not in calls.read_text()
