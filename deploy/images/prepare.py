"""Make the keys, certificates and databases of an installation.

python prepare.py keys            into /prepared, a folder for each process; for compose
python prepare.py renew           as `keys`, with new certificates for everybody
python prepare.py rotate NAME     as `keys`, with a new signing key; see below
python prepare.py databases       roles, databases and tables, from /run/interlock
python prepare.py secrets         as `keys`, into Secrets of the pod's own namespace

NAME is `csrf-key`, which is replaced at once, or `edge-grants`, `identity-grants` or
`user-tokens`: their new key signs from ROTATE_AFTER_SECONDS on (default 3600), so restart
whoever reads the keyset before then. The old key verifies for 25 hours more.

Each can be repeated: what is there is kept, what is missing is made. `keys` and `secrets`
hold every key of the installation while they run, so they are for one machine and for
development; in production each secret comes from where it is kept (docs/operations.md).
"""

import asyncio
import base64
import json
import os
import secrets
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg

from interlock_chassis.database import create_database, migrate
from interlock_chassis.secret import Secret
from interlock_chassis.throwaway_ca import ThrowAwayCa
from interlock_cli.data_folder import write_private
from interlock_cli.product import AUTH_DATABASE, DATABASES
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

# Of the images; nobody else's on a usual machine.
USER_ID = 65532
PREPARED = Path("/prepared")
MINE = Path("/run/interlock")
GIVEN = Path("/given")
"""Where secrets that come from elsewhere are mounted; deploy/secrets/README names them."""

AUTHORITY = "authority"
"""The folder that all others are made from; only this program reads it."""

KEYSET = "local-keyset.json"
AUDIT_KEY = "audit-checkpoint-key.pem"

_SUPERUSER = "postgres"
_DATABASE_HOST = "postgres:5432"
# Everybody finds the authority's certificate there.
_TLS_QUERY = f"sslmode=verify-full&sslrootcert={MINE}/ca.crt"

EDGE_GRANTS = "edge-grants.json"
IDENTITY_GRANTS = "identity-grants.json"
USER_TOKENS = "user-token-keys.json"

ROTATABLE = {
    "edge-grants": EDGE_GRANTS,
    "identity-grants": IDENTITY_GRANTS,
    "user-tokens": USER_TOKENS,
}
"""Keysets whose key can be replaced while everything runs, by name."""

# A grant is renewed for 24 hours, and lives for 15 minutes after that.
_VERIFIES_ON_S = 25 * 3600

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# sysexits.h: wrong use.
_EXIT_USAGE = 2
_API_TIMEOUT_S = 10


@dataclass(frozen=True)
class Keys:
    """What is made once and kept, in one folder."""

    folder: Path

    def text(self, name: str, make: Callable[[], str]) -> str:
        """Return a kept text, made the first time."""
        path = self.folder / name
        if not path.is_file():
            write_private(path, make())
        return path.read_text(encoding="utf-8")

    def random(self, name: str) -> str:
        """Return a kept text of 256 random bits."""
        return self.text(name, lambda: secrets.token_urlsafe(32))

    def keyset(self, name: str, make: Callable[[], dict[str, object]]) -> str:
        """Return a kept keyset of one key."""
        return self.text(name, lambda: json.dumps({"keys": [make()]}))

    def given(self, name: str, make: Callable[[str], str]) -> str:
        """Return a secret that came from elsewhere, or make one for the sandbox."""
        path = GIVEN / name
        return path.read_text(encoding="utf-8") if path.is_file() else make(name)

    def database_url(self, role: str, database: str) -> str:
        """Return the URL that a role logs in with."""
        password = quote(self.random(f"{role}.password"), safe="")
        return f"postgresql://{role}:{password}@{_DATABASE_HOST}/{database}?{_TLS_QUERY}"


def make_files(keep: Path) -> dict[str, dict[str, str]]:
    """Return the files of each process, by its name; what was made before stays the same.

    Args:
        keep: The folder with what is kept.
    """
    keys = Keys(keep)
    files = _service_files(keys) | {
        "sandbox": _sandbox_files(keys),
        "databases": _database_files(keys),
        "postgres": {"password": keys.random(f"{_SUPERUSER}.password")},
        "operator": {"audit-checkpoint.public.pem": _audit_public_key(keys)},
    }
    authority = ThrowAwayCa.create(keep)
    for process, found in files.items():
        if process in {"sandbox", "databases"}:
            found["ca.crt"] = (keep / "ca.crt").read_text(encoding="utf-8")
            continue
        issued = authority.issue(process, keep)
        for name, path in (
            ("ca.crt", issued.ca),
            (f"{process}.crt", issued.cert),
            (f"{process}.key", issued.key),
        ):
            found[name] = path.read_text(encoding="utf-8")
    return files


def _service_files(keys: Keys) -> dict[str, dict[str, str]]:
    edge_grants = keys.keyset(
        EDGE_GRANTS, lambda: generate_ed25519_key("edge-1", [Family.SLACK_GRANT])
    )
    identity_grants = keys.keyset(
        IDENTITY_GRANTS,
        lambda: generate_ed25519_key(
            "identity-1", [Family.RENEWED_GRANT, Family.ADMIN_GRANT, Family.INSTALL_GRANT]
        ),
    )
    public_grants = Keyset.join(
        *(
            Keyset.from_json(Secret(text), variable="grant keys")
            for text in (edge_grants, identity_grants)
        )
    ).public()
    [identity_role] = IDENTITY_DATABASE.roles
    return {
        "gateway-edge": _previous_signing_secret()
        | {
            "database-url": keys.database_url(EDGE_ROLE, GATEWAY_DATABASE.name),
            "slack-signing-secret": keys.given("signing_secret", keys.random),
            "grant-keys.json": edge_grants,
            "csrf-key": keys.random("csrf-key"),
        },
        "gateway-worker": {
            "database-url": keys.database_url(WORKER_ROLE, GATEWAY_DATABASE.name),
            "grant-public-keys.json": public_grants,
        },
        "token-vault": {
            "database-url": keys.database_url(VAULT_ROLE, VAULT_DATABASE.name),
            "scanner-database-url": keys.database_url(SCANNER_ROLE, VAULT_DATABASE.name),
            "slack-client-secret": keys.given("client_secret", keys.random),
            "grant-public-keys.json": public_grants,
            KEYSET: _local_keyset(keys),
            "fingerprint-key": keys.random("fingerprint-key"),
            AUDIT_KEY: keys.text(AUDIT_KEY, create_checkpoint_key),
        },
        "identity": {
            "database-url": keys.database_url(identity_role, IDENTITY_DATABASE.name),
            "membership-database-url": keys.database_url(READER_ROLE, AUTH_DATABASE.name),
            "grant-keys.json": identity_grants,
            "grant-public-keys.json": public_grants,
            "user-token-keys.json": _user_token_keys(keys),
        },
        "runner": {},
    }


def _previous_signing_secret() -> dict[str, str]:
    path = GIVEN / "previous_signing_secret"
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {"slack-previous-signing-secret": found} if found else {}


def _audit_public_key(keys: Keys) -> str:
    pem = keys.text(AUDIT_KEY, create_checkpoint_key)
    return Ed25519Signer.from_pem(Secret(pem)).public_pem


def _local_keyset(keys: Keys) -> str:
    path = keys.folder / KEYSET
    if not path.is_file():
        create_keyset(path)
    return path.read_text(encoding="utf-8")


def _user_token_keys(keys: Keys) -> str:
    return keys.given(
        USER_TOKENS,
        lambda name: keys.keyset(
            name, lambda: generate_hs256_key("platform-1", [Family.SLACK_USER])
        ),
    )


def _database_files(keys: Keys) -> dict[str, str]:
    admin = keys.database_url(_SUPERUSER, _SUPERUSER)
    roles = {role for plan in (*DATABASES, AUTH_DATABASE) for role in (plan.owner, *plan.roles)}
    return {"admin-url": admin} | {
        f"{role}.password": keys.random(f"{role}.password") for role in sorted(roles)
    }


def _sandbox_files(keys: Keys) -> dict[str, str]:
    edge = os.environ.get("PREPARE_PUBLIC_URL", "http://127.0.0.1:8080")
    slack, platform, auth = os.environ.get("PREPARE_SANDBOX_PORTS", "9001,9002,9003").split(",")
    work_app = f"{edge}/work-apps/slack"
    config = {
        "slack_listen": f"127.0.0.1:{slack}",
        "platform_listen": f"127.0.0.1:{platform}",
        "auth_listen": f"127.0.0.1:{auth}",
        "app_id": "A0INTERLOCK",
        "client_id": "1000000000001.2000000000002",
        "client_secret_file": f"{MINE}/slack-client-secret",
        "signing_secret_file": f"{MINE}/slack-signing-secret",
        "events_url": f"{work_app}/events",
        "interactions_url": f"{work_app}/interactions",
        "commands_url": f"{work_app}/commands",
        "redirect_urls": [f"{work_app}/oauth_redirect"],
        "dashboard_url": f"{work_app}/",
        "user_token_keys_file": f"{MINE}/user-token-keys.json",
        "auth_cookie_secret_file": f"{MINE}/auth-cookie-secret",
        "membership_database_url_file": f"{MINE}/membership-database-url",
        "trusted_origins": [edge],
    }
    if state := os.environ.get("PREPARE_SANDBOX_STATE"):
        config["state_file"] = state
    return {
        "sandbox.json": json.dumps(config, indent=1),
        "slack-client-secret": keys.given("client_secret", keys.random),
        "slack-signing-secret": keys.given("signing_secret", keys.random),
        "user-token-keys.json": _user_token_keys(keys),
        "auth-cookie-secret": keys.random("auth-cookie-secret"),
        "membership-database-url": keys.database_url(AUTH_DATABASE.owner, AUTH_DATABASE.name),
    }


def write_folders(out: Path) -> None:
    """Write each process's files into the folder of its name, for the images' user alone."""
    keep = out / AUTHORITY
    keep.mkdir(mode=0o700, exist_ok=True)
    for process, files in make_files(keep).items():
        if process == "token-vault":
            _write_keyset(out, files.pop(KEYSET))
        folder = out / process
        folder.mkdir(mode=0o700, exist_ok=True)
        for name, text in files.items():
            path = folder / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                write_private(path, text)
            os.chown(path, USER_ID, USER_ID)
        folder.chmod(0o700)
        os.chown(folder, USER_ID, USER_ID)
    for name in ("audit-checkpoints", "operator-files", "spool", "sandbox-state"):
        folder = out / name
        folder.mkdir(mode=0o700, exist_ok=True)
        os.chown(folder, USER_ID, USER_ID)


def _write_keyset(out: Path, text: str) -> None:
    """Give the vault its keyset once; from then on it is the vault's to change."""
    folder = out / "keyset"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / KEYSET
    if not path.is_file():
        write_private(path, text)
    for each in (folder, path):
        os.chown(each, USER_ID, USER_ID)
    folder.chmod(0o700)


def renew_certificates(keep: Path) -> None:
    """Forget the certificates in use, and not their authority: all are issued anew."""
    for path in keep.glob("*.crt"):
        if path.name != "ca.crt":
            path.unlink()


def rotate_key(path: Path, *, starts_after_s: int, now: float) -> None:
    """Add a key to a keyset; it takes the place of the one that signs.

    Keys that nothing can be verified with any more are left out.

    Args:
        path: The keyset.
        starts_after_s: When the new key begins to sign, in seconds from now.
        now: In seconds since 1970.
    """
    rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
    starts = int(now) + starts_after_s
    rows = [row for row in rows if row.get("retire_after", starts) > now]
    signing = max(rows, key=lambda row: row.get("not_before", 0))
    number = 1 + max(int(row["kid"].rpartition("-")[2]) for row in rows)
    generate = generate_hs256_key if signing["kty"] == "oct" else generate_ed25519_key
    families = [Family(each) for each in signing["families"]]
    new = generate(f"{signing['kid'].rpartition('-')[0]}-{number}", families)
    signing["retire_after"] = starts + _VERIFIES_ON_S
    write_private(path, json.dumps({"keys": [*rows, new | {"not_before": starts}]}))


async def prepare_databases(mine: Path) -> None:
    """Create roles and databases with their passwords, then migrate them."""
    admin = Secret.from_file(mine / "admin-url", variable="admin-url")
    for plan in (*DATABASES, AUTH_DATABASE):
        passwords = {
            role: Secret.from_file(mine / f"{role}.password", variable=f"{role}.password")
            for role in (plan.owner, *plan.roles)
        }
        urls = await create_database(admin, plan, passwords)
        if plan is not AUTH_DATABASE:
            await asyncio.to_thread(migrate, urls.owner, plan)
        _say(f"database {plan.name} is ready")
    connection = await asyncpg.connect(admin.reveal(), database=AUTH_DATABASE.name)
    try:
        await connection.execute(f"GRANT USAGE ON SCHEMA public TO {READER_ROLE}")
    finally:
        await connection.close()


class Cluster:
    """Secrets of the pod's own namespace, through the API server."""

    def __init__(self) -> None:
        self._trust = ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt"))
        namespace = (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8")
        self._url = f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}/secrets"

    def find(self, name: str) -> dict[str, str]:
        """Return a Secret's files; none when there is no such Secret."""
        try:
            found = self._ask("GET", f"/{name}")
        except urllib.error.HTTPError as error:
            if error.code != 404:  # noqa: PLR2004 - Not found.
                raise
            return {}
        return {key: base64.b64decode(text).decode() for key, text in found["data"].items()}

    def put(self, name: str, files: Mapping[str, str]) -> None:
        """Create a Secret, or replace its files."""
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "interlock"}},
            "data": {key: base64.b64encode(text.encode()).decode() for key, text in files.items()},
        }
        try:
            self._ask("PUT", f"/{name}", body)
        except urllib.error.HTTPError as error:
            if error.code != 404:  # noqa: PLR2004 - Not found.
                raise
            self._ask("POST", "", body)

    def _ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None
    ) -> dict[str, dict[str, str]]:
        token = (_SERVICE_ACCOUNT / "token").read_text(encoding="utf-8")
        request = urllib.request.Request(  # noqa: S310 - Always https, see __init__.
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(  # noqa: S310 - As above.
            request, timeout=_API_TIMEOUT_S, context=self._trust
        ) as answer:
            found: dict[str, dict[str, str]] = json.load(answer)
            return found


def write_secrets(cluster: Cluster) -> None:
    """Put each process's files into Secrets; what they are made from, into `authority`.

    Certificates go into `<process>-tls`, named as cert-manager names them, the rest into
    `<process>`.
    """
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder)
        for name, text in cluster.find(AUTHORITY).items():
            write_private(keep / name, text)
        files = make_files(keep)
        # First what the others are made from: a repeat then makes the same ones.
        kept = {path.name: path.read_text(encoding="utf-8") for path in keep.iterdir()}
        cluster.put(AUTHORITY, kept)
        for process, found in files.items():
            tls = {
                wanted: found.pop(name)
                for wanted, name in (
                    ("tls.crt", f"{process}.crt"),
                    ("tls.key", f"{process}.key"),
                )
                if name in found
            }
            if tls:
                cluster.put(f"{process}-tls", tls | {"ca.crt": found.pop("ca.crt")})
            cluster.put(process, found)
            _say(f"the secrets of {process} are in place")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    """Do what the argument says; 2 when it says nothing we know."""
    match sys.argv[1:]:
        case ["keys"]:
            write_folders(PREPARED)
        case ["renew"]:
            renew_certificates(PREPARED / AUTHORITY)
            write_folders(PREPARED)
        case ["rotate", "csrf-key"]:
            (PREPARED / AUTHORITY / "csrf-key").unlink(missing_ok=True)
            write_folders(PREPARED)
        case ["rotate", name] if name in ROTATABLE:
            path = PREPARED / AUTHORITY / ROTATABLE[name]
            if not path.is_file():
                _say(f"there is no {path.name} of ours: it came from elsewhere, or nothing did yet")
                return 1
            after = int(os.environ.get("ROTATE_AFTER_SECONDS", "3600"))
            rotate_key(path, starts_after_s=after, now=time.time())
            write_folders(PREPARED)
        case ["databases"]:
            asyncio.run(prepare_databases(MINE))
        case ["secrets"]:
            write_secrets(Cluster())
        case _:
            _say(__doc__ or "")
            return _EXIT_USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main())
