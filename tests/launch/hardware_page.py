"""Follows docs/hardware.md: runs every command of the page, as it stands there, with stand-ins.

Run as a program from the root of a checkout. The commands come from the page's blocks; only what
stands for something else there is filled in. Stand-ins are what a cluster or a cloud brings, each
as strict as the real one, and the training itself; the scripts are the project's own.
"""

import json
import re
import shlex
import sys
import tempfile
from pathlib import Path

import yaml
from fake_commands import HERE, ROOT, environment, install, records, run
from test_kubernetes import VERSIONS, check
from test_slurm_script import SRUN
from test_tpu_pod import PYTHON3, UV

# What the page leaves to the reader, in this order.
FILLED_IN = {
    "--config ...": "--config configs/digits.py",
    "...": "--config.seed=1",
    "IMAGE": "registry.example/convnext:1",
}
# A new environment has the programs that one had before.
VENV = r"""
[[ $* == "-m venv .venv" ]] || { echo "python3.12: unexpected: $*" >&2; exit 1; }
mkdir -p .venv/bin && touch .venv/bin/activate
"""
PIP = r"""
for word in "$@"; do
  case $word in
    install | -e | --no-deps | -r | jax\[cuda12] | .) ;;
    requirements.txt) [[ -f $word ]] ;;
    *) echo "pip: unexpected: $word" >&2; exit 1 ;;
  esac
done
"""
# Two processes, whatever -np says.
MPIRUN = r"""
[[ $1 == -np && $3 == --map-by && $4 == ppr:8:node && $5 == -x && $6 == PATH ]] || exit 1
shift 6
for rank in 0 1; do JAX_PROCESS_ID=$rank "$@"; done
"""
SBATCH = r"""
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
[[ ${options[*]} == --nodes=4 && -x $1 ]]
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' "$1")
gpus=$(sed -n 's/^#SBATCH --gpus-per-node=//p' "$1")
SLURM_JOB_ID=1 SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=$tasks SLURM_GPUS_ON_NODE=$gpus \
  SLURM_CPUS_PER_TASK=8 bash "$@"
"""
DOCKER = r"""
case $1 in
  build)
    [[ $2 == -f && -f $3 && $4 == --build-arg && $5 == ACCELERATOR=tpu && $6 == -t ]]
    [[ $7 == registry.example/* && $8 == . ]]
    ;;
  push) [[ $2 == registry.example/* ]] ;;
  *) exit 1 ;;
esac
"""
KUBECTL = r"""
case $* in
  "apply -f -") cat >"$STAND_IN/manifest.yaml" ;;
  "logs -f -l jobset.sigs.k8s.io/jobset-name=in1k,batch.kubernetes.io/job-completion-index=0") ;;
  "delete jobset in1k") ;;
  *) echo "kubectl: unexpected: $*" >&2; exit 1 ;;
esac
"""


def blocks():
    """The page's blocks of commands, with what the page leaves open filled in."""
    text = (ROOT / "docs" / "hardware.md").read_text()
    for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S):
        for left_open, value in FILLED_IN.items():
            block = re.sub(rf"(?<!\S){re.escape(left_open)}(?!\S)", value, block)
        yield block


def stand_ins(folder, on_slices):
    gcloud = shlex.join([sys.executable, "-I", "-S", str(HERE / "fake_gcloud.py")])
    cluster = {"sbatch": SBATCH, "mpirun": MPIRUN, "scontrol": "exit 1"}
    tools = {"docker": DOCKER, "kubectl": KUBECTL, "python3.12": VENV, "pip": PIP}
    strict = {name: f"set -eu\n{text.strip()}" for name, text in (cluster | tools).items()}
    strict["srun"] = SRUN
    install(folder, **strict, gcloud=f'exec {gcloud} "$@"')
    if on_slices:
        hosts = {"python3": PYTHON3, "fake-uv": UV, "mountpoint": "exit 1"}
        install(folder, **hosts, sudo="", gcsfuse="")


def follow(block, folder):
    """Runs a block; returns how many processes of the program it started, and what it printed."""
    on_slices = "tpu_pod.sh" in block
    # The copied dataset is ten bytes here, and no memory of this machine's is for it.
    if on_slices:
        block = block.replace("--copy-data", f"--copy-to {folder}/memory --copy-data")
    env = environment(folder, [[0] * 8] * 2, FAKE_GCLOUD=str(folder), POLL_SECONDS="0")
    stand_ins(folder, on_slices)
    (folder / "lives.json").write_text(json.dumps([["WAITING_FOR_RESOURCES", "ACTIVE"]]))
    result = run(["bash", "-euo", "pipefail", "-c", block], env)
    assert result.returncode == 0, (block, result.stdout, result.stderr)
    manifest = folder / "manifest.yaml"
    if "kubectl apply" in block:
        for version in VERSIONS:
            check(yaml.safe_load(manifest.read_text()), version)
    for record in records(folder):
        arguments = record["arguments"]
        assert arguments[0] == "--config", arguments
        assert (ROOT / arguments[1].partition(":")[0]).exists(), arguments
    return len(records(folder))


def main():
    counts = {}
    for number, block in enumerate(blocks()):
        with tempfile.TemporaryDirectory() as folder:
            counts[f"{number} {block.split()[0]}"] = follow(block, Path(folder))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
