"""launch/k8s: the manifests against schemas, what they say about failures, and the container."""

import copy
import json
import re
import shlex
import sys
import threading
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from container import DOCKERFILE, entrypoint, instructions
from fake_commands import LAUNCH, ROOT, environment, free_port, joined, run

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
RENDER = LAUNCH / "k8s" / "render.py"
PROGRAM = ["--config", "configs/imagenet1k.py:tiny", "--config.model.depths=(1, 1)", 'a "b" $c']
SHAPES = {
    "tpu": ("--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--hosts=4"),
    "gpu": ("--accelerator=nvidia-h100-80gb", "--hosts=2"),
}
COMMON = ("--name=in1k", "--image=registry.example/convnext:1")
BUCKET = "--data-bucket=1234"
COPIED = "--copy-data=gs://my-data/tfds/imagenet2012/5.1.0"
# Versions whose schemas the manifests are held against: the oldest with pod failure policies that
# clouds still run, and the newest there are schemas for.
VERSIONS = ("1.30", kubernetes_validate.latest_version())


def render(kind, *options, program=PROGRAM, data=BUCKET):
    """Runs the script with a Python that has no packages."""
    command = [sys.executable, "-I", "-S", RENDER, kind, *COMMON, data, *SHAPES[kind], *options]
    return run([*command, *(["--", *program] if program else [])], env=None)


def manifest(kind, *options, program=PROGRAM, data=BUCKET):
    result = render(kind, *options, program=program, data=data)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def job_spec(jobset):
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def check(jobset, version):
    """Holds a JobSet against its schema and its job against that of a version of Kubernetes."""
    jsonschema.validate(jobset, SCHEMA)
    for job in jobset["spec"]["replicatedJobs"]:
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}}
        kubernetes_validate.validate(whole | job["template"], version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("data", [BUCKET, COPIED])
@pytest.mark.parametrize("kind", SHAPES)
def test_manifests_are_valid(kind, data, version):
    check(manifest(kind, data=data), version)


def test_several_slices_are_jobs_of_one_set():
    jobset = manifest("tpu", "--slices=3")
    (job,) = jobset["spec"]["replicatedJobs"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (3, 4)
    # A job on each node pool, which is a slice.
    topology = jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert topology == "cloud.google.com/gke-nodepool"


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("where, medium", [("memory", "Memory"), ("disk", None)])
def test_data_can_be_copied_before_the_start(kind, where, medium):
    jobset = manifest(kind, f"--copy-to={where}", "--copy-size=200Gi", data=COPIED)
    template = job_spec(jobset)["template"]
    assert template["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "false"
    (volume,) = [v for v in template["spec"]["volumes"] if v["name"] == "data"]
    assert volume["emptyDir"].get("medium") == medium
    assert volume["emptyDir"]["sizeLimit"] == "200Gi"
    (init,) = template["spec"]["initContainers"]
    shell, option, script, *arguments = init["command"]
    assert (shell, option) == ("bash", "-c")
    assert script == (LAUNCH / "copy_data.sh").read_text()
    assert arguments == ["copy_data.sh", COPIED.partition("=")[2], "/mnt/data"]
    # Its 2 is final too, and its 75 starts all again.
    (codes,) = [
        rule["onExitCodes"]
        for rule in job_spec(jobset)["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    ]
    assert "containerName" not in codes and 2 in codes["values"] and 75 not in codes["values"]
    # Nothing in it is a reference that Kubernetes would fill in.
    names = {variable["name"] for variable in init["env"]}
    assert not names & set(re.findall(r"\$\(([A-Za-z0-9_]+)\)", script))
    (train,) = template["spec"]["containers"]
    places = {m["name"]: m["mountPath"] for m in train["volumeMounts"]}
    assert {m["name"]: m["mountPath"] for m in init["volumeMounts"]}.items() <= places.items()


@pytest.mark.parametrize(
    "change",
    [
        lambda jobset: jobset["spec"].update(failurePolicies={}),
        lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0].pop("action"),
        lambda jobset: jobset["spec"]["network"].update(enableDNSHostnames="yes"),
        lambda jobset: job_spec(jobset).update(completions="four"),
        lambda jobset: job_spec(jobset)["podFailurePolicy"]["rules"][0].pop("action"),
        lambda jobset: job_spec(jobset)["template"]["spec"].update(nodeSelektor={}),
        lambda jobset: job_spec(jobset)["template"]["spec"]["containers"][0].update(arg=[]),
    ],
)
def test_the_check_finds_mistakes(change):
    jobset = copy.deepcopy(manifest("gpu"))
    change(jobset)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(jobset, VERSIONS[0])


@pytest.mark.parametrize("kind", SHAPES)
def test_what_is_given_arrives(kind):
    jobset = manifest(kind, "--service-account=trainer")
    spec = job_spec(jobset)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    hosts = {"tpu": 4, "gpu": 2}[kind]
    assert jobset["metadata"]["name"] == "in1k"
    assert spec["parallelism"] == spec["completions"] == hosts
    assert container["args"] == PROGRAM
    assert container["image"] == "registry.example/convnext:1"
    assert pod["serviceAccountName"] == "trainer"
    limits = {"tpu": {"google.com/tpu": 4}, "gpu": {"nvidia.com/gpu": 8}}[kind]
    assert container["resources"]["limits"] == limits
    (bucket,) = [v["csi"]["volumeAttributes"] for v in pod["volumes"] if "csi" in v]
    assert bucket["bucketName"] == "1234"  # and not a number
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("kind", SHAPES)
def test_no_pod_comes_back_alone(kind):
    jobset = manifest(kind)
    spec = job_spec(jobset)
    disrupted, stopped = spec["podFailurePolicy"]["rules"]
    assert (disrupted["action"], stopped["action"]) == ("Count", "FailJob")
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    container = spec["template"]["spec"]["containers"][0]["name"]
    assert stopped["onExitCodes"]["containerName"] == container
    # Neither by the node (the policy wants it so) nor by the job.
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] == 0
    policy = jobset["spec"]["failurePolicy"]
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert policy["maxRestarts"] >= 10


@pytest.mark.parametrize(
    "kind, options, program, sentence",
    [
        ("gpu", (), [], "arguments of convnext_jax.main must be given after --"),
        ("gpu", ("--topology=4x4",), PROGRAM, "argument --topology: must not be given"),
        ("tpu", ("--hosts=5",), PROGRAM, "--hosts times --chips (=20) must be the chips of 4x4"),
        ("tpu", ("--name=In1k",), PROGRAM, "argument --name: (=In1k) must be at most 40"),
        ("gpu", ("--slices=2",), PROGRAM, "argument --slices: must be 1 on GPUs"),
        ("gpu", (COPIED,), PROGRAM, "not allowed with argument --data-bucket"),
        ("gpu", ("--hosts=0",), PROGRAM, "argument --hosts: (=0) must be a positive whole number"),
        ("gpu", ('--image=a"b',), PROGRAM, 'argument --image: (=a"b) must be letters'),
    ],
)
def test_options_that_cannot_be_used(kind, options, program, sentence):
    result = render(kind, *options, program=program)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert not result.stdout


def test_the_image_copies_what_is_there_and_does_not_run_as_root():
    found = instructions()
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    copied = [p for name, rest in found if name == "COPY" for p in rest.split()[:-1]]
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in ignored, path
    (user,) = [rest for name, rest in found if name == "USER"]
    for kind in SHAPES:
        security = job_spec(manifest(kind))["template"]["spec"]["securityContext"]
        assert str(security["runAsUser"]) == user != "0"


@pytest.mark.parametrize(
    "accelerator, expected", [("tpu", "jax[tpu]"), ("cuda12", "jax[cuda12]"), ("cpu", "jax")]
)
def test_the_image_installs_the_accelerators_jax(tmp_path, accelerator, expected):
    (command,) = [rest for name, rest in instructions() if name == "RUN" and "$ACC" in rest]
    env = environment(tmp_path, [], ACCELERATOR=accelerator)
    result = run(["sh", "-c", f'pip() {{ printf "%s\\n" "$@"; }}; {command}'], env)
    assert result.stdout.splitlines() == ["install", "-r", "requirements.txt", expected]


def resolve(container, index, port):
    """The variables of a pod's container, as Kubernetes would set them, with every host here."""
    variables = {}
    for variable in container["env"]:
        value = variable.get("value")
        if value is None:
            path = variable["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            value = str(index)
        variables[variable["name"]] = value
    host, _, _ = variables["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == "in1k-worker-0-0.in1k"  # JOBSET-REPLICATEDJOB-0-INDEX.JOBSET
    return variables | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_PLATFORMS": "cpu"}


def test_the_pods_processes_meet(tmp_path):
    """Runs the image's entry point with each GPU pod's arguments and variables, at once."""
    (container,) = job_spec(manifest("gpu"))["template"]["spec"]["containers"]
    port = free_port()
    results = [None, None]

    # Once: a stand-in that one pod runs cannot be written for the other.
    shared = environment(tmp_path, [["join", "join"]])

    def start(index):
        # A pod's own variables too, by which JAX would look for a cluster by itself.
        env = shared | resolve(container, index, port) | {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
        command = shlex.join([*entrypoint(), *container["args"]])
        results[index] = run(["bash", "-c", command], env)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.returncode for result in results] == [0, 0], results
    assert joined(tmp_path, 2) == [{"index": i, "seen": [0, 1]} for i in range(2)]
