"""A root file system of its own, for a user who may write nearly nowhere; no container engine.

It is a memory file system in which the system's directories and this Python are mounted. For an
image the steps of the Dockerfile are applied to it. It is then made read-only but for a pod's
volumes, or a user's home, and the command starts in it as that user. Needs root, for namespaces.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fake_commands import LAUNCH, ROOT

DOCKERFILE = LAUNCH / "k8s" / "Dockerfile"
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc", "proc", "sys", "dev")
# What needs a network or another system; the rest of a RUN line is done as it says.
USER = 1000
BUILDING = """
pip() { :; }
python() { :; }
useradd() { mkdir -p /home/trainer; chown 1000:1000 /home/trainer; }
"""


def instructions():
    """Instructions of the Dockerfile, with continued lines joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


def entrypoint():
    (value,) = [rest for name, rest in instructions() if name == "ENTRYPOINT"]
    return json.loads(value)


def variables():
    """What the image sets for every process in it."""
    pairs = [word for name, rest in instructions() if name == "ENV" for word in rest.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def available():
    """Whether this machine lets the test make such a file system, and this Python is seen in it."""
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    hidden = any(Path(prefix).is_relative_to("/tmp") for prefix in _python())
    return os.geteuid() == 0 and done.returncode == 0 and not hidden


def _building(root):
    """Commands that apply the Dockerfile to a root file system."""
    place = "/"
    arguments = " ".join(rest for name, rest in instructions() if name == "ARG")
    for name, rest in instructions():
        if name == "WORKDIR":
            place = rest
            yield f"mkdir -p {root}{place}"
        elif name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                # A folder's content goes into the target, a file under its name.
                whole = (ROOT / source).is_dir()
                into = f"{root}{place}/{target if whole else source}"
                yield f"cp -r --no-preserve=ownership {shlex.quote(str(ROOT / source))} {into}"
        elif name == "RUN":
            commands = f"{arguments} {BUILDING} cd {place}; {rest}"
            yield f"chroot {root} sh -euc {shlex.quote(commands)}"


def _system(root):
    """Commands that make a root file system with this machine's programs, and this Python."""
    yield from ("set -eu", "mount --make-rprivate /", f"mount -t tmpfs -o mode=755 tmpfs {root}")
    for name in SYSTEM:
        if os.path.islink(f"/{name}"):
            yield f"cp -P /{name} {root}/{name}"
        elif os.path.isdir(f"/{name}"):
            yield f"mkdir {root}/{name}; mount --rbind /{name} {root}/{name}"
    for prefix in _python():
        yield f"mkdir -p {root}{prefix}; mount --bind {prefix} {root}{prefix}"
        yield f"mount -o remount,bind,ro {root}{prefix}"


def _python():
    return sorted({sys.prefix, str(Path(sys.prefix).resolve()), sys.base_prefix})


def _writable(root, path):
    # As an emptyDir comes with fsGroup.
    options = f"mode=2770,uid=0,gid={USER}"
    return f"mkdir -p {root}{path}; mount -t tmpfs -o {options} tmpfs {root}{path}"


def _start(root, place, command, environment):
    settings = [f"{name}={value}" for name, value in environment.items()]
    inside = f"cd {place}; {shlex.join(command)}"
    chroot = ["chroot", f"--userspec={USER}:{USER}", f"--groups={USER}", str(root)]
    return "exec " + shlex.join([*chroot, "env", "-i", *settings, "sh", "-euc", inside])


def pod_script(root, volumes, command, environment, read_only=True):
    """A script that makes the image's file system below a folder and runs a command in it."""
    place = next(rest for name, rest in instructions() if name == "WORKDIR")
    lines = [*_system(root), *_building(root), *(_writable(root, path) for path in volumes)]
    if read_only:
        lines.append(f"mount -o remount,ro {root}")
    return "\n".join([*lines, _start(root, place, command, environment)])


def user_script(root, home, checkout, command, environment):
    """A script that runs a command as a user who may write in `home` and /tmp only.

    The folder `checkout` is copied to `home`/checkout, where the command begins.
    """
    place = f"{home}/checkout"
    copy = f"cp -r {shlex.quote(str(checkout))} {root}{place}; chown -R {USER}:{USER} {root}{place}"
    lines = [*_system(root), _writable(root, home), _writable(root, "/tmp"), copy]
    lines.append(f"mount -o remount,ro {root}")
    return "\n".join([*lines, _start(root, place, command, environment)])
