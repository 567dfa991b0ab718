"""Stands in for gcloud: a queued resource with two hosts, each a folder that is its home.

`$FAKE_GCLOUD/lives.json` lists, for each time the slice is created, the states that it goes
through, the last for ever. Every call is appended to calls.txt; an option that gcloud would not
know ends it with 2. With "unreachable" in the folder, hosts do not answer that many times.

It can fail in passing: failures.json maps the number of a call, counted from 0, to how. "before":
nothing is done; "after": it is done and the answer is lost; "half": one host alone is reached. The
message is what gcloud prints without a connection or a login, or when its service is overloaded.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_GCLOUD"])
WORKERS = 2  # of each slice
PASSING = (
    "There was a problem refreshing your current auth tokens: Unable to find the server at"
    " oauth2.googleapis.com",
    "Reauthentication failed. cannot prompt during non-interactive execution.",
    "UNAVAILABLE: The service is currently unavailable.",
    "RESOURCE_EXHAUSTED: Quota limit 'ReadRequestsPerMinutePerProject' has been exceeded.",
)
RESOURCE, NODE = "compute tpus queued-resources", "compute tpus tpu-vm"
EVERYWHERE = {"--zone", "--project", "--quiet"}
# What of gcloud's reference the script uses.
OPTIONS = {
    f"{RESOURCE} create": {
        *("--node-id", "--node-count", "--node-prefix", "--accelerator-type", "--runtime-version"),
        *("--spot", "--reserved", "--service-account", "--network", "--subnetwork"),
    },
    f"{RESOURCE} describe": {"--format"},
    f"{RESOURCE} delete": {"--force"},
    f"{NODE} describe": {"--format"},
    f"{NODE} delete": set(),
    f"{NODE} scp": {"--worker"},
    f"{NODE} ssh": {"--worker", "--command"},
}


def load(name, default):
    path = FOLDER / name
    return json.loads(path.read_text()) if path.exists() else default


def save(name, value):
    # In one piece: a test may kill this program at any time.
    partial = FOLDER / f"{name}.{os.getpid()}"
    partial.write_text(json.dumps(value))
    partial.replace(FOLDER / name)


def error(text):
    command = ".".join(sys.argv[1:5])
    print(f"ERROR: (gcloud.{command}) {text}", file=sys.stderr)
    return 1


def resource(kind, name):
    return f"Resource 'projects/my-project/locations/us-east5-b/{kind}/{name}'"


def homes():
    count = WORKERS * load("slices.json", 1)
    return [FOLDER / f"worker{index}" for index in range(count)]


def homes_of(node):
    """The hosts of one slice; a node has the name of the resource, or that and a number."""
    name = load("name.json", "")
    if load("slices.json", 1) == 1:
        assert node == name, node
        return homes()
    prefix, _, index = node.rpartition("-")
    assert prefix == name, node
    return homes()[WORKERS * int(index) :][:WORKERS]


def create(name, options):
    if load("states.json", []):
        return error(f"ALREADY_EXISTS: {resource('queuedResources', name)} already exists")
    if "--node-id" in options:
        assert options["--node-id"] == name and "--node-count" not in options
    else:
        assert options["--node-prefix"] == name and int(options["--node-count"]) > 1
    save("name.json", name)
    save("slices.json", int(options.get("--node-count", 1)))
    lives = load("lives.json", [])
    save("states.json", lives.pop(0))
    save("lives.json", lives)
    for home in homes():  # new machines
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
    return 0


def describe(name, _options):
    states = load("states.json", [])
    if not states:
        return error(f"NOT_FOUND: {resource('queuedResources', name)} was not found")
    print(states[0])
    if len(states) > 1:
        save("states.json", states[1:])
    save("state.json", states[0])
    return 0


def delete(name, _options):
    if not load("states.json", []):
        return error(f"NOT_FOUND: {resource('queuedResources', name)} was not found")
    with open(FOLDER / "deleted.txt", "a") as file:
        file.write(load("states.json", [])[0] + "\n")
    save("states.json", [])
    return 0


def unreachable():
    left = load("unreachable", 0)
    save("unreachable", max(left - 1, 0))
    return left > 0 or load("state.json", "") not in ("ACTIVE", "READY")


def scp(source, destination, _options, reached=None):
    if unreachable():
        return 255
    node, _, path = destination.partition(":")
    for home in homes_of(node)[:reached]:
        shutil.copy(source, home / path)
    return 0


def ssh(node, options, reached=None):
    if unreachable():
        return 255
    started = [
        subprocess.Popen(
            ["bash", "-c", options["--command"]],
            cwd=home,
            env=os.environ | {"HOME": str(home), "FAKE_WORKER": home.name.removeprefix("worker")},
            stdin=subprocess.DEVNULL,
        )
        for home in homes_of(node)[:reached]
    ]
    statuses = [process.wait() for process in started]
    return next((status for status in statuses if status), 0)


def failure():
    """How this call is to fail, and with what message; its number is counted."""
    with open(FOLDER / "count", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = len(file.read())
        file.write(".")
    how = load("failures.json", {})
    return how.get(str(number)) or how.get("all"), PASSING[number % len(PASSING)]


def storage(command, *arguments):
    """What hosts ask for: a bucket with one file of ten bytes, and one dataset too large."""
    source = arguments[-1 if command == "du" else -2]
    if command == "du":
        print(10**17 if "huge" in source else 10, source)
    else:
        (Path(arguments[-1]) / "record").write_text("1234567890")
    return 0


def main():
    if sys.argv[1] == "storage":
        return storage(*sys.argv[2:])
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    command = " ".join(words[:4])
    pairs = [word.partition("=") for word in sys.argv[1:] if word.startswith("--")]
    options = {name: value for name, _, value in pairs}
    with open(FOLDER / "calls.txt", "a") as file:
        file.write(f"{words[2]} {words[3]} {options.get('--command', '')}".strip() + "\n")
    unknown = set(options) - EVERYWHERE - OPTIONS[command]
    if unknown or options.get("--zone") != "us-east5-b" or options.get("--worker", "all") != "all":
        print(f"gcloud: unusable: {sys.argv[1:]}", file=sys.stderr)
        return 2
    how, message = failure()
    if how == "before":
        return error(message)
    if command.startswith(NODE) and words[3] in ("describe", "delete"):
        # None was made without a queued resource.
        status = error(f"NOT_FOUND: {resource('nodes', words[4])} was not found")
    elif words[3] in ("scp", "ssh"):
        status = globals()[words[3]](*words[4:], options, reached=1 if how == "half" else None)
    else:
        status = globals()[words[3]](words[4], options)
    if how:
        print(message, file=sys.stderr)
        return 255 if words[3] in ("scp", "ssh") else 1
    return status


if __name__ == "__main__":
    sys.exit(main())
