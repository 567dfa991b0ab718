"""Stands in for gcloud: a queued resource with two hosts, each a folder that is its home.

`$FAKE_GCLOUD/lives.json` lists, for each time the slice is created, the states that it goes
through, the last for ever. Every call is appended to calls.txt; an option that gcloud would not
know ends it with 2. With "unreachable" in the folder, hosts do not answer that many times.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_GCLOUD"])
WORKERS = 2
RESOURCE, NODE = "compute tpus queued-resources", "compute tpus tpu-vm"
EVERYWHERE = {"--zone", "--project", "--quiet"}
# What of gcloud's reference the script uses.
OPTIONS = {
    f"{RESOURCE} create": {"--node-id", "--accelerator-type", "--runtime-version", "--spot"},
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


def homes():
    return [FOLDER / f"worker{index}" for index in range(WORKERS)]


def create(**_):
    lives = load("lives.json", [])
    save("states.json", lives.pop(0))
    save("lives.json", lives)
    for home in homes():  # new machines
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()


def describe(**_):
    states = load("states.json", [])
    if not states:
        return 1
    print(states[0])
    if len(states) > 1:
        save("states.json", states[1:])
    save("state.json", states[0])
    return 0


def delete(**_):
    if not load("states.json", []):
        return 1
    save("states.json", [])
    return 0


def unreachable():
    left = load("unreachable", 0)
    save("unreachable", max(left - 1, 0))
    return left > 0 or load("state.json", "") not in ("ACTIVE", "READY")


def scp(source, destination, **_):
    if unreachable():
        return 255
    name, _, path = destination.partition(":")
    assert name == "pod", name
    for home in homes():
        shutil.copy(source, home / path)
    return 0


def ssh(_name, **options):
    if unreachable():
        return 255
    started = [
        subprocess.Popen(
            ["bash", "-c", options["--command"]],
            cwd=home,
            env=os.environ | {"HOME": str(home), "FAKE_WORKER": str(index)},
            stdin=subprocess.DEVNULL,
        )
        for index, home in enumerate(homes())
    ]
    statuses = [process.wait() for process in started]
    return next((status for status in statuses if status), 0)


def main():
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
    if command.startswith(NODE) and words[3] in ("describe", "delete"):
        return 1  # none was made without a queued resource
    return (
        globals()[words[3]](*words[4:], **options)
        if words[3] in ("scp", "ssh")
        else (globals()[words[3]](**options))
    )


if __name__ == "__main__":
    sys.exit(main())
