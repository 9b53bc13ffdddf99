"""The Kubernetes manifests as kustomize renders them."""

import importlib.util
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from interlock_chassis.config import MigrationSettings, ProcessSettings, load_settings
from interlock_gateway.edge.config import EdgeSettings
from interlock_gateway.worker.config import WorkerSettings
from interlock_identity.config import IdentitySettings
from interlock_runner.config import RunnerSettings
from interlock_token_vault.config import VaultSettings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("dev", "gke")
NAME = "app.kubernetes.io/name"
SERVICES = ("gateway-edge", "gateway-worker", "identity", "runner", "token-vault")
MINE = "/run/interlock/"

SETTINGS: dict[str, type[ProcessSettings]] = {
    "gateway-edge": EdgeSettings,
    "gateway-worker": WorkerSettings,
    "identity": IdentitySettings,
    "runner": RunnerSettings,
    "token-vault": VaultSettings,
    "migrate-vault": MigrationSettings,
    "migrate-identity": MigrationSettings,
    "migrate-gateway": MigrationSettings,
}

Object = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """Something that makes pods."""

    kind: str
    name: str
    labels: Mapping[str, str]
    pod: Object
    claims: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def containers(self) -> list[Object]:
        """All containers of the pod, those that run before it too."""
        return [*self.pod["containers"], *self.pod.get("initContainers", ())]

    @property
    def main(self) -> Object:
        """The container that the workload is named for."""
        return next(each for each in self.pod["containers"] if each["name"] == self.name)


class Rendered:
    """All objects of one overlay."""

    def __init__(self, overlay: str) -> None:
        self.overlay = overlay
        text = subprocess.run(
            ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        self.objects: list[Object] = list(yaml.safe_load_all(text))

    def of(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        """Return the names of the objects of a kind."""
        return {each["metadata"]["name"] for each in self.of(kind)}

    def workloads(self) -> list[Workload]:
        """Return everything that makes pods."""
        found = []
        for each in self.objects:
            spec = each.get("spec", {})
            if each["kind"] == "CronJob":
                spec = spec["jobTemplate"]["spec"]
            if each["kind"] not in {"Deployment", "StatefulSet", "Job", "CronJob"}:
                continue
            template = spec["template"]
            claims = tuple(c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", ()))
            found.append(
                Workload(
                    kind=each["kind"],
                    name=each["metadata"]["name"],
                    labels=template["metadata"]["labels"],
                    annotations=template["metadata"].get("annotations", {}),
                    pod=template["spec"],
                    claims=claims,
                )
            )
        return found

    def parameters(self) -> dict[str, str]:
        """Return what an operator sets."""
        [found] = [
            each["data"]
            for each in self.of("ConfigMap")
            if each["metadata"]["name"].startswith("parameters-")
        ]
        return dict(found)

    def secrets(self) -> dict[str, set[str]]:
        """Return the keys of every Secret that something here makes, by its name."""
        found = {
            each["spec"]["secretName"]: {"ca.crt", "tls.crt", "tls.key"}
            for each in self.of("Certificate")
        }
        for each in self.of("ExternalSecret"):
            keys = {row["secretKey"] for row in each["spec"]["data"]}
            found[each["spec"]["target"]["name"]] = keys
        return found | made_by_the_keys_job() if self.overlay == "dev" else found


@cache
def preparing() -> Any:
    """Return deploy/images/prepare.py as a module."""
    return load_module(ROOT / "deploy" / "images" / "prepare.py")


def load_module(path: Path) -> Any:
    """Return a program that no package has, as a module."""
    spec = importlib.util.spec_from_file_location(f"interlock_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def made_by_the_keys_job() -> dict[str, set[str]]:
    """Return the keys of every Secret that the trial's job makes, by its name."""
    put: dict[str, set[str]] = {}

    class Cluster:
        def find(self, name: str) -> dict[str, str]:
            return {}

        def put(self, name: str, files: Mapping[str, str]) -> None:
            put[name] = set(files)

    preparing().write_secrets(Cluster())
    return put


def secrets_of(volume: Object) -> Iterator[tuple[str, set[str]]]:
    """Yield the Secrets of a volume, with the keys that it names one by one."""
    if secret := volume.get("secret"):
        yield secret["secretName"], {item["key"] for item in secret.get("items", ())}
    for source in volume.get("projected", {}).get("sources", ()):
        yield source["secret"]["name"], {item["key"] for item in source["secret"].get("items", ())}


def files_of(rendered: Rendered, workload: Workload) -> set[str]:
    """Return the names of the files below /run/interlock."""
    secrets = rendered.secrets()
    for volume in workload.pod.get("volumes", ()):
        if volume["name"] == "interlock":
            items = volume.get("secret", {}).get("items")
            if items:
                return {item["path"] for item in items}
            return {key for name, _ in secrets_of(volume) for key in secrets[name]}
    return set()


def start_settings(rendered: Rendered, parameters: Mapping[str, str], folder: Path) -> set[str]:
    """Start the settings of each process as its pod would, and name the processes.

    The files hold what the keys job makes.
    """
    keep = folder / "keep"
    keep.mkdir()
    made = {
        name: text
        for files in preparing().make_files(keep).values()
        for name, text in files.items()
    }
    names = set()
    for workload in rendered.workloads():
        if workload.name not in SETTINGS:
            continue
        names.add(workload.name)
        there = files_of(rendered, workload)
        environ = {}
        for variable in workload.main["env"]:
            value = variable.get("value")
            if value is None:
                value = parameters[variable["valueFrom"]["configMapKeyRef"]["key"]]
            if value.startswith(MINE):
                name = value.removeprefix(MINE)
                assert name in there, f"{workload.name} has no file {name}"
                path = folder / name
                path.write_text(made.get(name, made["database-url"]))
                value = str(path)
            environ[variable["name"]] = value
        load_settings(SETTINGS[workload.name], environ)
    return names
