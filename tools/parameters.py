"""Check what an operator sets for production on GKE, where no service would.

python tools/parameters.py FILE      deploy/kubernetes/overlays/gke/parameters.env

What a service is given, it checks itself at its start, and `make deploy-check` starts the
settings of all of them. This looks at what Google's cloud alone is given, and at what the
overlay needs to be of one kind. Exits with 1, one line a fault, when something is wrong.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Network
from pathlib import Path
from urllib.parse import urlsplit

Parameters = Mapping[str, str]

# Of a network that more than one company has.
_SHORTEST_PREFIX = 8
_PROJECT = r"[a-z][a-z0-9-]{4,28}[a-z0-9]"
_ACCOUNT = rf"[a-z][a-z0-9-]{{4,28}}[a-z0-9]@{_PROJECT}\.iam\.gserviceaccount\.com"
_SCOPE = r"[a-z][a-z_.-]*(:[a-z_.-]+)*"
# Empty is a choice.
_OPTIONAL = frozenset({"SLACK_USER_SCOPES"})
_OF_SERVICES = frozenset(
    {
        "AUTH_URL",
        "GCP_KMS_KEY",
        "MANAGE_URL",
        "MEMBERSHIP_SOURCE",
        "RUN_URL",
        "SLACK_APP_ID",
        "SLACK_CLIENT_ID",
        "TRUSTED_PROXIES",
    }
)
_PATTERNS = {
    "PUBLIC_URL": (r"https://[^/]+", "must be https://HOST, without a path"),
    "PUBLIC_HOST": (r"[a-z0-9.-]+", "must be a host name"),
    "GCP_PROJECT": (_PROJECT, "must be a project's id"),
    "GKE_LOCATION": (r"[a-z]+-[a-z]+[0-9]+(-[a-z])?", "must be a region or a zone"),
    "GKE_CLUSTER": (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "must be a cluster's name"),
    "POSTGRES_CIDR": (r"[0-9.]+/[0-9]+", "must be a network such as 10.20.0.0/24"),
    "KMS": (r"gcp", "must be gcp: this overlay gives the vault no other key"),
    "AUDIT_BUCKET_URL": (
        r"gs://.+",
        "must be gs://BUCKET/PREFIX: the vault's Google account writes to it",
    ),
    "SLACK_USER_SCOPES": (
        rf"({_SCOPE}(,{_SCOPE})*)?",
        "must be scopes of Slack's, comma-separated, or empty",
    ),
    "GCP_VAULT_ACCOUNT": (_ACCOUNT, "must be NAME@PROJECT.iam.gserviceaccount.com"),
    "GCP_SECRETS_ACCOUNT": (_ACCOUNT, "must be NAME@PROJECT.iam.gserviceaccount.com"),
}


def read(path: Path) -> dict[str, str]:
    """Read parameters as kustomize does: a NAME=VALUE a line, and remarks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.partition("=") for line in lines if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in rows}


def find_faults(parameters: Parameters) -> list[str]:
    """Return what is wrong, a line each that begins with the parameter's name."""
    known = _PATTERNS.keys() | _OF_SERVICES
    given = {name for name, value in parameters.items() if value or name in _OPTIONAL}
    missing = sorted(known - given)
    if missing:
        return [f"{name}: required, but not set" for name in missing]
    faults = [f"{name}: is no parameter" for name in sorted(parameters.keys() - known)]
    for name, (pattern, problem) in _PATTERNS.items():
        if re.fullmatch(pattern, parameters[name]) is None:
            faults.append(f"{name}: {problem}")
    return faults or [fault for rule in _RULES for fault in rule(parameters)]


def _one_host(parameters: Parameters) -> Iterator[str]:
    if urlsplit(parameters["PUBLIC_URL"]).hostname != parameters["PUBLIC_HOST"]:
        yield "PUBLIC_HOST: must be the host of PUBLIC_URL"


def _a_network(parameters: Parameters) -> Iterator[str]:
    try:
        network = IPv4Network(parameters["POSTGRES_CIDR"])
    except ValueError as error:
        yield f"POSTGRES_CIDR: {error}"
        return
    if network.prefixlen < _SHORTEST_PREFIX:
        yield "POSTGRES_CIDR: must be the network that Postgres is in, not everything"


def _two_accounts(parameters: Parameters) -> Iterator[str]:
    if parameters["GCP_VAULT_ACCOUNT"] == parameters["GCP_SECRETS_ACCOUNT"]:
        yield "GCP_SECRETS_ACCOUNT: must not be the vault's, which may use the key"


_RULES: tuple[Callable[[Parameters], Iterator[str]], ...] = (_one_host, _a_network, _two_accounts)


def main() -> int:
    """Check one file; 1 when something in it is wrong, 2 for a wrong argument."""
    match sys.argv[1:]:
        case [name]:
            faults = find_faults(read(Path(name)))
        case _:
            sys.stderr.write(__doc__ or "")
            return 2
    sys.stderr.writelines(f"{fault}\n" for fault in faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
