"""The Kubernetes manifests as kustomize renders them, held to what no schema says."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from bench.footprint import read_table
from interlock_chassis.callers import CallerTable
from interlock_gateway.worker import rpc as worker_rpc
from interlock_identity import rpc as identity_rpc
from interlock_runner import rpc as runner_rpc
from interlock_token_vault import rpc as vault_rpc
from tests.support.manifests import (
    KUBERNETES,
    NAME,
    ROOT,
    SERVICES,
    SETTINGS,
    Object,
    Rendered,
    Workload,
    load_module,
    made_by_the_keys_job,
    secrets_of,
    start_settings,
)

CALLERS: dict[str, CallerTable] = {
    "gateway-worker": worker_rpc.CALLERS,
    "identity": identity_rpc.CALLERS,
    "runner": runner_rpc.CALLERS,
    "token-vault": vault_rpc.CALLERS,
}
APPS = "app/*"
# Longest work after SIGTERM, by the services' READMEs, in seconds.
DRAINS = {"gateway-edge": 30, "gateway-worker": 35, "identity": 5, "runner": 20, "token-vault": 30}


def _matches(selector: Object | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a label selector takes these labels."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True


def _ports(workload: Workload) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in workload.containers
        for port in container.get("ports", ())
    }


def test_services_reach_ports_that_exist(rendered: Rendered) -> None:
    """Every Service selects exactly one workload, and names ports of it."""
    for service in rendered.of("Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        [workload] = [each for each in rendered.workloads() if _matches(selector, each.labels)]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in _ports(workload)


def test_port_names_are_short_and_used_once(rendered: Rendered) -> None:
    """Names of ports have 15 characters at most, and none is given twice in a pod."""
    for workload in rendered.workloads():
        names = [port["name"] for each in workload.containers for port in each.get("ports", ())]
        assert len(names) == len(set(names))
        assert all(len(name) <= 15 for name in names)


def test_probes_ask_one_thing_on_a_port_that_exists(rendered: Rendered) -> None:
    """What serves is probed three ways, each by one handler; a named port is the container's."""
    for workload in rendered.workloads():
        if workload.kind not in {"Deployment", "StatefulSet"}:
            continue
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = workload.main[probe]
            [handler] = asked.keys() & {"httpGet", "exec", "tcpSocket", "grpc"}
            port = asked[handler].get("port") if handler != "exec" else None
            if isinstance(port, str):
                assert port in {each["name"] for each in workload.main["ports"]}


def test_everything_referred_to_is_there(rendered: Rendered) -> None:
    """Secrets, ConfigMaps and their keys, claims and accounts that pods name are made here."""
    secrets = rendered.secrets()
    for workload in rendered.workloads():
        assert workload.pod["serviceAccountName"] in rendered.names("ServiceAccount")
        for container in workload.containers:
            for variable in container.get("env", ()):
                if "valueFrom" in variable:
                    ref = variable["valueFrom"]["configMapKeyRef"]
                    assert ref["name"] in rendered.names("ConfigMap")
                    assert ref["key"] in rendered.parameters()
            volumes = {each["name"] for each in workload.pod.get("volumes", ())}
            mounted = {each["name"] for each in container.get("volumeMounts", ())}
            assert mounted <= volumes | set(workload.claims)
        for volume in workload.pod.get("volumes", ()):
            for name, keys in secrets_of(volume):
                assert name in secrets, f"{workload.name} needs the Secret {name}"
                assert keys <= secrets[name]
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in rendered.names("PersistentVolumeClaim")


def test_pods_are_held_tighter_than_restricted(rendered: Rendered) -> None:
    """Besides PodSecurity's rules: a read-only root, few kinds of volumes, no links, no root."""
    for workload in rendered.workloads():
        pod = workload.pod
        assert pod["enableServiceLinks"] is False, "it would inject variables"
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in pod.get("volumes", ()):
            kinds = volume.keys() - {"name"}
            assert kinds <= {"secret", "projected", "emptyDir", "persistentVolumeClaim"}
        for container in workload.containers:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_vault_has_room_for_a_restore(rendered: Rendered) -> None:
    """The vault stages a backup in /tmp, which a read-only root would not let it."""
    [vault] = [each for each in rendered.workloads() if each.name == "token-vault"]
    [name] = [
        each["name"]
        for each in vault.main["volumeMounts"]
        if each["mountPath"] == "/tmp"  # noqa: S108 - The image's.
    ]
    [volume] = [each for each in vault.pod["volumes"] if each["name"] == name]
    assert volume["emptyDir"]["sizeLimit"]


def test_accounts_are_distinct_and_hold_no_token(rendered: Rendered) -> None:
    """No two services share a ServiceAccount; only the job that makes Secrets gets a token."""
    serving = [each for each in rendered.workloads() if each.kind in {"Deployment", "StatefulSet"}]
    accounts = [each.pod["serviceAccountName"] for each in serving]
    assert len(accounts) == len(set(accounts))
    assert "default" not in accounts
    with_token = {
        each.name for each in rendered.workloads() if each.pod["automountServiceAccountToken"]
    }
    assert with_token == ({"keys"} if rendered.overlay == "dev" else set())


def test_requests_stay_below_limits(rendered: Rendered) -> None:
    """Every container says what it needs and what is the most, in that order."""
    for workload in rendered.workloads():
        for container in workload.containers:
            requests, limits = (container["resources"][each] for each in ("requests", "limits"))
            for resource in ("cpu", "memory"):
                assert 0 < _quantity(requests[resource]) <= _quantity(limits[resource])


def _quantity(text: str | int) -> float:
    found = re.fullmatch(r"([0-9.]+)(m|Ki|Mi|Gi)?", str(text))
    assert found, f"{text} is no quantity"
    scale = {None: 1.0, "m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return float(found[1]) * scale[found[2]]


def test_pods_outlive_their_drain(rendered: Rendered) -> None:
    """The grace period covers the wait before SIGTERM and the longest drain after it."""
    for workload in rendered.workloads():
        if workload.name in DRAINS:
            wait = workload.main["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert workload.pod["terminationGracePeriodSeconds"] >= wait + DRAINS[workload.name]


def _callers(table: CallerTable) -> set[str]:
    return {caller for callers in table.values() for caller in callers}


@pytest.mark.parametrize("server", CALLERS)
def test_policies_admit_whom_the_caller_table_admits(rendered: Rendered, server: str) -> None:
    """Whoever has a row in a service's table reaches its gRPC port, and nobody else."""
    admitted = set()
    for policy in rendered.of("NetworkPolicy"):
        if not _matches(policy["spec"]["podSelector"], {NAME: server}):
            continue
        for rule in policy["spec"].get("ingress", ()):
            if {"port": "grpc"} not in [{"port": each["port"]} for each in rule["ports"]]:
                continue
            for peer in rule["from"]:
                labels = peer["podSelector"]["matchLabels"]
                is_app = labels == {"interlock.dev/client": "true"} and "namespaceSelector" in peer
                admitted.add(APPS if is_app else labels[NAME])
                assert is_app or "namespaceSelector" not in peer
    assert admitted == _callers(CALLERS[server])


@pytest.mark.parametrize("caller", [*SERVICES, "operator"])
def test_policies_let_callers_out_to_their_servers_alone(rendered: Rendered, caller: str) -> None:
    """A process may connect to the services whose tables name it, and to no other."""
    reached = set()
    for policy in rendered.of("NetworkPolicy"):
        if not _matches(policy["spec"]["podSelector"], {NAME: caller}):
            continue
        for rule in policy["spec"].get("egress", ()):
            assert rule.get("to"), f"{policy['metadata']['name']} lets {caller} go anywhere"
            reached |= {
                peer["podSelector"]["matchLabels"][NAME]
                for peer in rule["to"]
                if {"port": 8443} in rule["ports"]
            }
    assert reached == {server for server, table in CALLERS.items() if caller in _callers(table)}


def test_every_workload_has_a_policy_of_its_own(rendered: Rendered) -> None:
    """Besides the one that denies everything, each pod is named by at least one more."""
    general = {"default-deny", "names"}
    policies = [
        each["spec"]["podSelector"]
        for each in rendered.of("NetworkPolicy")
        if each["metadata"]["name"] not in general
    ]
    assert general <= rendered.names("NetworkPolicy")
    for workload in rendered.workloads():
        assert any(_matches(each, workload.labels) for each in policies), workload.name


def test_only_the_edge_is_reached_from_outside(rendered: Rendered) -> None:
    """No Service has an address outside, and an Ingress leads to the edge alone."""
    selected = {
        each["metadata"]["name"]: each["spec"]["selector"][NAME] for each in rendered.of("Service")
    }
    assert {each["spec"].get("type", "ClusterIP") for each in rendered.of("Service")} == {
        "ClusterIP"
    }
    for ingress in rendered.of("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert selected[path["backend"]["service"]["name"]] == "gateway-edge"
    for name in SERVICES:
        [service] = [each for each in rendered.of("Service") if each["metadata"]["name"] == name]
        assert service["spec"]["clusterIP"] == "None", "clients balance over pods themselves"


def test_settings_are_taken_by_the_services(rendered: Rendered, tmp_path: Path) -> None:
    """Each process starts with the variables it is given: known, complete, and valid.

    That includes the parameters an operator sets.
    """
    assert start_settings(rendered, rendered.parameters(), tmp_path) >= set(SERVICES)


def test_the_doctor_sees_what_a_process_sees(rendered: Rendered) -> None:
    """The doctor's Job has a pod's variables, files, account and policies, and gets no traffic."""
    made = [each for each in rendered.objects if each["metadata"]["name"] in SERVICES]
    workloads = [each for each in made if each["kind"] in {"Deployment", "StatefulSet"}]
    assert len(workloads) == len(SERVICES)
    for workload in workloads:
        name, template = workload["metadata"]["name"], workload["spec"]["template"]
        job = load_module(ROOT / "tools" / "doctor_job.py").make_job(
            workload, "interlock/tools:dev"
        )
        pod = job["spec"]["template"]
        [doctor] = pod["spec"]["containers"]
        [process] = [each for each in template["spec"]["containers"] if each["name"] == name]
        assert pod["metadata"]["labels"] == template["metadata"]["labels"]
        for key in ("serviceAccountName", "securityContext", "automountServiceAccountToken"):
            assert pod["spec"][key] == template["spec"][key]
        for key in ("env", "volumeMounts", "securityContext", "resources"):
            assert doctor[key] == process[key]
        assert {each["name"] for each in doctor["volumeMounts"]} <= {
            each["name"] for each in pod["spec"]["volumes"]
        }
        assert doctor["args"] == ["doctor", name]
        assert doctor["readinessProbe"] == {"exec": {"command": ["false"]}}
        assert not doctor.keys() & {"ports", "livenessProbe", "startupProbe"}


def test_scaling_and_disruption_name_what_exists(rendered: Rendered) -> None:
    """Autoscalers and disruption budgets refer to workloads of this overlay."""
    workloads = {(each.kind, each.name) for each in rendered.workloads()}
    for scaler in rendered.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in workloads
        assert scaler["spec"]["minReplicas"] >= 2
    for budget in rendered.of("PodDisruptionBudget"):
        selector = budget["spec"]["selector"]
        assert len([e for e in rendered.workloads() if _matches(selector, e.labels)]) == 1


def test_production_has_all_it_needs(production: Rendered) -> None:
    """Each service is made, kept available, scaled and watched as the design says."""
    stateless = {name for name in SERVICES if name != "token-vault"}
    assert production.names("Deployment") == stateless
    assert production.names("HorizontalPodAutoscaler") == stateless
    assert production.names("PodDisruptionBudget") == set(SERVICES)
    assert set(SERVICES) < production.names("ServiceAccount")
    [vault] = production.of("StatefulSet")
    assert vault["metadata"]["name"] == "token-vault"
    assert vault["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert [each["metadata"]["name"] for each in vault["spec"]["volumeClaimTemplates"]] == ["kept"]
    jobs = {"migrate-vault", "migrate-identity", "migrate-gateway"}
    assert production.names("Job") == jobs
    assert production.names("CronJob") == {"audit-export"}
    assert {each["spec"]["target"]["name"] for each in production.of("ExternalSecret")} == {
        *(set(SERVICES) - {"runner"}),
        "migrations",
    }
    for kind in ("Ingress", "PrometheusRule", "PodMonitor"):
        assert len(production.of(kind)) == 1, kind
    assert "dashboards" in production.names("ConfigMap")


def test_a_replica_is_added_before_one_is_taken(production: Rendered) -> None:
    """A rollout never takes a pod of a Deployment away before the new one is ready."""
    for deployment in production.of("Deployment"):
        rolling = deployment["spec"]["strategy"]["rollingUpdate"]
        assert rolling == {"maxSurge": 1, "maxUnavailable": 0}


def test_every_parameter_has_reached_its_place(production: Rendered) -> None:
    """No place that a parameter fills was left with the name of the parameter."""
    assert "set-by-" not in json.dumps(production.objects)


def test_requests_and_limits_are_of_measured_use(rendered: Rendered) -> None:
    """A process's requests cover what the page says it takes under load, its limits twice that.

    A request of more than twice the measured memory would keep other pods away for nothing.
    """
    measured = read_table((ROOT / "docs" / "operations.md").read_text(encoding="utf-8"))
    assert set(measured) == set(SERVICES)
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for workload in rendered.workloads():
        if workload.name not in measured:
            continue
        used, given = measured[workload.name], workload.main["resources"]
        load = used.load_mib * 2**20
        assert load <= _quantity(given["requests"]["memory"]) <= 2 * load, workload.name
        assert _quantity(given["limits"]["memory"]) >= 2 * load, workload.name
        assert _quantity(given["requests"]["cpu"]) >= used.load_millicores / 1000, workload.name
        assert _quantity(compose[workload.name]["mem_limit"].upper() + "i") >= 2 * load


def test_certificates_name_their_process(production: Rendered) -> None:
    """cert-manager's certificates carry the URI that callers are told by, and the host name."""
    leaves = {
        each["spec"]["secretName"]: each["spec"]
        for each in production.of("Certificate")
        if not each["spec"].get("isCA")
    }
    for name in (*SERVICES, "operator"):
        assert leaves[f"{name}-tls"]["uris"] == [f"spiffe://interlock/{name}"]
        assert leaves[f"{name}-tls"]["dnsNames"] == [name]
        assert set(leaves[f"{name}-tls"]["usages"]) >= {"server auth", "client auth"}


def test_production_signs_its_log_into_a_bucket(production: Rendered) -> None:
    """The vault's checkpoints go to Cloud Storage, by its Workload Identity and no key of its own.

    Its policies let it reach the metadata server, which gives the identity, and the bucket.
    """
    parameters = production.parameters()
    [vault] = [each for each in production.workloads() if each.name == "token-vault"]
    environ = {each["name"]: each for each in vault.main["env"]}
    source = environ["INTERLOCK_AUDIT_CHECKPOINT_URL"]["valueFrom"]["configMapKeyRef"]
    assert parameters[source["key"]].startswith("gs://")
    assert not environ.keys() & {
        "INTERLOCK_AUDIT_CHECKPOINT_DIR",
        "INTERLOCK_AUDIT_CHECKPOINT_CREDENTIALS_FILE",
    }
    [account] = [
        each
        for each in production.of("ServiceAccount")
        if each["metadata"]["name"] == vault.pod["serviceAccountName"]
    ]
    google = account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
    assert google == parameters["GCP_VAULT_ACCOUNT"]
    reached = {
        (peer["ipBlock"]["cidr"], port["port"])
        for policy in production.of("NetworkPolicy")
        if _matches(policy["spec"]["podSelector"], vault.labels)
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }
    assert reached >= {("169.254.169.254/32", 80), ("0.0.0.0/0", 443)}


def test_keys_job_may_write_the_secrets_it_makes(trial: Rendered) -> None:
    """The trial's role names exactly the Secrets that the job reads and replaces."""
    [role] = trial.of("Role")
    [named] = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert set(named["resourceNames"]) == set(made_by_the_keys_job())


def test_alerts_and_dashboards_ask_for_metrics_that_exist() -> None:
    """Each metric named is made in the code, and each alert has a runbook that names it."""
    alerts = yaml.safe_load((KUBERNETES / "monitoring" / "alerts.yaml").read_text())
    rules = [rule for group in alerts["spec"]["groups"] for rule in group["rules"]]
    board = json.loads((KUBERNETES / "monitoring" / "dashboards" / "interlock.json").read_text())
    asked = [rule["expr"] for rule in rules]
    asked += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("libs", "services")
        for path in (ROOT / folder).glob("*/src/**/*.py")
    )
    for name in re.findall(r"\binterlock_[a-z_]+", " ".join(asked)):
        assert f'"{re.sub(r"_(total|bucket|count|sum)$", "", name)}"' in code, name
    for rule in rules:
        runbook = ROOT / rule["annotations"]["runbook"]
        assert runbook.read_text(encoding="utf-8").startswith(f"# {rule['alert']}\n")
    assert len(rules) == len(list((ROOT / "docs" / "runbooks").glob("Interlock*.md")))


def test_compose_gives_each_service_settings_it_knows() -> None:
    """The compose file sets every required variable of each service, and no unknown one."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for name in SERVICES:
        fields = SETTINGS[name].model_fields
        given = {each.removeprefix("INTERLOCK_").lower() for each in services[name]["environment"]}
        required = {field for field, info in fields.items() if info.is_required()}
        assert required <= given <= set(fields), name
