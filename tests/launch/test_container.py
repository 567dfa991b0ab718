"""The documented command in the image's file system, read-only, as the image's user."""

import subprocess
import sys

import pytest
from container import available, entrypoint, pod_script, variables
from quick_compilation import xla_flags
from test_kubernetes import SHAPES, job_spec, manifest

# Two steps of a small model, with all that a run writes: records, a checkpoint, a summary, curves.
TRAINING = (
    "--config configs/digits.py --workdir runs/in1k --config.num_epochs=0.1"
    " --config.optim.warmup_epochs=0 --config.model.depths=(1,1,1,1)"
    " --config.model.dims=(8,8,8,8) --config.data.workers=1"
).split()


def container(kind):
    (found,) = job_spec(manifest(kind))["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("kind", SHAPES)
def test_what_can_be_written_is_what_the_image_means_for_it(kind):
    found = container(kind)
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    pod = job_spec(manifest(kind))["template"]["spec"]
    empty = {v["name"] for v in pod["volumes"] if "emptyDir" in v}
    places = {m["mountPath"] for m in found["volumeMounts"] if m["name"] in empty}
    assert places == {"/app/runs", variables()["HOME"], "/tmp", "/dev/shm"}
    assert variables()["XDG_CACHE_HOME"].startswith(variables()["HOME"])
    assert all("readOnly" not in m for m in found["volumeMounts"] if m["name"] in empty)
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]


def test_the_drivers_of_a_gke_node_are_found():
    """GKE mounts them there, and python:slim looks nowhere but in the system's directories."""
    assert variables()["LD_LIBRARY_PATH"].split(":")[0] == "/usr/local/nvidia/lib64"


@pytest.mark.skipif(not available(), reason="needs root, mount namespaces, no checkout in /tmp")
@pytest.mark.parametrize(
    "volumes", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["pod", "docker run"]
)
def test_the_documented_command_trains(tmp_path, volumes):
    """In a pod, and with the image's own directories where no volumes are mounted over them."""
    home = variables()["HOME"]
    writable = ["/app/runs", home, "/tmp"] if volumes else ["/tmp"]
    environment = variables() | {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = xla_flags(1)
    list_all = "; find runs -type f; find /home -type f | head"
    command = ["sh", "-euc", '"$@"' + list_all, "sh", *entrypoint(), *TRAINING]
    text = pod_script(tmp_path, writable, command, environment, read_only=volumes)
    result = subprocess.run(
        ["unshare", "--mount", "bash", "-c", text], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for name in ("metrics.jsonl", "summary.json", "curves.png", "checkpoints/2/"):
        assert f"runs/in1k/{name}" in result.stdout
    assert f"{home}/.cache/convnext_jax/programs" in result.stdout
