"""Make a Job that runs `interlock doctor` as a pod of a workload would run.

kubectl -n interlock get statefulset/token-vault -o json \
  | python tools/doctor_job.py REGISTRY/interlock/tools:TAG | kubectl create -f -

It has the workload's account, variables, Secrets, labels, and so its network policies and
its identity at the cloud. It is never ready, so that no Service sends it anything, and it
is removed ten minutes after its end. A StatefulSet's own volume stays where it is: an empty
one takes its place.
"""

import json
import sys
from typing import Any

_KEPT_AFTER_END_S = 600
_LONGEST_S = 120
# What a container has because it serves.
_OF_SERVING = ("command", "ports", "startupProbe", "livenessProbe", "lifecycle")


def make_job(workload: dict[str, Any], image: str) -> dict[str, Any]:
    """Return the Job for a Deployment or StatefulSet.

    Args:
        workload: As the API server, or kustomize, gives it.
        image: The image `tools`, of the workload's version.
    """
    name = workload["metadata"]["name"]
    template = workload["spec"]["template"]
    container = next(each for each in template["spec"]["containers"] if each["name"] == name)
    doctor = {key: value for key, value in container.items() if key not in _OF_SERVING}
    doctor |= {
        "image": image,
        "args": ["doctor", name],
        "readinessProbe": {"exec": {"command": ["false"]}},
    }
    claims = workload["spec"].get("volumeClaimTemplates", [])
    volumes = [
        *template["spec"].get("volumes", []),
        *({"name": each["metadata"]["name"], "emptyDir": {}} for each in claims),
    ]
    pod = template["spec"] | {
        "restartPolicy": "Never",
        "containers": [doctor],
        "initContainers": [],
        "volumes": volumes,
        "terminationGracePeriodSeconds": 1,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"doctor-{name}-",
            "namespace": workload["metadata"].get("namespace", "interlock"),
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": _LONGEST_S,
            "ttlSecondsAfterFinished": _KEPT_AFTER_END_S,
            "template": {"metadata": {"labels": template["metadata"]["labels"]}, "spec": pod},
        },
    }


def main() -> int:
    """Read a workload, write its Job; 2 for wrong use."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - One argument.
        sys.stderr.write(__doc__ or "")
        return 2
    json.dump(make_job(json.load(sys.stdin), sys.argv[1]), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
