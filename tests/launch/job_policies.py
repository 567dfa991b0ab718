"""What Kubernetes and JobSet do when pods of a JobSet fail, from their documented rules.

Job (batch/v1, podFailurePolicy): a failed pod meets the rules in order, and the first that matches
counts; `onExitCodes` looks at the containers that ended with another status than 0, and
`onPodConditions` at the pod's conditions. FailJob ends the job with reason PodFailurePolicy; Count,
as no rule, counts towards backoffLimit, beyond which the job ends with BackoffLimitExceeded; Ignore
counts nothing. Of pods that are seen failed together, FailJob goes before the limit.

JobSet (failurePolicy): the first rule whose onJobFailureReasons has the job's reason says what
happens (no list: any reason); without one the JobSet starts again, until maxRestarts are used up.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pod:
    """A pod that failed: the status of its container, None if the node took it along."""

    status: int | None
    disrupted: bool = False


def _matches(rule, pod, container):
    if "onPodConditions" in rule:
        return pod.disrupted and any(
            pattern["type"] == "DisruptionTarget" and pattern.get("status", "True") == "True"
            for pattern in rule["onPodConditions"]
        )
    codes = rule["onExitCodes"]
    if codes.get("containerName", container) != container or not pod.status:
        return False
    return (pod.status in codes["values"]) == (codes["operator"] == "In")


def job_failure(spec, pods):
    """Why a job fails when these pods are seen failed at once; None if it goes on."""
    (container,) = [c["name"] for c in spec["template"]["spec"]["containers"]]
    counted = 0
    for pod in pods:
        rules = spec["podFailurePolicy"]["rules"]
        action = next((r["action"] for r in rules if _matches(r, pod, container)), "Count")
        if action == "FailJob":
            return "PodFailurePolicy"
        counted += action == "Count"
    return "BackoffLimitExceeded" if counted > spec["backoffLimit"] else None


def ends(jobset, *seen, restarts=0):
    """What becomes of a JobSet: "fails", "restarts" or "goes on".

    Args:
      jobset: the manifest, with one replicated job.
      seen: lists of pods that fail, in the order in which the controller sees them.
      restarts: how many there were.
    """
    (job,) = jobset["spec"]["replicatedJobs"]
    policy = jobset["spec"]["failurePolicy"]
    for pods in seen:
        reason = job_failure(job["template"]["spec"], pods)
        if reason is None:
            continue
        for rule in policy.get("rules", []):
            if reason in rule.get("onJobFailureReasons", [reason]):
                if rule["action"] == "FailJobSet":
                    return "fails"
                if rule["action"] == "RestartJobSetAndIgnoreMaxRestarts":
                    return "restarts"
                break
        return "restarts" if restarts < policy["maxRestarts"] else "fails"
    return "goes on"
