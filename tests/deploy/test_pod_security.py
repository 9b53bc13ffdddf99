"""What a cluster's admission would say to the manifests' pods."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tests.support.manifests import ROOT, SERVICES, Object, Rendered, load_module
from tests.support.pod_security import find_violations

GOOD: Object = {
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "containers": [
        {
            "name": "main",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            },
        }
    ],
    "volumes": [{"name": "kept", "emptyDir": {}}],
}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/main"

# What is set, and the field that is refused for it, if that is another.
POD: list[tuple[str, object, str]] = [
    ("hostNetwork", True, ""),
    ("hostPID", True, ""),
    ("hostIPC", True, ""),
    ("volumes", [{"name": "node", "hostPath": {"path": "/"}}], "volumes.node.hostPath"),
    ("volumes", [{"name": "far", "nfs": {"server": "n"}}], "volumes.far.nfs"),
    ("securityContext.runAsNonRoot", None, ""),
    ("securityContext.runAsNonRoot", False, ""),
    ("securityContext.runAsUser", 0, ""),
    ("securityContext.seccompProfile", None, ""),
    ("securityContext.seccompProfile", {"type": "Unconfined"}, ""),
    ("securityContext.appArmorProfile", {"type": "Unconfined"}, ""),
    ("securityContext.seLinuxOptions", {"type": "spc_t"}, ""),
    ("securityContext.seLinuxOptions", {"user": "system_u"}, ""),
    ("securityContext.seLinuxOptions", {"role": "system_r"}, ""),
    ("securityContext.windowsOptions.hostProcess", True, ""),
    (
        "securityContext.sysctls",
        [{"name": "kernel.msgmax", "value": "1"}],
        "securityContext.sysctls.kernel.msgmax",
    ),
]
CONTAINER: list[tuple[str, object, str]] = [
    ("securityContext.privileged", True, ""),
    ("securityContext.allowPrivilegeEscalation", None, ""),
    ("securityContext.allowPrivilegeEscalation", True, ""),
    ("securityContext.capabilities.drop", None, ""),
    ("securityContext.capabilities.drop", ["NET_RAW"], ""),
    ("securityContext.capabilities.add", ["CHOWN"], ""),
    ("securityContext.runAsNonRoot", False, ""),
    ("securityContext.runAsUser", 0, ""),
    ("securityContext.seccompProfile", {"type": "Unconfined"}, ""),
    ("securityContext.appArmorProfile", {"type": "Unconfined"}, ""),
    ("securityContext.seLinuxOptions", {"type": "spc_t"}, ""),
    ("securityContext.windowsOptions.hostProcess", True, ""),
    ("securityContext.procMount", "Unmasked", ""),
    ("ports", [{"containerPort": 80, "hostPort": 80}], "ports.hostPort"),
    ("livenessProbe.httpGet.host", "10.0.0.1", ""),
    ("readinessProbe.tcpSocket.host", "10.0.0.1", ""),
    ("startupProbe.httpGet.host", "10.0.0.1", ""),
    ("lifecycle.preStop.httpGet.host", "10.0.0.1", ""),
    ("lifecycle.postStart.tcpSocket.host", "10.0.0.1", ""),
]


def _set(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(target: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            target = target.setdefault(name, {})
        target[last] = value
        if value is None:
            del target[last]

    return change


def _name(case: object) -> str:
    return case if isinstance(case, str) else ""


def test_namespace_enforces_the_profile(rendered: Rendered) -> None:
    """The namespace has the newest `restricted` enforced, warned of and written down."""
    [namespace] = rendered.of("Namespace")
    prefix = "pod-security.kubernetes.io/"
    labels = {
        name.removeprefix(prefix): value
        for name, value in namespace["metadata"]["labels"].items()
        if name.startswith(prefix)
    }
    assert labels == dict.fromkeys(("enforce", "audit", "warn"), "restricted")


def test_every_pod_is_admitted(rendered: Rendered) -> None:
    """No field of any pod, the doctor's Jobs included, is one that `restricted` refuses."""
    assert rendered.workloads()
    for workload in rendered.workloads():
        assert find_violations(workload.pod, workload.annotations) == [], workload.name
    make_job = load_module(ROOT / "tools" / "doctor_job.py").make_job
    made = [each for each in rendered.objects if each["metadata"]["name"] in SERVICES]
    jobs = [
        make_job(each, "interlock/tools:dev")
        for each in made
        if each["kind"] in {"Deployment", "StatefulSet"}
    ]
    assert len(jobs) == len(SERVICES)
    for job in jobs:
        template = job["spec"]["template"]
        assert find_violations(template["spec"], template["metadata"].get("annotations", {})) == []


def test_a_good_pod_is_admitted() -> None:
    """The pod that the next tests spoil has nothing wrong before."""
    assert find_violations(GOOD, {APPARMOR: "localhost/interlock"}) == []


@pytest.mark.parametrize(("path", "value", "found"), POD, ids=_name)
def test_a_pods_field_is_refused(path: str, value: object, found: str) -> None:
    """One wrong field of a pod is found, and nothing else."""
    pod = deepcopy(GOOD)
    _set(path, value)(pod)
    assert find_violations(pod, {}) == [found or path]


@pytest.mark.parametrize("group", ["containers", "initContainers", "ephemeralContainers"])
@pytest.mark.parametrize(("path", "value", "found"), CONTAINER, ids=_name)
def test_a_containers_field_is_refused(group: str, path: str, value: object, found: str) -> None:
    """One wrong field of a container, whenever it runs, is found, and nothing else."""
    pod = deepcopy(GOOD)
    container = deepcopy(pod["containers"][0]) | {"name": "spoilt"}
    _set(path, value)(container)
    pod[group] = [*pod.get(group, ()), container]
    assert find_violations(pod, {}) == [f"{group}.spoilt.{found or path}"]


def test_an_unconfined_annotation_is_refused() -> None:
    """AppArmor's old annotation is judged as the field that replaced it."""
    assert find_violations(GOOD, {APPARMOR: "unconfined"}) == [f"annotations.{APPARMOR}"]
