"""Call token-vault and identity all the time, as the worker does, and count.

Runs in a container on the network of the services, with the worker's certificate, and with
the edge's keys to make the grants that the worker would have been handed. Prints a line of
JSON each second; every failure is in the next line, and in no other. Ends after 15 minutes.
"""

import asyncio
import base64
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from interlock.identity.v1 import identity_pb2
from interlock.identity.v1.identity_pb2_grpc import SubjectServiceStub
from interlock.token_vault.v1 import token_vault_pb2
from interlock.token_vault.v1.token_vault_pb2_grpc import TokenServiceStub
from interlock_chassis.client import open_channel, remote_errors
from interlock_chassis.errors import RemoteError
from interlock_chassis.secret import Secret
from interlock_chassis.tls import TlsFiles
from interlock_tokens.grants import Workspace
from interlock_tokens.keysets import Keyset
from interlock_tokens.signing import sign_slack_grant

_WORKER = Path("/worker")
_TLS = TlsFiles(_WORKER / "ca.crt", _WORKER / "gateway-worker.crt", _WORKER / "gateway-worker.key")
_GRANT_KEYS = Path("/edge/grant-keys.json")
_WORKSPACE = Workspace("", "T0NORTHWIND", is_enterprise_install=False, app_id="A0INTERLOCK")
_EVERY_S = 0.2
_SECONDS = 5.0
_LONGEST_S = 15 * 60


class _Counts:
    """What happened since the last line."""

    def __init__(self) -> None:
        self._good: Counter[str] = Counter()
        self._bad: list[str] = []
        self._keys: set[str] = set()

    async def count(self, name: str, call: Awaitable[object], kid: str) -> None:
        """Await a call, and note how it ended and which key its grant was signed with."""
        began = time.monotonic()
        try:
            with remote_errors():
                await call
        except RemoteError as error:
            self._bad.append(f"{name} {error.reason} after {time.monotonic() - began:.2f} s")
            return
        self._good[name] += 1
        self._keys.add(kid)

    def take(self) -> str:
        """Return it as JSON, and begin anew."""
        line = {"good": dict(self._good), "bad": list(self._bad), "keys": sorted(self._keys)}
        self._good.clear()
        self._bad.clear()
        self._keys.clear()
        return json.dumps(line)


def _grant() -> tuple[str, str]:
    """Return a fresh grant of Mia's, and the name of the key that signed it."""
    now = datetime.now(UTC)
    keyset = Keyset.from_json(
        Secret.from_file(_GRANT_KEYS, variable="grant keys", document=True), variable="grant keys"
    )
    grant = sign_slack_grant(
        keyset,
        now=now,
        jti=str(uuid4()),
        workspace=_WORKSPACE,
        slack_user_id="U0MIA",
        slack_user_team_id="T0NORTHWIND",
        event_key=uuid4().hex,
        event_type="app_mention",
        body_sha256="0" * 64,
        event_at=now,
        is_stranger=False,
    ).reveal()
    return grant, _kid(grant)


def _kid(token: str) -> str:
    head = token.partition(".")[0]
    kid: str = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]
    return kid


async def _again_and_again(
    name: str, call: Callable[[str], Awaitable[object]], counts: _Counts
) -> None:
    running: set[asyncio.Task[None]] = set()
    ends = time.monotonic() + _LONGEST_S
    while time.monotonic() < ends:
        grant, kid = _grant()
        task = asyncio.create_task(counts.count(name, call(grant), kid))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(_EVERY_S)


async def _report(counts: _Counts) -> None:
    ends = time.monotonic() + _LONGEST_S
    while time.monotonic() < ends:
        await asyncio.sleep(1)
        sys.stdout.write(counts.take() + "\n")
        sys.stdout.flush()


async def _main() -> None:
    counts = _Counts()
    async with (
        open_channel("token-vault:8443", _TLS, server="token-vault") as vault,
        open_channel("identity:8443", _TLS, server="identity") as identity,
    ):
        tokens, subjects = TokenServiceStub(vault), SubjectServiceStub(identity)

        def read(grant: str) -> Awaitable[object]:
            request = token_vault_pb2.ReadBotTokenRequest(grant=grant)
            return tokens.ReadBotToken(request, timeout=_SECONDS)

        def issue(grant: str) -> Awaitable[object]:
            request = identity_pb2.IssueUserTokenRequest(grant=grant)
            return subjects.IssueUserToken(request, timeout=_SECONDS)

        await asyncio.gather(
            _again_and_again("ReadBotToken", read, counts),
            _again_and_again("IssueUserToken", issue, counts),
            _report(counts),
        )


if __name__ == "__main__":
    asyncio.run(_main())
