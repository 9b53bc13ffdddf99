"""What the product consists of: its databases, and each process with its exact settings."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from interlock_chassis.database import DatabasePlan, DatabaseUrls
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.data_folder import (
    AUDIT_CHECKPOINTS,
    AUDIT_PUBLIC_KEY,
    DataFolder,
    write_private,
)
from interlock_cli.slack_credentials import SlackCredentials
from interlock_cli.supervisor import Program, inherited_environ
from interlock_gateway.migrations import DATABASE as GATEWAY_DATABASE
from interlock_gateway.migrations import EDGE_ROLE, WORKER_ROLE
from interlock_identity.migrations import DATABASE as IDENTITY_DATABASE
from interlock_sandbox.membership import READER_ROLE
from interlock_token_vault.adapters.checkpoints import Ed25519Signer, create_checkpoint_key
from interlock_token_vault.adapters.local_kms import create_keyset
from interlock_token_vault.migrations import DATABASE as VAULT_DATABASE
from interlock_token_vault.migrations import SCANNER_ROLE, VAULT_ROLE
from interlock_tokens.families import Family
from interlock_tokens.keysets import Keyset, generate_ed25519_key, generate_hs256_key

DATABASES: tuple[DatabasePlan, ...] = (VAULT_DATABASE, IDENTITY_DATABASE, GATEWAY_DATABASE)

AUTH_DATABASE = DatabasePlan(
    name="interlock_auth",
    owner="interlock_auth_owner",
    roles=(READER_ROLE,),
    migrations="",
)
"""The auth server's own database; its stand-in makes the tables in it."""

_SERVICES = ("identity", "token-vault", "runner", "gateway-worker", "gateway-edge")
PORTS = (
    "slack",
    "platform",
    "auth",
    "nango",
    *(service for service in _SERVICES if service != "gateway-edge"),
    *(f"{service}-ops" for service in _SERVICES),
)
"""The ports to choose; edge's own is the user's choice."""

# Ids of a made-up app, in Slack's own shapes.
_SANDBOX_APP_ID = "A0INTERLOCK"
_SANDBOX_CLIENT_ID = "1000000000001.2000000000002"

# Of the sandbox's platform: what a first mention is answered by.
_DEFAULT_AGENT = "support/help-desk"
# Ctrl-C is answered within 10 s; an answer that needs longer ends as interrupted.
_DRAIN_SECONDS = "2"


@dataclass(frozen=True)
class Urls:
    """Where the running product answers; without a slash at the end."""

    edge: str
    slack: str
    platform: str
    auth: str

    @classmethod
    def of(cls, ports: Mapping[str, int]) -> "Urls":
        """Return the URLs of these ports."""
        return cls(
            edge=_url(ports["edge"]),
            slack=_url(ports["slack"]),
            platform=_url(ports["platform"]),
            auth=_url(ports["auth"]),
        )


@dataclass(frozen=True)
class _Keys:
    """Files with secrets, by what they are for."""

    edge_grants: Path
    identity_grants: Path
    public_grants: Path
    user_tokens: Path
    local_kms: Path
    csrf: Path
    fingerprint: Path
    audit_checkpoints: Path
    auth_cookie: Path
    nango_api: Path
    nango_webhooks: Path


def make_programs(
    data: DataFolder,
    ports: Mapping[str, int],
    databases: Mapping[str, DatabaseUrls],
    credentials: SlackCredentials | None,
    *,
    by_nango: bool = False,
) -> list[Program]:
    """Return every process of the product, in the order to start them.

    Makes the key files and certificates that are missing, and writes each
    process's settings files.

    Args:
        data: Where the files are kept.
        ports: A port for each name of PORTS, and `edge`.
        databases: How to reach each database, by its plan's name.
        credentials: Of a real Slack app; None uses the sandbox's Slack.
        by_nango: Whether the dashboard installs by the sandbox's Nango; not with a real app.
    """
    product = _Product(data, ports, databases, credentials, by_nango=by_nango)
    return [
        product.sandbox(),
        product.runner(),
        product.identity(),
        product.vault(),
        product.worker(),
        product.edge(),
    ]


class _Product:
    """Settings of the processes; each method returns one."""

    def __init__(
        self,
        data: DataFolder,
        ports: Mapping[str, int],
        databases: Mapping[str, DatabaseUrls],
        credentials: SlackCredentials | None,
        *,
        by_nango: bool,
    ) -> None:
        self._by_nango = by_nango
        self._data = data
        self._ports = ports
        self._urls = Urls.of(ports)
        self._databases = databases
        self._keys = _make_keys(data)
        self._ca = ThrowAwayCa.create(data.folder("keys", "ca"))
        self._credentials = credentials
        self._sandbox_app = SlackCredentials(
            _SANDBOX_APP_ID,
            _SANDBOX_CLIENT_ID,
            data.keep_random("sandbox-client-secret"),
            data.keep_random("sandbox-signing-secret"),
        )
        self._slack = credentials or self._sandbox_app

    def edge(self) -> Program:
        settings: dict[str, str | Path] = {
            "PUBLIC_URL": self._urls.edge,
            "DATABASE_URL_FILE": self._url_file(GATEWAY_DATABASE, EDGE_ROLE),
            "SLACK_SIGNING_SECRET_FILE": self._slack.signing_secret_file,
            "SLACK_APP_ID": self._slack.app_id,
            "GRANT_KEYS_FILE": self._keys.edge_grants,
            "CSRF_KEY_FILE": self._keys.csrf,
            "IDENTITY_ADDRESS": self._address("identity"),
            "VAULT_ADDRESS": self._address("token-vault"),
            "WORKER_ADDRESS": self._address("gateway-worker"),
            "AUTH_URL": self._urls.auth,
        }
        if self._credentials is None:
            settings |= {"SLACK_URL": self._urls.slack, "PLAYGROUND_URL": self._urls.slack}
            if self._by_nango:
                settings["NANGO_CONNECT_URL"] = _url(self._ports["nango"])
        return self._service("gateway-edge", "interlock_gateway", "edge", settings)

    def worker(self) -> Program:
        settings: dict[str, str | Path] = {
            "DATABASE_URL_FILE": self._url_file(GATEWAY_DATABASE, WORKER_ROLE),
            "PUBLIC_URL": self._urls.edge,
            "IDENTITY_ADDRESS": self._address("identity"),
            "VAULT_ADDRESS": self._address("token-vault"),
            "RUNNER_ADDRESS": self._address("runner"),
            "GRANT_PUBLIC_KEYS_FILE": self._keys.public_grants,
            "DRAIN_SECONDS": _DRAIN_SECONDS,
        }
        if self._credentials is None:
            settings |= {
                "SLACK_API_URL": f"{self._urls.slack}/api/",
                "SLACK_RESPONSE_HOSTS": self._address("slack"),
            }
        return self._service("gateway-worker", "interlock_gateway", "worker", settings)

    def vault(self) -> Program:
        settings: dict[str, str | Path] = {
            "DATABASE_URL_FILE": self._url_file(VAULT_DATABASE, VAULT_ROLE),
            "SLACK_CLIENT_ID": self._slack.client_id,
            "SLACK_CLIENT_SECRET_FILE": self._slack.client_secret_file,
            "SLACK_USER_SCOPES": self._slack.user_scopes,
            "GRANT_PUBLIC_KEYS_FILE": self._keys.public_grants,
            "KMS": "local",
            "LOCAL_KEYSET_FILE": self._keys.local_kms,
            "FINGERPRINT_KEY_FILE": self._keys.fingerprint,
            "AUDIT_CHECKPOINT_KEY_FILE": self._keys.audit_checkpoints,
            "AUDIT_CHECKPOINT_DIR": self._data.folder(AUDIT_CHECKPOINTS),
            "SCANNER_DATABASE_URL_FILE": self._url_file(VAULT_DATABASE, SCANNER_ROLE),
            "SPOOL_DIR": self._data.folder("vault-spool"),
            "PUBLIC_URL": self._urls.edge,
            "IDENTITY_ADDRESS": self._address("identity"),
        }
        if self._credentials is None:
            # The stand-in for Nango authorizes at the stand-in for Slack only.
            settings |= {
                "SLACK_API_URL": f"{self._urls.slack}/api/",
                "SLACK_URL": self._urls.slack,
                "NANGO_URL": _url(self._ports["nango"]),
                "NANGO_SECRET_KEY_FILE": self._keys.nango_api,
                "NANGO_WEBHOOK_KEYS_FILE": self._keys.nango_webhooks,
            }
        return self._service("token-vault", "interlock_token_vault", "serve", settings)

    def identity(self) -> Program:
        [role] = IDENTITY_DATABASE.roles
        settings: dict[str, str | Path] = {
            "DATABASE_URL_FILE": self._url_file(IDENTITY_DATABASE, role),
            "AUTH_URL": self._urls.auth,
            "MEMBERSHIP_DATABASE_URL_FILE": self._url_file(AUTH_DATABASE, READER_ROLE),
            "GRANT_KEYS_FILE": self._keys.identity_grants,
            "GRANT_PUBLIC_KEYS_FILE": self._keys.public_grants,
            "USER_TOKEN_KEYS_FILE": self._keys.user_tokens,
            "DEFAULT_AGENT": _DEFAULT_AGENT,
            "MANAGE_URL": self._urls.platform,
        }
        return self._service("identity", "interlock_identity", "serve", settings)

    def runner(self) -> Program:
        settings: dict[str, str | Path] = {
            "MANAGE_URL": self._urls.platform,
            "RUN_URL": self._urls.platform,
        }
        return self._service("runner", "interlock_runner", "serve", settings)

    def sandbox(self) -> Program:
        work_app = f"{self._urls.edge}/work-apps/slack"
        owner_url = self._databases[AUTH_DATABASE.name].owner
        config = {
            "slack_listen": self._address("slack"),
            "platform_listen": self._address("platform"),
            "auth_listen": self._address("auth"),
            "app_id": self._sandbox_app.app_id,
            "client_id": self._sandbox_app.client_id,
            "client_secret_file": str(self._sandbox_app.client_secret_file),
            "signing_secret_file": str(self._sandbox_app.signing_secret_file),
            "events_url": f"{work_app}/events",
            "interactions_url": f"{work_app}/interactions",
            "commands_url": f"{work_app}/commands",
            "redirect_urls": [f"{work_app}/oauth_redirect"],
            "dashboard_url": f"{work_app}/",
            "user_token_keys_file": str(self._keys.user_tokens),
            "auth_cookie_secret_file": str(self._keys.auth_cookie),
            "membership_database_url_file": str(
                self._data.put(f"{AUTH_DATABASE.owner}.url", owner_url.reveal())
            ),
            "state_file": str(self._data.folder("sandbox") / "state.json"),
            "trusted_origins": [self._urls.edge],
            "nango_listen": self._address("nango"),
            "nango_api_key_file": str(self._keys.nango_api),
            "nango_webhook_key_file": str(self._keys.nango_webhooks),
            "nango_webhook_urls": [f"{work_app}/nango/webhook"],
        }
        path = self._data.folder("sandbox") / "config.json"
        write_private(path, json.dumps(config, indent=1))
        return Program(
            "sandbox",
            (sys.executable, "-m", "interlock_sandbox", "--config", str(path)),
            inherited_environ(),
            f"{self._urls.slack}/_control/health",
        )

    def _service(
        self, name: str, module: str, command: str, settings: Mapping[str, str | Path]
    ) -> Program:
        tls = self._ca.issue(name, self._data.folder("keys", name))
        ops = f"127.0.0.1:{self._ports[f'{name}-ops']}"
        every = {
            "ENVIRONMENT": "development",
            "LISTEN": self._address(name),
            "OPS_LISTEN": ops,
            "TLS_CA_FILE": tls.ca,
            "TLS_CERT_FILE": tls.cert,
            "TLS_KEY_FILE": tls.key,
        }
        environ = {f"INTERLOCK_{key}": str(value) for key, value in {**every, **settings}.items()}
        return Program(
            name,
            (sys.executable, "-m", module, command),
            inherited_environ() | environ,
            f"http://{ops}/readyz",
        )

    def _address(self, name: str) -> str:
        return f"127.0.0.1:{self._ports['edge' if name == 'gateway-edge' else name]}"

    def _url_file(self, plan: DatabasePlan, role: str) -> Path:
        url = self._databases[plan.name].roles[role]
        return self._data.put(f"{role}.url", url.reveal())


def _make_keys(data: DataFolder) -> _Keys:
    edge = data.keep(
        "edge-grants.json", _keyset(generate_ed25519_key, "edge-1", [Family.SLACK_GRANT])
    )
    identity = data.keep(
        "identity-grants.json",
        _keyset(
            generate_ed25519_key,
            "identity-1",
            [Family.RENEWED_GRANT, Family.ADMIN_GRANT, Family.INSTALL_GRANT],
        ),
    )
    local_kms = data.folder("keys") / "local-kms.json"
    if not local_kms.is_file():
        create_keyset(local_kms)
    audit = data.keep("audit-checkpoint.pem", create_checkpoint_key)
    signer = Ed25519Signer.from_pem(Secret.from_file(audit, variable=str(audit), document=True))
    data.put(AUDIT_PUBLIC_KEY, signer.public_pem)
    public = Keyset.join(*(_read_keyset(path) for path in (edge, identity))).public()
    return _Keys(
        edge_grants=edge,
        identity_grants=identity,
        public_grants=data.put("public-grants.json", public),
        user_tokens=data.keep(
            "user-tokens.json", _keyset(generate_hs256_key, "platform-1", [Family.SLACK_USER])
        ),
        local_kms=local_kms,
        csrf=data.keep_random("csrf"),
        fingerprint=data.keep_random("fingerprint"),
        audit_checkpoints=audit,
        auth_cookie=data.keep_random("sandbox-auth-cookie"),
        # Nango's API keys are UUIDs.
        nango_api=data.keep("sandbox-nango-api-key", lambda: str(uuid4())),
        nango_webhooks=data.keep_random("sandbox-nango-webhook-key"),
    )


def _keyset(
    generate: Callable[[str, list[Family]], dict[str, object]], kid: str, families: list[Family]
) -> Callable[[], str]:
    return lambda: json.dumps({"keys": [generate(kid, families)]})


def _read_keyset(path: Path) -> Keyset:
    document = Secret.from_file(path, variable=str(path), document=True)
    return Keyset.from_json(document, variable=str(path))


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
