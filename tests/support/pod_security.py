"""PodSecurity's profile `restricted`, field by field, as admission in Kubernetes 1.36 judges.

Stricter in one place: what a control lets a pod say for its containers, or each container for
itself, counts here only where the pod says it, so that a container added later has it too.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, with the control of
probes' and hooks' hosts that came with 1.34.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Object = Mapping[str, Any]

_VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
_SELINUX_TYPES = frozenset(
    {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
)
_SECCOMP = frozenset({"RuntimeDefault", "Localhost"})
_APPARMOR = frozenset({None, "RuntimeDefault", "Localhost"})
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_LISTS = ("containers", "initContainers", "ephemeralContainers")


def find_violations(pod: Object, annotations: Mapping[str, str]) -> list[str]:
    """Return the fields for which `restricted` refuses a pod, as paths; none if it is admitted.

    Args:
        pod: The pod's spec.
        annotations: The pod's.
    """
    return [*_of_pod(pod, annotations), *_of_pod_context(pod), *_of_containers(pod)]


def _of_pod(pod: Object, annotations: Mapping[str, str]) -> Iterator[str]:
    for each in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(each):
            yield each
    for volume in pod.get("volumes", ()):
        for kind in volume.keys() - {"name"} - _VOLUMES:
            yield f"volumes.{volume['name']}.{kind}"
    for name, profile in annotations.items():
        is_known = profile == "runtime/default" or profile.startswith("localhost/")
        if name.startswith(_APPARMOR_ANNOTATION) and not is_known:
            yield f"annotations.{name}"


def _of_pod_context(pod: Object) -> Iterator[str]:
    context = pod.get("securityContext", {})
    for path in _of_context(context):
        yield f"securityContext.{path}"
    if context.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot"
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        yield "securityContext.seccompProfile"
    for sysctl in context.get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"securityContext.sysctls.{sysctl['name']}"


def _of_containers(pod: Object) -> Iterator[str]:
    for group in _LISTS:
        for container in pod.get(group, ()):
            for path in (*_of_container(container), *_hosts_asked(container)):
                yield f"{group}.{container['name']}.{path}"


def _of_container(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    for path in _of_context(context):
        yield f"securityContext.{path}"
    for each, wrong in (("runAsNonRoot", False), ("privileged", True)):
        if context.get(each) is wrong:
            yield f"securityContext.{each}"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation"
    if context.get("procMount") not in {None, "Default"}:
        yield "securityContext.procMount"
    if context.get("seccompProfile", {"type": "RuntimeDefault"}).get("type") not in _SECCOMP:
        yield "securityContext.seccompProfile"
    capabilities: Mapping[str, Sequence[str]] = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "securityContext.capabilities.drop"
    if not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}:
        yield "securityContext.capabilities.add"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "ports.hostPort"


def _of_context(context: Object) -> Iterator[str]:
    """Yield what is wrong in a security context, a pod's or a container's."""
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "windowsOptions.hostProcess"
    if context.get("appArmorProfile", {}).get("type") not in _APPARMOR:
        yield "appArmorProfile"
    linux = context.get("seLinuxOptions", {})
    if linux.get("type") not in _SELINUX_TYPES or linux.get("user") or linux.get("role"):
        yield "seLinuxOptions"


def _hosts_asked(container: Object) -> Iterator[str]:
    asked = {name: container.get(name, {}) for name in _PROBES}
    hooks = container.get("lifecycle", {})
    asked |= {f"lifecycle.{name}": hooks.get(name, {}) for name in ("postStart", "preStop")}
    for name, handler in asked.items():
        for kind in ("httpGet", "tcpSocket"):
            if handler.get(kind, {}).get("host"):
                yield f"{name}.{kind}.host"


_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
