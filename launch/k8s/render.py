#!/usr/bin/env python3
"""Fills in a JobSet and prints it; runs where no package is installed.

    launch/k8s/render.py tpu --name in1k --image IMAGE --hosts 4 \
        --accelerator tpu-v5-lite-podslice --topology 4x4 --data-bucket BUCKET \
        -- --config configs/imagenet1k.py:tiny --workdir runs/in1k | kubectl apply -f -

The options are the machine's shape; what comes after -- goes to convnext_jax.main.
"""

import argparse
import json
import re
import string
import sys
from collections.abc import Sequence
from pathlib import Path

# Names of Kubernetes objects; the JobSet's are followed by "-worker-0-INDEX" within 63 characters.
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
# What the quotes in the templates hold: images, labels, buckets.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")

_CLOUD_SDK = "gcr.io/google.com/cloudsdktool/google-cloud-cli:528.0.0-slim"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"(={text}) must be a positive whole number")
    return int(text)


def _matching(pattern: re.Pattern[str], rule: str):
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise argparse.ArgumentTypeError(f"(={text}) must {rule}")
        return text

    return check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Prints a JobSet, for `kubectl apply -f -`.")
    name = _matching(_NAME, "be at most 40 lower-case letters, digits and hyphens")
    plain = _matching(_PLAIN, "be letters, digits and ._/:@- only")
    parser.add_argument("kind", choices=("tpu", "gpu"))
    parser.add_argument("--name", type=name, required=True, help="of the JobSet")
    parser.add_argument("--image", type=plain, required=True, help="built from the Dockerfile")
    parser.add_argument("--accelerator", type=plain, required=True, help="the nodes' label")
    parser.add_argument(
        "--topology",
        type=_matching(re.compile(r"\d+x\d+(x\d+)?"), "be like 4x4 or 4x4x4"),
        help="of the slice; TPUs only",
    )
    parser.add_argument(
        "--hosts", type=_positive, required=True, help="nodes of a slice, each a process"
    )
    parser.add_argument("--chips", type=_positive, help="chips or GPUs a node; 4 or 8")
    parser.add_argument("--slices", type=_positive, default=1, help="for one run; TPUs only")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--data-bucket", type=plain, help="mounted at /mnt/data")
    data.add_argument(
        "--copy-data",
        type=_matching(re.compile(r"gs://[A-Za-z0-9._/-]+"), "be gs://BUCKET/.../NAME/VERSION"),
        help="prepared dataset, copied to /mnt/data of every node before the start",
    )
    parser.add_argument("--copy-size", type=plain, default="160Gi", help="at most; 160Gi")
    parser.add_argument("--copy-to", choices=("memory", "disk"), default="memory")
    parser.add_argument("--service-account", type=plain, default="default")
    return parser


def render(arguments: Sequence[str]) -> str:
    """The manifest for a command line, as YAML.

    Raises:
      SystemExit: with status 2, after a sentence on stderr, for options that cannot be used.
    """
    parser = _parser()
    # Split here: argparse would take options of the program for its own.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    program = list(arguments[end + 1 :])
    if not program:
        parser.error("arguments of convnext_jax.main must be given after --")
    if (options.kind == "tpu") != (options.topology is not None):
        parser.error(f"argument --topology: must {'' if options.kind == 'tpu' else 'not '}be given")
    values = vars(options) | {"args": json.dumps(program)}
    if options.chips is None:
        values["chips"] = 4 if options.kind == "tpu" else 8
    if options.kind == "gpu" and options.slices > 1:
        parser.error("argument --slices: must be 1 on GPUs")
    values["data_source"] = json.dumps(_data_source(options))[1:-1]
    values["init_containers"] = json.dumps(_init_containers(options))
    # A bucket comes with a container that GKE adds, whose statuses mean something else.
    own = "containerName: train" if options.copy_data is None else "# of any: the copy's too"
    values["which_container"] = own
    values["mounts_bucket"] = str(options.copy_data is None).lower()
    if options.kind == "tpu":
        _check_slice(parser, options.topology, options.hosts * values["chips"])
    template = Path(__file__).with_name(f"jobset-{options.kind}.yaml").read_text()
    return string.Template(template).substitute(values)


def _data_source(options: argparse.Namespace) -> dict[str, object]:
    """What the volume at /mnt/data is: a bucket, or room for a copy that goes with the pod."""
    if options.copy_data is not None:
        room = {"sizeLimit": options.copy_size}
        return {"emptyDir": room | ({"medium": "Memory"} if options.copy_to == "memory" else {})}
    # What is known of a file holds for good, as nobody changes the data during a run.
    mounting = "implicit-dirs,metadata-cache:ttl-secs:-1"
    attributes = {"bucketName": options.data_bucket, "mountOptions": mounting}
    driver = "gcsfuse.csi.storage.gke.io"
    return {"csi": {"driver": driver, "readOnly": True, "volumeAttributes": attributes}}


def _init_containers(options: argparse.Namespace) -> list[dict[str, object]]:
    """What copies the data, with launch/copy_data.sh; all start again if it ends with 75."""
    if options.copy_data is None:
        return []
    script = Path(__file__).parents[1].joinpath("copy_data.sh").read_text()
    mounts = {"data": "/mnt/data", "temporary": "/tmp"}
    return [
        {
            "name": "copy-data",
            "image": _CLOUD_SDK,
            "command": ["bash", "-c", script, "copy_data.sh", options.copy_data, "/mnt/data"],
            "env": [{"name": "CLOUDSDK_CONFIG", "value": "/tmp/gcloud"}],
            "securityContext": {
                "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False,
            },
            "volumeMounts": [{"name": n, "mountPath": path} for n, path in mounts.items()],
        }
    ]


def _check_slice(parser: argparse.ArgumentParser, topology: str, chips: int) -> None:
    size = 1
    for side in topology.split("x"):
        size *= int(side)
    if size != chips:
        parser.error(f"--hosts times --chips (={chips}) must be the chips of {topology} (={size})")


if __name__ == "__main__":
    sys.stdout.write(render(sys.argv[1:]))
